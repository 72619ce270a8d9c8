"""Consistency without a reference: the same pixels, translated in patches that lie elsewhere.

A generator answers for a pixel by its patch; whoever cuts the slide differently gets another answer. Two translations
of one slide, the second of a region that begins half a patch further, show by how much: 0 is a translation that does
not depend on its patches at all. ``retranslation`` makes both for a sample of a slide.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from kin_cli.concurrency import prefetch
from kin_cli.errors import InputError, NoTissueError, UsageError
from kin_cli.geometry import Box, Doubles, Grid, Integers, Pixels, Size
from kin_cli.passes.alone import differences
from kin_cli.progress import Progress
from kin_cli.pyramid.provenance import Provenance
from kin_cli.slide.tissue import TissueMask
from kin_cli.slide.view import SlideView

_BLOCK_PX = 1024
_PER_UNIT, _TOP = 20, 150  # bins per ΔE, and the largest ΔE that is told apart
_HINT = "translate the slide again with --region x,y,w,h that begins half a patch to the right and below"


@dataclass(frozen=True)
class Mismatch:
    """Difference of colour (ΔE, CIE 1976) between two translations of the same pixels of tissue.

    Attributes:
        mean, p99: its mean and 99th percentile, the latter to 0.05 ΔE.
        pixels: number of pixels.
        offset: where the second begins in the first (x, y), px.
    """

    mean: float
    p99: float
    pixels: int
    offset: tuple[int, int]

    def as_dict(self) -> dict[str, Any]:
        """Return the values, ready for JSON."""
        return {**asdict(self), "offset": list(self.offset), "unit": "ΔE"}

    def in_words(self) -> str:
        """One line with the values."""
        x, y = self.offset
        return (
            f"tile mismatch: mean {self.mean:.2f} ΔE, 99 % below {self.p99:.2f} ΔE, patches shifted by {x},{y} px"
            f" ({self.pixels:,} pixels)"
        )


class Differences:
    """A histogram of differences of colour, and their sum. Memory bound: 24 kB."""

    def __init__(self) -> None:
        self._counts: Integers = np.zeros(_TOP * _PER_UNIT, np.int64)
        self._total = 0.0

    @property
    def pixels(self) -> int:
        """Number of pixels counted."""
        return int(self._counts.sum())

    def count(self, one: Pixels, other: Pixels) -> None:
        """Count the differences of the same pixels (n, 3) in two translations."""
        far: Doubles = differences(one, other)
        bins = np.minimum((far * _PER_UNIT).astype(np.intp), len(self._counts) - 1)
        self._counts += np.bincount(bins, minlength=len(self._counts))
        self._total += float(far.sum())

    def add(self, other: Differences) -> None:
        """Add what another one counted."""
        self._counts += other._counts
        self._total += other._total

    def mismatch(self, offset: tuple[int, int]) -> Mismatch:
        """Mean and 99th percentile; at least one pixel must be counted."""
        pixels = self.pixels
        place = int(np.searchsorted(self._counts.cumsum(), 0.99 * pixels))
        return Mismatch(self._total / pixels, (place + 1) / _PER_UNIT, pixels, offset)


def grid_offset(
    view: SlideView, other: SlideView, made: tuple[Provenance | None, Provenance | None]
) -> tuple[int, int]:
    """Where a second translation begins in the first (x, y), px, as both files tell.

    Raises:
        InputError: a file does not tell how it was made, or they are of different slides or resolutions.
        UsageError: the patches of both lie on the same grid, so that there is nothing to compare.
    """
    for slide, found in zip((view, other), made, strict=True):
        if found is None:
            raise InputError(f"{slide.slide.path}: does not tell how it was made", "compare outputs of kin translate")
    first, second = made
    assert first is not None
    assert second is not None
    same = first.value("slide bytes") == second.value("slide bytes") and (first.level, first.mpp) == (
        second.level,
        second.mpp,
    )
    if not same:
        raise InputError(f"{other.slide.path}: is of another slide or resolution than {view.slide.path}", _HINT)
    if first.value("model") != second.value("model") or first.value("method") != second.value("method"):
        raise InputError(f"{other.slide.path}: was made with another generator or method", "change the region only")
    corners = [(0, 0) if made.region is None else (made.region.x, made.region.y) for made in (first, second)]
    x, y = corners[1][0] - corners[0][0], corners[1][1] - corners[0][1]
    patch = first.patch_px
    if patch and x % patch == 0 and y % patch == 0:
        raise UsageError(f"{other.slide.path}: its patches lie where those of {view.slide.path} do", _HINT)
    return x, y


def measure_mismatch(
    view: SlideView, other: SlideView, offset: tuple[int, int], mask: TissueMask, *, progress: Progress, workers: int
) -> Mismatch:
    """Compare two translations where both have the same pixels and ``mask``, of the first, shows tissue.

    Memory bound: 100 MB for each thread.

    Raises:
        NoTissueError: they share no tissue.
    """
    shared = Box(0, 0, view.size.width, view.size.height).intersection(
        Box(*offset, other.size.width, other.size.height)
    )
    if shared.empty:
        raise NoTissueError(f"{other.slide.path}: shows no pixel of {view.slide.path}", _HINT)
    grid = Grid(Size(shared.width, shared.height), _BLOCK_PX)
    boxes = [grid.clipped(cell).shifted(shared.x, shared.y) for cell in grid]
    found = Differences()
    with progress.stage("mismatch", len(boxes), "blocks") as advance:
        work = partial(_block, view, other, offset, mask)
        for part in prefetch(work, boxes, workers=workers, ahead=workers):
            found.add(part)
            advance(1)
    if not found.pixels:
        raise NoTissueError(f"{view.slide.path}: no tissue that both show", "--tissue none compares everything")
    return found.mismatch(offset)


def _block(view: SlideView, other: SlideView, offset: tuple[int, int], mask: TissueMask, box: Box) -> Differences:
    """The differences in a box of the first translation."""
    found, inside = Differences(), ~mask.background(box)
    if inside.any():
        found.count(view.read(box)[inside], other.read(box.shifted(-offset[0], -offset[1]))[inside])
    return found
