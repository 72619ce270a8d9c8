"""What went wrong in a translation that is complete all the same: numbers that are not finite, tissue of one colour.

Pass 1 counts the patches whose statistics are NaN or infinite, pass 2 the tiles whose pixels were before they became
bytes, and the tiles whose tissue got one colour although the source has more. Such an output is no translation of the
slide: the run ends with exit code 1 and says where, see ``flaws``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from kin_cli.errors import ModelError
from kin_cli.geometry import Cell, Mask, Pixels
from kin_cli.norm.table import StatTable
from kin_cli.store.blobs import BlobStore

SOUND, ONE_COLOUR, NO_CONTRAST = 0, 1, 2
"""Contrast of a translated tile.

SOUND: its tissue has contrast. ONE_COLOUR: it has none, but the source has. NO_CONTRAST: neither has any, or the tile
has no tissue.
"""
NOT_FINITE = 4  # flag added to one of the above: the tile had pixels that are NaN or infinite

# standard deviations in grey levels: at most the first is one colour, more than the second is contrast
_FLAT_STD, _SOURCE_STD = 0.5, 5.0
_FLAT_RANGE = 2  # range in grey levels of sampled pixels, above which there is contrast
_SAMPLE_STEP = 8


def contrast_of(pixels: Pixels, tissue: Mask, source: Callable[[], Pixels]) -> int:
    """Judge the contrast of a translated tile (h, w, 3) in its ``tissue`` (h, w).

    ``source`` reads the same pixels of the slide; it is called only if the translated tissue has a single colour.
    """
    sample = pixels[::_SAMPLE_STEP, ::_SAMPLE_STEP][tissue[::_SAMPLE_STEP, ::_SAMPLE_STEP]]
    if len(sample) and np.ptp(sample, axis=0).max() > _FLAT_RANGE:
        return SOUND
    if not tissue.any():
        return NO_CONTRAST
    if pixels[tissue].std(axis=0).max() > _FLAT_STD:
        return SOUND
    return ONE_COLOUR if source()[tissue].std(axis=0).max() > _SOURCE_STD else NO_CONTRAST


def not_finite(table: StatTable, cells: Iterable[Cell]) -> list[Cell]:
    """The measured cells among ``cells`` whose statistics are not all finite numbers."""
    return [cell for cell in cells if cell in table and not np.isfinite(table.read(cell)).all()]


def overflow(what: str) -> ModelError:
    """The error of a generator that gives no usable number at all; ``what`` names the numbers and the slide."""
    return ModelError(
        f"the generator is broken: {what} are not finite numbers", "try another checkpoint, or --precision fp32"
    )


def summary(background: BlobStore, *, patches: int) -> dict[str, dict[str, int]]:
    """The entries of the run record, from the tiles in ``TileStores.background`` and the number of patches not finite.

    "not_finite" counts patches and tiles; "one_colour" those tiles, "of" how many whose tissue has contrast in the
    slide or in the output.
    """
    keys = (key for key in range(background.capacity) if key in background)
    flags = np.array([np.frombuffer(background.get(key), "<f8")[-1] for key in keys]).astype(np.int64)
    contrast = flags % NOT_FINITE
    return {
        "not_finite": {"patches": patches, "tiles": int((flags >= NOT_FINITE).sum())},
        "one_colour": {"tiles": int((contrast == ONE_COLOUR).sum()), "of": int((contrast != NO_CONTRAST).sum())},
    }


def flaws(record: Mapping[str, Any]) -> list[str]:
    """One line for each reason why the complete output of a run is not what it should be; empty if it is.

    Single tiles of one colour are not among them: a stain may be absent from them. See ``one_colour_note``.
    """
    found = []
    unread = record["unreadable"]
    if unread["tiles"] or unread["patches"]:
        found.append(
            f"parts of {unread['tiles']} tiles could not be read and were filled;"
            f" {unread['patches']} patches were left out of the statistics"
        )
    broken = record.get("not_finite", {"patches": 0, "tiles": 0})
    if broken["patches"] or broken["tiles"]:
        plan = record["plan"]
        found.append(
            f"the generator's numbers are not finite: {broken['patches']} of {plan['patches_measured']} patches were"
            f" left out of the statistics, {broken['tiles']} of {plan['tiles_translated']} tiles show black instead"
            " (try --precision fp32 or another checkpoint)"
        )
    if _mostly_one_colour(record):
        plain = record["one_colour"]
        found.append(
            f"the generator gives one colour to the tissue of {plain['tiles']} of {plain['of']} tiles"
            " (try another checkpoint)"
        )
    return found


def one_colour_note(record: Mapping[str, Any]) -> str | None:
    """A note about tiles of one colour, if there are some but not so many that they are a flaw."""
    plain = record["one_colour"]
    if not plain["tiles"] or _mostly_one_colour(record):
        return None
    return f"the tissue of {plain['tiles']} of {plain['of']} tiles has one colour in the output"


def _mostly_one_colour(record: Mapping[str, Any]) -> bool:
    plain = record.get("one_colour", {"tiles": 0, "of": 0})
    return bool(plain["tiles"]) and 2 * int(plain["tiles"]) >= int(plain["of"])
