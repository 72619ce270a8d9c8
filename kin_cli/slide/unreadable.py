"""Slides with parts that cannot be read: the parts are filled, told, and everything else goes on."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from kin_cli.errors import InputError
from kin_cli.geometry import Box, Cell, Grid
from kin_cli.slide.base import Pixels, Slide
from kin_cli.slide.view import SlideView
from kin_cli.store.blobs import BlobStore

_BLOCK_PX = 256
_BICUBIC_SUPPORT = 2
Listener = Callable[[int, Box], None]
_LISTED = 100


# FROM slide.faults: Slides with parts that cannot be read: the parts are filled, told, and everything else goes on.


class FillingSlide(Slide):
    """A slide whose unreadable blocks of 256 px show its background colour; closes the slide that it wraps.

    A box that can be read is never touched, and in one that cannot each block of a fixed grid is judged by itself: what
    is filled depends neither on the order of reads nor on what failed before.
    """

    def __init__(self, slide: Slide) -> None:
        self.inner = slide
        self.path, self.format = slide.path, slide.format
        self.levels, self.downsamples = slide.levels, slide.downsamples
        self.mpp, self.objective, self.icc = slide.mpp, slide.objective, slide.icc
        self.background, self.expects_background = slide.background, slide.expects_background
        self._faults: dict[tuple[int, Box], None] = {}
        self._listener: Listener | None = None
        self._lock = threading.Lock()

    def listen(self, listener: Listener) -> None:
        """Call ``listener`` with level and box of every block that was or will be filled, once each, one at a time.

        What it raises fails the read that met the block.
        """
        with self._lock:
            self._listener = listener
            for level, block in self._faults:
                listener(level, block)

    def close(self) -> None:
        """See ``Slide.close``."""
        self.inner.close()

    def _fetch(self, level: int, box: Box) -> Pixels:
        try:
            return self.inner.read(level, box)
        except InputError:
            pixels = np.empty((box.height, box.width, 3), np.uint8)
            grid = Grid(self.levels[level], _BLOCK_PX)
            for cell in grid.cells_in(box):
                block = grid.clipped(cell)
                part = block.intersection(box)
                pixels[part.slices(box)] = self._block(level, block)[part.slices(block)]
            return pixels

    def _block(self, level: int, block: Box) -> Pixels:
        if (level, block) not in self._faults:
            try:
                return self.inner.read(level, block)
            except InputError:
                self._note(level, block)
        return np.full((block.height, block.width, 3), self.background, np.uint8)

    def _note(self, level: int, block: Box) -> None:
        with self._lock:
            if (level, block) not in self._faults:
                if self._listener is not None:
                    self._listener(level, block)
                self._faults[level, block] = None


def strict(view: SlideView) -> SlideView:
    """The same view, in which whatever cannot be read is an error."""
    return replace(view, slide=view.slide.inner) if isinstance(view.slide, FillingSlide) else view


def filled_box(view: SlideView, level: int, block: Box) -> Box:
    """Where a filled block of a level shows in the ``out_`` frame; empty for a level that the view does not read."""
    if level != view.level:
        return Box(0, 0, 0, 0)
    read = view.slide.levels[level]
    if view.frame == read:
        return block.shifted(-view.region.x, -view.region.y).clipped(view.size)
    x_scale, y_scale = view.frame.width / read.width, view.frame.height / read.height
    left, top = math.floor(block.x * x_scale), math.floor(block.y * y_scale)
    right, bottom = math.ceil(block.right * x_scale), math.ceil(block.bottom * y_scale)
    reach = math.ceil(_BICUBIC_SUPPORT * max(1.0, x_scale, y_scale))
    box = Box(left, top, right - left, bottom - top).grown(reach)
    return box.shifted(-view.region.x, -view.region.y).clipped(view.size)


# FROM passes.faults: What of a slide could not be read, kept with the unfinished work so that no interruption forgets it.


class Faults:
    """The tiles that show filled pixels, and the patches that were not measured because they could not be read.

    Each is durable before the pixels that it warns of can be. ``store`` has room for ``capacity_for`` keys.
    """

    def __init__(self, store: BlobStore, view: SlideView, *, tiles: Grid, patches: Grid) -> None:
        self._store, self._view, self._tiles, self._patches = store, view, tiles, patches
        self._lock = threading.Lock()
        if isinstance(view.slide, FillingSlide):
            view.slide.listen(self.add_block)

    @staticmethod
    def capacity_for(*, tiles: Grid, patches: Grid) -> int:
        """Keys that the store needs: one for every tile and every patch."""
        return len(tiles) + len(patches)

    def add_block(self, level: int, block: Box) -> None:
        """A block of a level of the slide is filled."""
        self._add([self._tiles.index(tile) for tile in self._tiles.cells_in(filled_box(self._view, level, block))])

    def add_patch(self, patch: Cell) -> None:
        """A patch has no statistics."""
        self._add([len(self._tiles) + self._patches.index(patch)])

    def _add(self, keys: list[int]) -> None:
        with self._lock:
            for key in keys:
                self._store.put(key, b"")
            self._store.commit()

    def summary(self) -> dict[str, object]:
        """Numbers of filled tiles and of unmeasured patches, and (row, col) of up to 100 of the tiles."""
        count = len(self._tiles)
        found = [key for key in range(count) if key in self._store]
        patches = sum(key in self._store for key in range(count, self._store.capacity))
        where = [list(self._tiles.cell(key)) for key in found[:_LISTED]]
        return {"tiles": len(found), "patches": patches, "where": where}
