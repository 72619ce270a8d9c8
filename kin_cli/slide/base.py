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
_SQUARE_WITHIN = 1.02  # ratio of both sides of a pixel that scanners reach by calibrating each axis


class Slide(ABC):
    """An image pyramid, read box by box. Thread-safe.

    Attributes:
        path: the file that was opened.
        format: OpenSlide's vendor name ("aperio", "dicom", …), or "tiff", "ome-tiff", "png", "jpeg", "sample".
        levels: size of each level, the largest (level 0) first.
        downsamples: level-0 pixels per pixel of each level, mean of both axes; the first is 1.0.
        mpp: µm per pixel of level 0, mean of both axes; None if unknown or not credible (see ``CREDIBLE_MPP``).
        not_square: width and height of a pixel in µm if they differ by more than 2 %; otherwise None.
        objective: nominal magnification of the objective, e.g. 20.0; None if unknown.
        icc: embedded ICC profile of the pixels, None if there is none.
        fill_colour: RGB colour of pixels that are transparent or were not scanned.
        bounds_origin: corner (x, y), in pixels of level 0, of the part of the slide that was scanned.
        bounds_size: size of that part; None if it is the whole slide or unknown.
        orientation: EXIF orientation (1 to 8) by which the stored picture was turned; 1 if it was not.
        expects_background: whether background around the subject is likely (slides and TIFF: yes; photographs: no).
        notes: what the user should know about how the file was read, one sentence each.
        memory_bytes: memory that this slide needs beyond what every reader needs (64 MiB of decoded tiles).
        temporary_bytes: size of the temporary file that holds the decoded picture, 0 if there is none.
    """

    path: Path
    format: str
    levels: tuple[Size, ...]
    downsamples: tuple[float, ...]
    mpp: float | None = None
    not_square: tuple[float, float] | None = None
    objective: float | None = None
    icc: bytes | None = None
    fill_colour: tuple[int, int, int] = WHITE
    bounds_origin: tuple[int, int] = (0, 0)
    bounds_size: Size | None = None
    orientation: int = 1
    expects_background: bool = True
    notes: tuple[str, ...] = ()
    memory_bytes: int = 0
    temporary_bytes: int = 0

    def set_pixel_size(self, x: float | None, y: float | None) -> None:
        """Set ``mpp`` and ``not_square`` from the width and the height of a pixel (µm), as far as they are credible."""
        self.mpp, self.not_square = credible_mpp(x, y), None
        if x and y and credible_mpp(x, y) and max(x, y) > _SQUARE_WITHIN * min(x, y):
            self.not_square = (x, y)

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

    def tile_size(self, level: int) -> Size | None:  # noqa: ARG002
        """Size of the tiles in which a level is stored; None if it is unknown, or stored otherwise."""
        return None

    def jpeg_tile(self, level: int, col: int, row: int) -> bytes | None:  # noqa: ARG002
        """A stored tile as a JPEG file that decodes to its pixels, without being encoded anew; None if there is none.

        There is none if the level is stored otherwise, the tile is not stored, damaged, or outside. Tiles at the right
        and lower edge are as large as the others. Thread-safe.
        """
        return None

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


def rgb_profile(profile: bytes) -> bytes | None:
    """An ICC profile if it is one of RGB colours, as the pixels of all readers are; otherwise None."""
    return profile if profile[16:20] == b"RGB " else None


def credible_mpp(x: float | None, y: float | None) -> float | None:
    """Mean of the credible pixel sizes (µm) among those of the two axes; None if neither is credible."""
    low, high = CREDIBLE_MPP
    found = [value for value in (x, y) if value is not None and low <= value <= high]
    return math.fsum(found) / len(found) if found else None


def to_uint8(values: AnyArray, *, bits: int | None = None) -> Pixels:
    """Scale unsigned samples that use ``bits`` bits (1 to 16; default: all of their type) to 0 to 255, rounded.

    Larger values than ``bits`` allow become 255.

    Raises:
        ValueError: the samples are of another type.
    """
    if values.dtype == np.bool_:
        white: Pixels = np.where(values, np.uint8(255), np.uint8(0))
        return white
    if values.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"samples of type {values.dtype}")
    bits = bits or 8 * values.dtype.itemsize
    if bits == 8 and values.dtype == np.uint8:
        return values
    largest = 2**bits - 1
    wide = np.minimum(values, largest).astype(np.uint32)
    scaled: Pixels = ((wide * 255 + largest // 2) // largest).astype(np.uint8)
    return scaled


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
