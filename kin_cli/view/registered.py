"""A real section in the place of the source: a slide whose pixels are fetched through a registration."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage

from kin_cli.geometry import Box, Doubles, Pixels
from kin_cli.registration.reading import registration_of_slides
from kin_cli.slide.base import Slide

Mapping = Callable[[Doubles], Doubles]
"""Points (n, 2), x and y in pixels of level 0 of the source, to pixels of level 0 of the real section.

NaN where it is not known.
"""

_STEP_PX = 16  # a registration is smooth: it is evaluated at every 16th pixel, and linearly between
_MOST_PX = 1 << 24
_MARGIN_PX = 2


class RegisteredSlide(Slide):
    """A real section, with the size and the levels of the source, interpolated linearly from its nearest finer level.

    Pixels that the real section does not have show its fill colour. Close ``real`` yourself.

    Memory bound: 100 bytes per pixel that is read, and 48 MiB.
    """

    def __init__(self, real: Slide, source: Slide, mapping: Mapping) -> None:
        self.path, self.format = real.path, f"{real.format}, registered"
        self.levels, self.downsamples = source.levels, source.downsamples
        self.mpp, self.fill_colour, self.notes = source.mpp, real.fill_colour, real.notes
        self._real, self._mapping = real, mapping

    def _fetch(self, level: int, box: Box) -> Pixels:
        found = np.full((box.height, box.width, 3), self.fill_colour, np.uint8)
        x, y = self._coordinates(level, box)
        if not np.isfinite(x + y).any():
            return found
        stretch = max(_stretch(x), _stretch(y))  # level-0 pixels of the real section per pixel of the box
        number = self._level(stretch, x, y)
        size, full = self._real.levels[number], self._real.levels[0]
        x, y = x * (size.width / full.width) - 0.5, y * (size.height / full.height) - 0.5
        needed = _around(x, y).clipped(size)
        if needed.empty:
            return found
        pixels = self._real.read(number, needed).astype(np.float32)
        inside = (x >= -0.5) & (y >= -0.5) & (x <= size.width - 0.5) & (y <= size.height - 0.5)  # NaN is not
        places = np.stack([y[inside] - needed.y, x[inside] - needed.x])
        for channel in range(3):
            values = ndimage.map_coordinates(pixels[..., channel], places, order=1, mode="nearest", prefilter=False)
            found[inside, channel] = np.rint(values)
        return found

    def _coordinates(self, level: int, box: Box) -> tuple[Doubles, Doubles]:
        """Where the centres of the pixels of a box lie on level 0 of the real section: x and y, each (h, w)."""
        full, size = self.levels[0], self.levels[level]
        cols, rows = _knots(box.width), _knots(box.height)
        across = (box.x + cols + 0.5) * (full.width / size.width)
        down = (box.y + rows + 0.5) * (full.height / size.height)
        points = np.stack(np.meshgrid(across, down), axis=-1).reshape(-1, 2)
        mapped = self._mapping(points).reshape(len(rows), len(cols), 2)
        along_rows, along_cols = np.arange(box.height) / _STEP_PX, np.arange(box.width) / _STEP_PX
        grid = np.meshgrid(along_rows, along_cols, indexing="ij")
        x, y = (ndimage.map_coordinates(mapped[..., axis], grid, order=1, mode="nearest") for axis in (0, 1))
        return x, y

    def _level(self, stretch: float, x: Doubles, y: Doubles) -> int:
        """The coarsest level of the real section that is fine enough, or the finest that is not too large to read."""
        number = 0
        for candidate, downsample in enumerate(self._real.downsamples):
            if downsample <= max(1.0, stretch * 1.1):
                number = candidate
        while number + 1 < len(self._real.levels):
            span = (np.nanmax(x) - np.nanmin(x)) * (np.nanmax(y) - np.nanmin(y)) / self._real.downsamples[number] ** 2
            if span <= _MOST_PX:
                break
            number += 1
        return number


def registered_slide(real: Slide, source: Slide, registration: Path) -> tuple[RegisteredSlide, list[str]]:
    """A real section as ``registration`` lays it on the source, and what is odd: see ``registration_of_slides``.

    Raises:
        InputError: the file cannot be read, is no registration of these slides, or maps the other way.
    """
    found, notes = registration_of_slides(registration, source, real)
    mpp = found.source.mpp

    def mapping(points: Doubles) -> Doubles:
        return np.where(found.known(points * mpp)[:, None], found.to_real(points), np.nan)

    return RegisteredSlide(real, source, mapping), notes


def _knots(count: int) -> Doubles:
    """Positions 0, 16, 32 … of a row of pixels, at least up to its last one."""
    return np.arange(math.ceil(max(count - 1, 1) / _STEP_PX) + 1, dtype=np.float64) * _STEP_PX


def _stretch(values: Doubles) -> float:
    """Median length of the step of a coordinate from one pixel to the next, along whichever axis it changes most."""
    steps = [np.abs(np.diff(values, axis=axis)) for axis in (0, 1) if values.shape[axis] > 1]
    return float(max((np.median(step[np.isfinite(step)]) for step in steps if np.isfinite(step).any()), default=1.0))


def _around(x: Doubles, y: Doubles) -> Box:
    """The box of pixels that interpolation at these positions needs; it may lie outside the image."""
    limit = 1e9
    left, right, top, bottom = np.clip([np.nanmin(x), np.nanmax(x), np.nanmin(y), np.nanmax(y)], -limit, limit)
    corner = math.floor(left) - _MARGIN_PX, math.floor(top) - _MARGIN_PX
    return Box(*corner, math.ceil(right) + _MARGIN_PX - corner[0] + 1, math.ceil(bottom) + _MARGIN_PX - corner[1] + 1)
