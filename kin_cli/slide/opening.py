"""The choice of a back end for a file."""

from __future__ import annotations

import math
from pathlib import Path

from kin_cli.errors import InputError, UsageError
from kin_cli.slide import plain, tiff, wsi
from kin_cli.slide.source import Slide


def open_slide(path: Path, *, mpp: float | None = None) -> Slide:
    """Open any slide or image that kin can read; ``mpp`` (µm per level-0 pixel) overrides what the file says.

    OpenSlide reads what it recognises. Plain TIFF, OME-TIFF, PNG and JPEG have readers of their own, and so have tiled
    TIFF files that OpenSlide would show incompletely or blurred (see ``tiff.reads_better``).

    Raises:
        UsageError: ``mpp`` is not a positive number.
        InputError: the file is missing, empty, a folder, damaged, or of no known format.
    """
    if mpp is not None and not (math.isfinite(mpp) and mpp > 0):
        raise UsageError(f"a pixel size must be a positive number of µm, got {mpp}")
    path = Path(path)
    _check_file(path)
    slide = _open(path)
    if mpp is not None:
        slide.mpp = mpp
    return slide


def _open(path: Path) -> Slide:
    vendor = wsi.detect(path)
    if vendor is None:
        return plain.open_plain(path)
    if vendor == "generic-tiff" and tiff.reads_better(path):
        return tiff.TiffSlide(path)
    try:
        return wsi.WholeSlide(path, vendor)
    except InputError:
        if vendor != "generic-tiff":
            raise
        # compressions that OpenSlide does not know, such as JPEG 2000; or a clearer message
        return tiff.TiffSlide(path)


def _check_file(path: Path) -> None:
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
