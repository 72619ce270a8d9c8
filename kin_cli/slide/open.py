"""Opening a slide: the choice of the reader for a file."""

from __future__ import annotations

import math
from pathlib import Path

from kin_cli.errors import InputError, UsageError
from kin_cli.geometry import Box, Size
from kin_cli.slide import tiff, wsi
from kin_cli.slide.base import Slide
from kin_cli.slide.files import READABLE, TIFF_SIGNATURES, check_file, unknown_format
from kin_cli.slide.tiff_layout import same_extent
from kin_cli.slide.unreadable import FillingSlide
from kin_cli.slide.view import SlideView, open_view

_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg"}
_SLIDES = {".bif", ".czi", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide", ".tif", ".tiff", ".vms", ".vmu"}
SUFFIXES = frozenset(_SLIDES | {".jpeg", ".jpg", ".png"})
"""Files of a folder that are taken for slides or images."""


def find_images(path: Path) -> list[Path]:
    """The file itself, or the slides and images of a folder in the order of their names.

    A folder of DICOM files is one slide, named by its first file.

    Raises:
        UsageError: The folder holds no slide or image.
    """
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.name[0] != ".")
    if not found and (dicom := sorted(path.glob("*.dcm"))):
        return dicom[:1]
    if not found:
        raise UsageError(f"{path}: holds no slide or image", f"looked for {', '.join(sorted(SUFFIXES))}")
    return found


def open_slide(path: Path, *, mpp: float | None = None, series: int | None = None) -> Slide:
    """Open any slide or image that kin can read; ``mpp`` (µm per level-0 pixel) overrides the file's own value.

    Formats that OpenSlide recognises are read with OpenSlide. Plain TIFF, OME-TIFF, PNG and JPEG have readers in this
    package; so do tiled TIFF files that OpenSlide would show incompletely, blurred, or as something else than they are
    (see ``tiff.plain_picture``). ``series`` chooses one of several pictures in a TIFF file, by tifffile's numbers; by
    default it is the largest one in colour.

    Raises:
        UsageError: ``mpp`` is not a positive number, or there is no picture ``series``.
        InputError: the file is missing, empty, no regular file, damaged, of an unknown format, no RGB or grey picture,
            or its pixels are not square.
    """
    if mpp is not None and not (math.isfinite(mpp) and mpp > 0):
        raise UsageError(f"a pixel size must be a positive number of µm, got {mpp}")
    path = Path(path)
    slide = _open(path, check_file(path), series)
    if mpp is not None:
        slide.mpp = mpp
    elif slide.not_square is not None:
        slide.close()
        width, height = slide.not_square
        hint = "resample it to square pixels; or, if the file is wrong, state the pixel size with --source-mpp"
        raise InputError(f"{path}: its pixels are not square, {width:.4g} × {height:.4g} µm", hint)
    return slide


def open_source(
    path: Path,
    *,
    level: int | None = None,
    mpp: float | None = None,
    source_mpp: float | None = None,
    series: int | None = None,
    region: Box | None = None,
    fill: bool = False,
) -> SlideView:
    """Open a slide and a view of it; close ``view.slide`` when done.

    Args:
        path: the slide's file.
        level, mpp, region: see ``view.open_view``.
        source_mpp: µm per level-0 pixel if the file's own value is wrong or missing.
        series: number of the picture within a TIFF file; see ``open_slide``.
        fill: show the fill colour where the slide cannot be read, instead of raising; see ``FillingSlide``.

    Raises:
        UsageError, InputError: see ``open_slide`` and ``open_view``.
    """
    slide = open_slide(path, mpp=source_mpp, series=series)
    try:
        return open_view(FillingSlide(slide) if fill else slide, level=level, mpp=mpp, region=region)
    except BaseException:
        slide.close()
        raise


def _open(path: Path, head: bytes, series: int | None) -> Slide:
    if head.startswith(TIFF_SIGNATURES):
        return _open_tiff(path, head, series)
    if series:
        raise UsageError(f"{path}: there is no picture {series}", "--series is for TIFF files with several pictures")
    vendor = wsi.detect(path)
    if vendor is not None:
        return wsi.WholeSlide(path, vendor)
    refused = unknown_format(path, head)
    if refused is not None:
        raise refused
    for signature, name in _SIGNATURES.items():
        if head.startswith(signature):
            from kin_cli.slide.photo import PhotoSlide

            return PhotoSlide(path, name)
    raise InputError(f"{path}: not a slide or an image of a known format", READABLE)


def _open_tiff(path: Path, head: bytes, series: int | None) -> Slide:
    """Open a TIFF-based file with OpenSlide if that reads it right, otherwise with ``TiffSlide``."""
    vendor = wsi.detect(path)
    if vendor is None:
        refused = unknown_format(path, head)
        if refused is not None:
            raise refused
        return tiff.TiffSlide(path, series)
    if vendor == "generic-tiff":
        plain = tiff.plain_picture(path, series)
        slide = _generic(path, *plain) if plain else None
        return slide or tiff.TiffSlide(path, series)
    right, notes = tiff.check_for_openslide(path, vendor)
    if not right:
        return tiff.TiffSlide(path, series)
    whole = wsi.WholeSlide(path, vendor)
    whole.notes = notes
    if series is None or tiff.picture_size(path, series) == whole.levels[0]:
        return whole
    whole.close()
    return tiff.TiffSlide(path, series)


def _generic(path: Path, sizes: tuple[Size, ...], objective: float | None, notes: tuple[str, ...]) -> Slide | None:
    """A plain TIFF opened with OpenSlide; None if it cannot, or takes pages for levels that are none."""
    try:
        slide = wsi.WholeSlide(path, "generic-tiff")
    except InputError:
        # TiffSlide reads compressions that OpenSlide does not know, such as JPEG 2000, or raises a clearer error
        return None
    if slide.levels[0] == sizes[0] and all(same_extent(sizes[0], size) for size in slide.levels):
        slide.notes = notes
        slide.objective = objective
        return slide
    slide.close()
    return None
