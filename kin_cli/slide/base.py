"""``Slide``, the interface of all readers, and the conversion of stored samples to 8-bit RGB.

A reader sets the attributes of ``Slide`` and implements ``_fetch``; boxes are in pixels of the level that is read.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType

import numpy as np

from kin_cli.geometry import AnyArray, Box, Pixels, Size

WHITE = (255, 255, 255)
# µm per pixel of a microscope; values outside are print resolutions (72 dpi is 353 µm) or defaults (libvips: 1000 µm)
CREDIBLE_MPP = (0.05, 20.0)


class Slide(ABC):
    """An image pyramid, read box by box. Thread-safe.

    Attributes:
        path: the file that was opened.
        format: OpenSlide's vendor name ("aperio", "dicom", …), or "tiff", "ome-tiff", "png", "jpeg", "sample".
        levels: size of each level, the largest (level 0) first.
        downsamples: level-0 pixels per pixel of each level, mean of both axes; the first is 1.0.
        mpp: µm per pixel of level 0, mean of both axes; None if unknown or not credible (see ``CREDIBLE_MPP``).
        objective: nominal magnification of the objective, e.g. 20.0; None if unknown.
        icc: embedded ICC profile of the pixels, None if there is none.
        fill_colour: RGB colour of pixels that are transparent or were not scanned.
        expects_background: whether background around the subject is likely (slides and TIFF: yes; photographs: no).
    """

    path: Path
    format: str
    levels: tuple[Size, ...]
    downsamples: tuple[float, ...]
    mpp: float | None = None
    objective: float | None = None
    icc: bytes | None = None
    fill_colour: tuple[int, int, int] = WHITE
    expects_background: bool = True

    def read(self, level: int, box: Box) -> Pixels:
        """Pixels of ``box``, in pixels of ``level``, as a new contiguous (h, w, 3) uint8 RGB array.

        Thread-safe. Transparent pixels are composited on ``fill_colour``.

        Raises:
            ValueError: the level does not exist, or the box is not entirely inside it.
            InputError: the file is damaged at this place.
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
        """Pixels (h, w, 3) uint8 of a box that is not empty and lies inside the level."""

    def close(self) -> None:  # noqa: B027 - optional: some readers hold no files
        """Release file handles and caches; no read may be in progress or follow."""

    def __enter__(self) -> Slide:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def downsamples_of(levels: tuple[Size, ...]) -> tuple[float, ...]:
    """Level-0 pixels per pixel of each level (mean of both axes), from the sizes of the levels."""
    full = levels[0]
    return tuple((full.width / level.width + full.height / level.height) / 2 for level in levels)


def credible_mpp(x: float | None, y: float | None) -> float | None:
    """Mean of the credible pixel sizes (µm) among those of the two axes; None if neither is credible."""
    low, high = CREDIBLE_MPP
    found = [value for value in (x, y) if value is not None and low <= value <= high]
    return math.fsum(found) / len(found) if found else None


def to_uint8(values: AnyArray) -> Pixels:
    """Scale samples of 1, 8 or 16 bits to uint8, 0 to 255; 16-bit values are divided by 257 and rounded.

    Raises:
        ValueError: the samples are of another type.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        white: Pixels = np.where(values, np.uint8(255), np.uint8(0))
        return white
    if values.dtype == np.uint16:
        scaled: Pixels = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
        return scaled
    raise ValueError(f"samples of type {values.dtype}")


def composite(rgb: Pixels, alpha: Pixels, *, fill_colour: tuple[int, int, int]) -> Pixels:
    """Composite ``rgb`` (h, w, 3), not premultiplied, with opacity ``alpha`` (h, w) on a colour; rounded to nearest."""
    opacity = alpha[..., None].astype(np.uint16)
    under = np.array(fill_colour, np.uint16) * (255 - opacity)
    composited: Pixels = ((rgb * opacity + under + 127) // 255).astype(np.uint8)
    return composited


def composite_premultiplied(rgb: Pixels, alpha: Pixels, *, fill_colour: tuple[int, int, int]) -> Pixels:
    """Like ``composite``, for colours that are stored multiplied by ``alpha``."""
    under = np.array(fill_colour, np.uint16) * (255 - alpha[..., None].astype(np.uint16))
    return np.minimum(rgb + (under + 127) // 255, 255).astype(np.uint8)
