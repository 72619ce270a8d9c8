"""Opening a slide: the choice of the reader for a file."""

from __future__ import annotations

import math
from pathlib import Path

from kin_cli.errors import InputError, UsageError
from kin_cli.geometry import Box
from kin_cli.slide import tiff, wsi
from kin_cli.slide.base import Slide
from kin_cli.slide.photo import PhotoSlide
from kin_cli.slide.unreadable import FillingSlide
from kin_cli.slide.view import SlideView, open_view

_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg"}
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def open_slide(path: Path, *, mpp: float | None = None) -> Slide:
    """Open any slide or image that kin can read; ``mpp`` (µm per level-0 pixel) overrides the file's own value.

    Formats that OpenSlide recognises are read with OpenSlide. Plain TIFF, OME-TIFF, PNG and JPEG have readers in this
    package; so do tiled TIFF files that OpenSlide would show incompletely or blurred (see ``tiff.reads_better``).

    Raises:
        UsageError: ``mpp`` is not a positive number.
        InputError: the file is missing, empty, a folder, damaged, or of an unknown format.
    """
    if mpp is not None and not (math.isfinite(mpp) and mpp > 0):
        raise UsageError(f"a pixel size must be a positive number of µm, got {mpp}")
    path = Path(path)
    _check_file(path)
    slide = _open(path)
    if mpp is not None:
        slide.mpp = mpp
    return slide


def open_source(
    path: Path,
    *,
    level: int | None = None,
    mpp: float | None = None,
    source_mpp: float | None = None,
    region: Box | None = None,
    fill: bool = False,
) -> SlideView:
    """Open a slide and a view of it; close ``view.slide`` when done.

    Args:
        path: the slide's file.
        level, mpp, region: see ``view.open_view``.
        source_mpp: µm per level-0 pixel if the file's own value is wrong or missing.
        fill: show the fill colour where the slide cannot be read, instead of raising; see ``FillingSlide``.

    Raises:
        UsageError, InputError: see ``open_slide`` and ``open_view``.
    """
    slide = open_slide(path, mpp=source_mpp)
    try:
        return open_view(FillingSlide(slide) if fill else slide, level=level, mpp=mpp, region=region)
    except BaseException:
        slide.close()
        raise


def _open(path: Path) -> Slide:
    vendor = wsi.detect(path)
    if vendor is None:
        return _open_plain(path)
    if vendor == "generic-tiff" and tiff.reads_better(path):
        return tiff.TiffSlide(path)
    try:
        return wsi.WholeSlide(path, vendor)
    except InputError:
        if vendor != "generic-tiff":
            raise
        # TiffSlide reads compressions that OpenSlide does not know, such as JPEG 2000, or raises a clearer error
        return tiff.TiffSlide(path)


def _open_plain(path: Path) -> Slide:
    """Open a PNG, JPEG, TIFF or OME-TIFF file, recognised by its first bytes.

    Raises:
        InputError: the file is none of these, or damaged.
    """
    with path.open("rb") as file:
        head = file.read(8)
    if head.startswith(_TIFF_SIGNATURES):
        return tiff.TiffSlide(path)
    for signature, name in _SIGNATURES.items():
        if head.startswith(signature):
            return PhotoSlide(path, name)
    hint = "kin reads what OpenSlide reads (SVS, NDPI, MRXS, SCN, DICOM, tiled TIFF, …), OME-TIFF, TIFF, PNG and JPEG"
    raise InputError(f"{path}: not a slide or an image of a known format", hint)


def _check_file(path: Path) -> None:
    """Raise ``InputError`` if ``path`` is missing, a folder, unreadable or empty."""
    try:
        if path.is_dir():
            raise InputError(f"{path}: a folder, not a slide", _folder_hint(path))
        size = path.stat().st_size
        with path.open("rb"):
            pass
    except FileNotFoundError:
        raise InputError(f"{path}: no such file", "check the path and its spelling") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be opened: {error.strerror}", "check the file and its permissions") from error
    if size == 0:
        raise InputError(f"{path}: the file is empty", "copy it again from its source")


def _folder_hint(path: Path) -> str:
    beside = path.with_name(path.name + ".mrxs")
    if beside.is_file():
        return f"a MIRAX slide is named by its .mrxs file: {beside}"
    inside = sorted(path.glob("*.dcm"))
    if inside:
        return f"a DICOM slide is named by one of its files, such as {inside[0]}"
    return (
        "name one file; of a DICOM slide, any .dcm file within the folder; of a MIRAX slide, the .mrxs file beside it"
    )
