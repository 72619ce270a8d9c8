"""What every slide offers.

Two frames occur here: ``l0_`` (pixels of level 0) and the level that is read. A back end only fetches pixels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from kin_cli.geometry import Box, Size

Pixels = npt.NDArray[np.uint8]

WHITE = (255, 255, 255)
# what is outside is a print resolution (72 dpi is 353 µm) or a writer's default (libvips: 1000 µm), not a microscope
CREDIBLE_MPP = (0.05, 20.0)


# FROM slide.source: What every slide offers. Two frames occur here: ``l0_`` (pixels of level 0) and the level that is read. A back end only fetches pixels.


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
    expects_background: bool = True

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

    def close(self) -> None:  # noqa: B027 - most back ends hold something, none must
        """Release file handles and caches; no read may be in progress or follow."""

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


# FROM slide.colour: Whatever an image stores, as 8-bit RGB.


def to_uint8(values: npt.NDArray[Any]) -> Pixels:
    """Samples of 1, 8 or 16 bits scaled to 0 to 255; 16 bits are divided by 257 and rounded.

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


def composite(rgb: Pixels, alpha: Pixels, *, background: tuple[int, int, int]) -> Pixels:
    """``rgb`` (h, w, 3), not premultiplied, laid over a colour with opacity ``alpha`` (h, w); rounded to nearest."""
    opacity = alpha[..., None].astype(np.uint16)
    under = np.array(background, np.uint16) * (255 - opacity)
    partial_tiles: Pixels = ((rgb * opacity + under + 127) // 255).astype(np.uint8)
    return partial_tiles


def composite_premultiplied(rgb: Pixels, alpha: Pixels, *, background: tuple[int, int, int]) -> Pixels:
    """Like ``composite`` for colours that were multiplied with ``alpha`` when they were stored."""
    under = np.array(background, np.uint16) * (255 - alpha[..., None].astype(np.uint16))
    return np.minimum(rgb + (under + 127) // 255, 255).astype(np.uint8)
