"""A registration file and the two slides that are at hand: whole slides, or a translation of a part of the source.

Whoever reads a registration reads it here, so that every command finds the same place, and looks in the same way
whether a map of another program goes the right way.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from kin_cli.errors import InputError
from kin_cli.geometry import Size
from kin_cli.pyramid.provenance import Provenance
from kin_cli.registration.foreign import check_direction
from kin_cli.registration.transform import Registration, Side, read_registration
from kin_cli.slide.base import Slide
from kin_cli.slide.tissue import detect_tissue
from kin_cli.slide.view import SlideView, open_view
from kin_cli.store.files import read_regular

_ANY_UM = 1.0  # a map between pixels does not depend on their size


def registration_of_slides(file: Path, source: Slide, real: Slide) -> tuple[Registration, list[str]]:
    """The registration in a file of two whole slides, and what is odd about it.

    A pixel size that a slide does not state is the one that the registration was made with.

    Raises:
        InputError: the file cannot be read, is no registration of these slides, or maps the other way.
    """
    record = _record(file)
    sides = _side(source, record, "source"), _side(real, record, "real")
    found = read_registration(file, *sides)
    if not found.foreign:
        return found, []
    told = check_direction(file, found, detect_tissue(open_view(source)), detect_tissue(open_view(real)))
    return found, [] if told is None else [told]


def registration_of_translation(
    file: Path, translated: SlideView, made: Provenance | None, real: Slide, source: Slide | None
) -> tuple[Registration, list[str]]:
    """The registration in a file, in the frame of a translation of the source or of a part of it; and notes.

    ``made`` is what the translation tells of itself. ``source`` is the whole slide that was translated, if it is at
    hand; a map of another program, which is in its pixels, needs it unless the translation has the same ones.

    Raises:
        InputError: see ``registration_of_slides``; or a map of another program lacks the source.
    """
    same = made is None or (made.region is None and made.mpp is None and not made.level)
    if source is None and same:
        return registration_of_slides(file, translated.slide, real)
    if source is None:
        record = _record(file)
        if record is None:
            assert made is not None
            raise InputError(
                f"{file}: is in pixels of {made.slide}, and {translated.slide.path.name} shows {made.part}",
                "name the whole slide with --source",
            )
        whole = read_registration(file, _recorded(file, record, "source"), _side(real, record, "real"))
        notes: list[str] = []
    else:
        if made is None or (made.mpp is None and not made.level):
            source.mpp = source.mpp or translated.slide.mpp  # the same pixels
        whole, notes = registration_of_slides(file, source, real)
    part, said = in_part(whole, translated, made)
    return part, [*notes, *([] if said is None else [said])]


def in_part(
    registration: Registration, translated: SlideView, made: Provenance | None
) -> tuple[Registration, str | None]:
    """The registration of a whole slide in the frame of its translation, and what to say if that is a part of it.

    Raises:
        InputError: the translation reaches beyond the slide that was registered, or covers something else.
    """
    slide, whole = translated.slide, registration.source
    region = None if made is None else made.region
    size = slide.levels[0]
    mpp = slide.mpp or (None if made is None else made.mpp)
    if mpp is None and region is None:
        mpp = whole.mpp * whole.size.width / size.width
    elif mpp is None:
        if made is None or made.level:
            raise InputError(f"{slide.path}: the pixel size is not known", "state it in µm with --source-mpp")
        mpp = whole.mpp
    side = Side(slide.path, size, mpp)
    extent = whole.size.width * whole.mpp, whole.size.height * whole.mpp
    if region is None:
        covered = size.width * mpp, size.height * mpp
        if any(abs(ours / theirs - 1) > 0.01 for ours, theirs in zip(covered, extent, strict=True)):
            raise InputError(
                f"{slide.path}: covers {covered[0]:.0f} × {covered[1]:.0f} µm, and {whole.path.name}, which was"
                f" registered, {extent[0]:.0f} × {extent[1]:.0f} µm",
                "it does not tell that it shows a part of it: is it a translation of this slide, and kin's own file?",
            )
        return replace(registration, source=side), None
    corner = region.x * mpp, region.y * mpp
    ends = region.right * mpp, region.bottom * mpp
    if any(end > limit * 1.01 for end, limit in zip(ends, extent, strict=True)):
        raise InputError(
            f"{slide.path}: its region ends at {ends[0]:.0f}, {ends[1]:.0f} µm, but {whole.path.name}, which was"
            f" registered, covers {extent[0]:.0f} × {extent[1]:.0f} µm",
            "is it the registration of the slide that was translated?",
        )
    box = f"{region.x},{region.y},{region.width},{region.height}"
    return registration.part(
        side, corner
    ), f"{slide.path.name} shows the region {box}: the whole slide's is moved there"


def _record(file: Path) -> dict[str, Any] | None:
    """The JSON of a file of ``kin register``; None of anything else, whatever is wrong with it."""
    try:
        record = json.loads(read_regular(file))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and "registration" in record else None


def _side(slide: Slide, record: dict[str, Any] | None, name: str) -> Side:
    """A slide as a side: its own pixel size, or that of the registration; any one for a map between pixels."""
    if slide.mpp is not None:
        return Side(slide.path, slide.levels[0], slide.mpp)
    if record is None:
        return Side(slide.path, slide.levels[0], _ANY_UM)
    try:
        return Side(slide.path, slide.levels[0], float(record[name]["mpp"]))
    except (KeyError, TypeError, ValueError):
        return Side(slide.path, slide.levels[0], _ANY_UM)  # read_registration tells what is wrong


def _recorded(file: Path, record: dict[str, Any], name: str) -> Side:
    """The slide that was registered, as the file tells."""
    try:
        item = record[name]
        width, height = (int(n) for n in item["size"])
        return Side(Path(str(item["file"])), Size(width, height), float(item["mpp"]))
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{file}: is a damaged registration", "make it again with kin register") from None
