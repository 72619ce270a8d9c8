"""A slide at one level or one resolution, perhaps cropped: the source image of a translation.

Frames (prefixes of variables): ``l0_`` is level 0 of the slide, ``read_`` the level that is read, ``out_`` the image
that is written. Coordinates are continuous: in every frame pixel (x, y) fills [x, x + 1) × [y, y + 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from kin_cli.concurrency import prefetch
from kin_cli.errors import InputError, UsageError
from kin_cli.geometry import Box, Doubles, Floats, Indices, Pixels, Size
from kin_cli.slide.base import Slide
from kin_cli.slide.resample import axis, resample, sums_between

Number = TypeVar("Number", float, Doubles)

_RESAMPLED_AT_ONCE_PX = 2 << 20
_OVERVIEW_BLOCK_PX = 512
_OVERVIEW_THREADS = 4
_OWN_PIXELS = 1e-6  # distance of edges from those of stored pixels that is rounding


@dataclass(frozen=True)
class SlideView:
    """A slide at one resolution: the level to read, its size after resampling, and the region that is translated.

    All levels are assumed to cover exactly the same area, even if their sizes were rounded when the levels were made.

    Attributes:
        slide: the slide.
        level: the level that is read.
        frame: size of the whole slide at the resolution of the view.
        region: the crop, a box within ``frame``; its corner is the origin of the ``out_`` frame.
        mpp: µm per ``out_`` pixel, None if unknown.
    """

    slide: Slide
    level: int
    frame: Size
    region: Box
    mpp: float | None

    @property
    def size(self) -> Size:
        """Size of the ``out_`` frame."""
        return Size(self.region.width, self.region.height)

    @property
    def read_px_per_out(self) -> float:
        """Pixels of the level that is read per ``out_`` pixel, mean of both axes; 1.0 without resampling."""
        read = self.slide.levels[self.level]
        return (read.width / self.frame.width + read.height / self.frame.height) / 2

    @property
    def objective(self) -> float | None:
        """Magnification that belongs to an ``out_`` pixel, to three digits; None if the slide's is unknown.

        A slide scanned at 20× has 5× at a quarter of its resolution: viewers and pipelines find a resolution by it.
        """
        power = self.slide.objective
        return None if power is None else float(f"{power * self.frame.width / self.slide.levels[0].width:.3g}")

    def read(self, box: Box) -> Pixels:
        """Pixels of any box of the ``out_`` frame as a new contiguous (h, w, 3) uint8 RGB array; thread-safe.

        Beyond the frame the image is mirrored without repeating the edge pixel (``numpy.pad`` mode "reflect"), so that
        the value of a pixel depends on its position only, not on the box.

        Memory bound: 6 bytes per pixel of the box, and 64 MiB if the view is resampled.
        """
        if box.empty:
            return np.empty((box.height, box.width, 3), np.uint8)
        cols = _mirrored(box.x, box.right, self.size.width)
        rows = _mirrored(box.y, box.bottom, self.size.height)
        x, y = int(cols.min()), int(rows.min())
        inside = Box(x, y, int(cols.max()) + 1 - x, int(rows.max()) + 1 - y)
        pixels = self._frame_pixels(inside.shifted(self.region.x, self.region.y))
        if inside == box:
            return pixels
        return pixels.take(rows - y, axis=0).take(cols - x, axis=1)

    def l0_to_out(self, x: Number, y: Number) -> tuple[Number, Number]:
        """Convert level-0 coordinates (scalars or arrays) to the ``out_`` frame."""
        full = self.slide.levels[0]
        return x * (self.frame.width / full.width) - self.region.x, y * (
            self.frame.height / full.height
        ) - self.region.y

    def out_to_l0(self, x: Number, y: Number) -> tuple[Number, Number]:
        """Convert ``out_`` coordinates (scalars or arrays) to level 0."""
        full = self.slide.levels[0]
        return (x + self.region.x) * (full.width / self.frame.width), (y + self.region.y) * (
            full.height / self.frame.height
        )

    def _frame_pixels(self, box: Box) -> Pixels:
        if self.frame == self.slide.levels[self.level]:
            return self.slide.read(self.level, box)
        return self._resampled(box)

    def _resampled(self, box: Box) -> Pixels:
        read = self.slide.levels[self.level]
        rows = axis(box.y, box.bottom, length=read.height, out_length=self.frame.height)
        cols = axis(box.x, box.right, length=read.width, out_length=self.frame.width)
        if rows.needed * cols.needed > _RESAMPLED_AT_ONCE_PX and box.width * box.height > 1:
            along, halves = _halves(box)
            return np.concatenate([self._resampled(half) for half in halves], axis=along)
        source = Box(cols.first, rows.first, cols.needed, rows.needed)
        return resample(self.slide.read(self.level, source), rows=rows, cols=cols)


def open_view(
    slide: Slide, *, level: int | None = None, mpp: float | None = None, region: Box | None = None
) -> SlideView:
    """The view of ``slide`` at ``level`` (default 0) or at ``mpp`` µm per pixel, cropped to ``region``.

    For ``mpp`` the level with the nearest resolution, on a logarithmic scale, is resampled (bicubic, antialiased); the
    sides of the result are rounded to whole pixels. ``region`` is in pixels of that level or resolution.

    Raises:
        UsageError: both a level and a resolution are given, the level does not exist, or the region is empty or not
            entirely inside.
        InputError: ``mpp`` is given, but the pixel size of the slide is unknown.
    """
    if level is not None and mpp is not None:
        raise UsageError("a level and a resolution exclude each other", "give --level or --mpp")
    if mpp is not None:
        level, frame = _nearest_level(slide, mpp)
    else:
        level = _checked_level(slide, 0 if level is None else level)
        frame = slide.levels[level]
        mpp = None if slide.mpp is None else slide.mpp * slide.downsamples[level]
    return SlideView(slide, level, frame, _checked_region(slide, frame, region), mpp)


def overview(view: SlideView, max_side: int = 2048) -> Pixels:
    """The whole view as (h, w, 3) uint8, reduced to at most ``max_side`` pixels on the longer side by area averaging.

    A smaller view is not enlarged. Read in blocks by 4 threads from the smallest level that has enough pixels.

    Memory bound: 16 bytes per pixel of the overview, and 64 MiB, whatever the slide's size and number of levels.

    Raises:
        InputError: the slide is damaged.
    """
    factor = max_side / max(view.size.width, view.size.height)
    if factor >= 1:
        return view.read(Box(0, 0, view.size.width, view.size.height))
    out = Size(max(1, round(view.size.width * factor)), max(1, round(view.size.height * factor)))
    left, top = view.region.x / view.frame.width, view.region.y / view.frame.height
    right, bottom = view.region.right / view.frame.width, view.region.bottom / view.frame.height
    return averaged(view.slide, (left, top, right, bottom), out, workers=_OVERVIEW_THREADS)


def averaged(slide: Slide, part: tuple[float, float, float, float], out: Size, *, workers: int = 1) -> Pixels:
    """A part of a slide as ``out`` pixels, (h, w, 3) uint8, reduced by area averaging.

    ``part`` is left, top, right and bottom as fractions of the slide's sides, 0 to 1. Read in blocks from the smallest
    level that has enough pixels; where ``out`` is that level's own pixels, they are returned as they are.

    Memory bound: 16 bytes per pixel of ``out``, and 3 MiB for each of ``workers`` threads.

    Raises:
        InputError: the slide is damaged.
    """
    level, rows, cols = _averaged_level(slide, part, out)
    corner = Box(round(cols[0]), round(rows[0]), out.width, out.height)
    own = np.arange(out.height + 1) + corner.y, np.arange(out.width + 1) + corner.x
    if np.abs(rows - own[0]).max() < _OWN_PIXELS and np.abs(cols - own[1]).max() < _OWN_PIXELS:
        return slide.read(level, corner)
    means = np.zeros((out.height, out.width, 3), np.float32)
    per_pixel = 1 / ((rows[1] - rows[0]) * (cols[1] - cols[0]))
    sums = partial(_block_sums, slide, level, rows, cols)
    blocks = _blocks(rows, cols)
    parts = map(sums, blocks) if workers == 1 else prefetch(sums, blocks, workers=workers, ahead=2 * workers)
    for where, found in parts:
        means[where] += found
    means *= per_pixel
    return np.rint(means, out=means).astype(np.uint8)


def _mirrored(start: int, stop: int, length: int) -> Indices:
    """Indices of the pixels at positions ``start`` to ``stop`` of an axis that is mirrored at both ends repeatedly."""
    if length == 1:
        return np.zeros(stop - start, np.intp)
    period = 2 * (length - 1)
    positions = np.arange(start, stop, dtype=np.intp) % period
    return np.minimum(positions, period - positions)


def _halves(box: Box) -> tuple[int, tuple[Box, Box]]:
    """A box cut across its longer side: the array axis along which the halves follow each other, and the halves."""
    if box.height >= box.width:
        top = box.height // 2
        return 0, (Box(box.x, box.y, box.width, top), Box(box.x, box.y + top, box.width, box.height - top))
    left = box.width // 2
    return 1, (Box(box.x, box.y, left, box.height), Box(box.x + left, box.y, box.width - left, box.height))


def _nearest_level(slide: Slide, mpp: float) -> tuple[int, Size]:
    """The level whose resolution is nearest to ``mpp``, and the size of the whole slide at ``mpp``."""
    if not (math.isfinite(mpp) and mpp > 0):
        raise UsageError(f"a resolution must be a positive number of µm per pixel, got {mpp}")
    if slide.mpp is None:
        raise InputError(
            f"{slide.path}: the pixel size is not known, so --mpp cannot be used", "give it by --source-mpp"
        )
    factor = slide.mpp / mpp
    distances = [abs(math.log(factor * downsample)) for downsample in slide.downsamples]
    full = slide.levels[0]
    frame = Size(max(1, round(full.width * factor)), max(1, round(full.height * factor)))
    return distances.index(min(distances)), frame


def _checked_level(slide: Slide, level: int) -> int:
    if 0 <= level < len(slide.levels):
        return level
    known = ", ".join(f"{number}: {size}" for number, size in enumerate(slide.levels))
    raise UsageError(f"{slide.path}: there is no level {level}", f"its levels are {known}")


def _checked_region(slide: Slide, frame: Size, region: Box | None) -> Box:
    if region is None:
        return Box(0, 0, frame.width, frame.height)
    if region.empty or region.clipped(frame) != region:
        asked = f"{region.x},{region.y},{region.width},{region.height}"
        hint = f"it is x,y,width,height within an image of {frame} pixels"
        raise UsageError(f"{slide.path}: the region {asked} is empty or reaches outside the image", hint)
    return region


def _averaged_level(slide: Slide, part: tuple[float, float, float, float], out: Size) -> tuple[int, Doubles, Doubles]:
    """The level to average, and the edges of the rows and columns of ``out`` in pixels of this level."""
    left, top, right, bottom = part
    for level in reversed(range(len(slide.levels))):
        size = slide.levels[level]
        ratio = min((right - left) * size.width / out.width, (bottom - top) * size.height / out.height)
        if ratio > 1 - 1e-9 or level == 0:
            break
    rows = np.linspace(top * size.height, bottom * size.height, out.height + 1)
    cols = np.linspace(left * size.width, right * size.width, out.width + 1)
    return level, rows.clip(0, size.height), cols.clip(0, size.width)


def _blocks(rows: Doubles, cols: Doubles) -> Iterator[Box]:
    """Blocks of a fixed grid, clipped to the pixels that the overview covers."""
    span = Box(int(cols[0]), int(rows[0]), math.ceil(cols[-1]) - int(cols[0]), math.ceil(rows[-1]) - int(rows[0]))
    for y in range(span.y - span.y % _OVERVIEW_BLOCK_PX, span.bottom, _OVERVIEW_BLOCK_PX):
        for x in range(span.x - span.x % _OVERVIEW_BLOCK_PX, span.right, _OVERVIEW_BLOCK_PX):
            yield Box(x, y, _OVERVIEW_BLOCK_PX, _OVERVIEW_BLOCK_PX).intersection(span)


def _block_sums(slide: Slide, level: int, rows: Doubles, cols: Doubles, box: Box) -> tuple[tuple[slice, slice], Floats]:
    """The part of the overview that one block overlaps, and the integrals of the block over its pixels."""
    touched_rows, row_edges = _touched(rows, box.y, box.bottom)
    touched_cols, col_edges = _touched(cols, box.x, box.right)
    return (touched_rows, touched_cols), sums_between(slide.read(level, box), row_edges, col_edges)


def _touched(edges: Doubles, start: int, stop: int) -> tuple[slice, Doubles]:
    """Overview pixels of one axis that overlap [start, stop), and their edges, clipped and relative to ``start``."""
    first = max(0, int(np.searchsorted(edges, start, "right")) - 1)
    last = min(len(edges) - 1, int(np.searchsorted(edges, stop, "left")))
    return slice(first, last), edges[first : last + 1].clip(start, stop) - start
