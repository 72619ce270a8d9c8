"""What every slide offers, and the choice of a back end for a file.

Two frames occur here: ``l0_`` (pixels of level 0) and the level that is read. A back end only fetches pixels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from kin_cli.errors import InputError, UsageError
from kin_cli.geometry import Box, Size

Pixels = npt.NDArray[np.uint8]

WHITE = (255, 255, 255)
# what is outside is a print resolution (72 dpi is 353 µm) or a writer's default (libvips: 1000 µm), not a microscope
CREDIBLE_MPP = (0.05, 20.0)


class Slide(ABC):
    """An image pyramid that can be read box by box from any thread.

    Attributes:
        path: the file that was opened.
        format: OpenSlide's name of the vendor ("aperio", "dicom", …), or "tiff", "ome-tiff", "png", "jpeg", "sample".
        levels: size of each level, the largest (level 0) first.
        downsamples: level-0 pixels per pixel of each level, mean of both axes; 1.0 first.
        mpp: µm per pixel of level 0, mean of both axes; None where unknown or not credible (see ``CREDIBLE_MPP``).
        objective: nominal magnification of the scanner, None where unknown.
        icc: embedded ICC profile of the pixels, None where absent.
        background: RGB colour that shows through where the slide is transparent or was not scanned.
        has_glass_by_default: whether one expects glass around the subject (slides and TIFF: yes; photographs: no).
    """

    path: Path
    format: str
    levels: tuple[Size, ...]
    downsamples: tuple[float, ...]
    mpp: float | None = None
    objective: float | None = None
    icc: bytes | None = None
    background: tuple[int, int, int] = WHITE
    has_glass_by_default: bool = True

    def read(self, level: int, box: Box) -> Pixels:
        """Pixels of ``box``, given in the frame of ``level``, as a new contiguous (h, w, 3) uint8 RGB array.

        Thread-safe. Transparent pixels are composited on ``background``.

        Raises:
            ValueError: no such level, or the box does not lie wholly inside it.
            InputError: the file is damaged there.
        """
        if not 0 <= level < len(self.levels):
            raise ValueError(f"{self.path.name} has levels 0 to {len(self.levels) - 1}, not {level}")
        if box.clipped(self.levels[level]) != box:
            raise ValueError(f"{box} reaches beyond level {level} of {self.path.name}, {self.levels[level]}")
        if box.empty:
            return np.empty((box.height, box.width, 3), np.uint8)
        return np.ascontiguousarray(self._fetch(level, box))

    @abstractmethod
    def _fetch(self, level: int, box: Box) -> Pixels:
        """The pixels of a box that is not empty and lies inside the level; same array as ``read``."""

    def close(self) -> None:
        """Give back file handles and caches; no read may be under way or follow."""
        self._release()

    def _release(self) -> None:  # noqa: B027 - most back ends hold something, none must
        """What ``close`` does."""

    def __enter__(self) -> Slide:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def downsamples_of(levels: tuple[Size, ...]) -> tuple[float, ...]:
    """Level-0 pixels per pixel of each level, mean of both axes."""
    full = levels[0]
    return tuple((full.width / level.width + full.height / level.height) / 2 for level in levels)


def credible_mpp(x: float | None, y: float | None) -> float | None:
    """Mean of the pixel sizes (µm) of both axes, or the credible one of them, or None."""
    low, high = CREDIBLE_MPP
    found = [value for value in (x, y) if value is not None and low <= value <= high]
    return math.fsum(found) / len(found) if found else None


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
    # imported here: each takes a shared library with it, and both need Slide from this module
    from kin_cli.slide import plain, tiff, wsi

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
