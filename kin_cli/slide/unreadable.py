"""Damaged slides: fill what cannot be read, remember where, and go on (``--on-read-error fill``).

``FillingSlide`` wraps a slide and returns its fill colour for blocks that cannot be read; it calls a listener with each
such block. ``Faults`` is the listener of a translation: it keeps, in a store with the unfinished work, which tiles of
the output show filled pixels and which patches could not be measured, so that an interrupted run does not forget them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from kin_cli.errors import InputError
from kin_cli.geometry import Box, Cell, Grid, Pixels
from kin_cli.slide.base import Slide
from kin_cli.slide.view import SlideView
from kin_cli.store.blobs import BlobStore

_BLOCK_PX = 256
_BICUBIC_SUPPORT = 2
_LISTED = 100  # tiles in the summary
Listener = Callable[[int, Box], None]  # called with the level and the box of a filled block


class FillingSlide(Slide):
    """A slide whose unreadable blocks of 256 px show its fill colour; closes the slide that it wraps.

    If the read of a box fails, each block of a fixed grid that overlaps the box is read on its own, and only the blocks
    that fail are filled. So the result depends neither on the order of reads nor on earlier failures.
    """

    def __init__(self, slide: Slide) -> None:
        self.inner = slide
        self.path, self.format = slide.path, slide.format
        self.levels, self.downsamples = slide.levels, slide.downsamples
        self.mpp, self.objective, self.icc = slide.mpp, slide.objective, slide.icc
        self.fill_colour, self.expects_background = slide.fill_colour, slide.expects_background
        self.notes, self.not_square = slide.notes, slide.not_square
        self.memory_bytes, self.temporary_bytes = slide.memory_bytes, slide.temporary_bytes
        self.bounds_origin, self.bounds_size = slide.bounds_origin, slide.bounds_size
        self.orientation = slide.orientation
        self._faults: dict[tuple[int, Box], None] = {}
        self._listener: Listener | None = None
        self._lock = threading.Lock()

    def listen(self, listener: Listener) -> None:
        """Call ``listener`` once for each block that was or will be filled; calls never overlap.

        An exception of the listener is raised by the read that met the block.
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
        return np.full((block.height, block.width, 3), self.fill_colour, np.uint8)

    def _note(self, level: int, block: Box) -> None:
        with self._lock:
            if (level, block) not in self._faults:
                if self._listener is not None:
                    self._listener(level, block)
                self._faults[level, block] = None


def strict(view: SlideView) -> SlideView:
    """The same view without filling: what cannot be read raises ``InputError``."""
    return replace(view, slide=view.slide.inner) if isinstance(view.slide, FillingSlide) else view


def filled_box(view: SlideView, level: int, block: Box) -> Box:
    """The box of the ``out_`` frame that a filled block influences; empty if the view does not read that level."""
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


class Faults:
    """Tiles that show filled pixels, and patches without statistics because they could not be read. Thread-safe.

    An entry is durable before the pixels that it concerns are returned. ``store`` has room for ``capacity_for`` keys.
    """

    def __init__(self, store: BlobStore, view: SlideView, *, tiles: Grid, patches: Grid) -> None:
        self._store, self._view, self._tiles, self._patches = store, view, tiles, patches
        self._lock = threading.Lock()
        if isinstance(view.slide, FillingSlide):
            view.slide.listen(self.add_block)

    @staticmethod
    def capacity_for(*, tiles: Grid, patches: Grid) -> int:
        """Number of keys that the store needs: one per tile and one per patch."""
        return len(tiles) + len(patches)

    def add_block(self, level: int, block: Box) -> None:
        """Note that a block of a level of the slide is filled."""
        self._add([self._tiles.index(tile) for tile in self._tiles.cells_in(filled_box(self._view, level, block))])

    def add_patch(self, patch: Cell) -> None:
        """Note that a patch has no statistics."""
        self._add([len(self._tiles) + self._patches.index(patch)])

    def has_patch(self, patch: Cell) -> bool:
        """Whether a patch has no statistics."""
        return len(self._tiles) + self._patches.index(patch) in self._store

    def _add(self, keys: list[int]) -> None:
        with self._lock:
            for key in keys:
                self._store.put(key, b"")
            self._store.commit()

    def summary(self) -> dict[str, object]:
        """Number of filled ``tiles`` and of unmeasured ``patches``; ``where``: [row, col] of up to 100 of the tiles."""
        count = len(self._tiles)
        found = [key for key in range(count) if key in self._store]
        patches = sum(key in self._store for key in range(count, self._store.capacity))
        where = [list(self._tiles.cell(key)) for key in found[:_LISTED]]
        return {"tiles": len(found), "patches": patches, "where": where}
