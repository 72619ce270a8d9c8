"""Building the levels above level 0 from its encoded tiles."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from kin_cli.concurrency import prefetch
from kin_cli.errors import OutputError
from kin_cli.geometry import Cell, Pixels
from kin_cli.pyramid.codec import Codec, halved
from kin_cli.pyramid.layout import PyramidLayout
from kin_cli.store.blobs import BlobStore

_TASK_LEVELS = 3  # a task of a worker is a tile of level 3 with the 8×8 tiles of level 0 below it


def build_levels(
    store: BlobStore,
    layout: PyramidLayout,
    *,
    codec: Codec,
    workers: int,
    advance: Callable[[int], None] | None = None,
) -> None:
    """Make every tile above level 0 that ``store`` lacks, and put it there under ``layout.key``.

    Level 1 is decoded from level 0 at half scale. Each further level consists of the 2×2 means of the level below
    before its encoding, so that encoding losses do not add up. The bytes depend on level 0 only, not on ``workers`` or
    interruptions. ``advance`` is called with the number of tiles done since the last call, existing ones included
    (``layout.reduced_count`` in total); calls come from the worker threads but never overlap.

    Memory bound, whatever the size of the image: each worker walks one subtree depth-first and holds at most 5 tiles of
    pixels; the calling thread holds one tile per level and a quarter of a tile for each of 2 × ``workers`` finished
    subtrees.

    Raises ``OutputError`` if a tile of level 0 is missing or damaged, or the store cannot be written; the first failure
    stops all threads.
    """
    absent = next(store.missing(layout.keys(0)), None)
    if absent is not None:
        raise OutputError(f"tile {tuple(layout.place(absent)[1])} (row, col) of level 0 is missing", "run it again")
    if layout.top == 0:
        return
    builder = _Builder(store, layout, codec, advance)
    split = min(_TASK_LEVELS, layout.top)
    roots = list(layout.grid(layout.top))
    needs = (need for root in roots for need in builder.needs_at(split, layout.top, root, False))

    def subtree(need: tuple[Cell, bool]) -> Pixels | None:
        return builder.quarter(split, *need, builder.base)

    with closing(prefetch(subtree, needs, workers=workers, ahead=2 * workers - 1)) as finished:
        for root in roots:
            # walks in the same order as needs_at, so the next finished subtree is always the one needed
            builder.quarter(layout.top, root, False, _Below(split, lambda *_: next(finished)))
    store.commit()


def pad_tile(pixels: Pixels, tile: int) -> Pixels:
    """Pad ``pixels`` (H, W, 3), at most ``tile`` per side, to (tile, tile, 3) by repeating the edge pixels."""
    height, width = pixels.shape[:2]
    if (height, width) == (tile, tile):
        return pixels
    return np.pad(pixels, ((0, tile - height), (0, tile - width), (0, 0)), mode="edge")


@dataclass(frozen=True)
class _Below:
    """Where a walk over tiles ends: at ``level``, whose cells ``quarter`` returns at half scale (None: unwanted)."""

    level: int
    quarter: Callable[[Cell, bool], Pixels | None]


class _Builder:
    """A depth-first walk over the quadtree of tiles.

    The pixels of a tile are computed only if the tile itself or one above it is missing in the store.
    """

    def __init__(
        self, store: BlobStore, layout: PyramidLayout, codec: Codec, advance: Callable[[int], None] | None
    ) -> None:
        self._store, self._layout, self._codec, self._advance = store, layout, codec, advance
        self._lock = threading.Lock()
        self.base = _Below(0, self._decoded)

    def needs_at(self, split: int, level: int, cell: Cell, wanted: bool) -> Iterator[tuple[Cell, bool]]:
        """The cells of level ``split`` below ``cell``, in the order of the walk, each with whether it is wanted."""
        if level == split:
            yield cell, wanted
            return
        needed = wanted or self._layout.key(level, cell) not in self._store
        for child in self._layout.children(level, cell):
            yield from self.needs_at(split, level - 1, child, needed and _gives_pixels(cell, child))

    def quarter(self, level: int, cell: Cell, wanted: bool, below: _Below) -> Pixels | None:
        """Make the missing tiles from ``cell`` downwards; return the cell at half scale if ``wanted``, else None."""
        if level == below.level:
            return below.quarter(cell, wanted)
        layout, key = self._layout, self._layout.key(level, cell)
        needed = wanted or key not in self._store
        half = layout.tile // 2
        mosaic = np.zeros((layout.tile, layout.tile, 3), np.uint8) if needed else None
        for child in layout.children(level, cell):
            pixels = self.quarter(level - 1, child, needed and _gives_pixels(cell, child), below)
            if pixels is not None and mosaic is not None:
                y, x = (child.row - 2 * cell.row) * half, (child.col - 2 * cell.col) * half
                mosaic[y : y + half, x : x + half] = pixels
        result = None
        if mosaic is not None:
            inside = layout.grid(level).clipped(cell)
            tile = pad_tile(mosaic[: inside.height, : inside.width], layout.tile)
            if key not in self._store:
                self._store.put(key, self._codec.encode(tile))
            result = halved(tile) if wanted else None
        self._report()
        return result

    def _decoded(self, cell: Cell, wanted: bool) -> Pixels | None:
        if not wanted:
            return None
        return self._codec.decode_half(self._store.get(self._layout.key(0, cell)), self._layout.tile)

    def _report(self) -> None:
        if self._advance is not None:
            with self._lock:
                self._advance(1)


def _gives_pixels(cell: Cell, child: Cell) -> bool:
    """Whether a child is one of the 2×2 that contribute pixels, see ``PyramidLayout.children``."""
    return child.row - 2 * cell.row < 2 and child.col - 2 * cell.col < 2
