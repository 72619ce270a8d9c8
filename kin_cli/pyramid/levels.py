"""The levels of the output: their sizes and tiles, the file formats, and how each level is made from the one below."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np

from kin_cli.concurrency import prefetch
from kin_cli.errors import OutputError, UsageError
from kin_cli.geometry import Cell, Grid, Pixels, Size
from kin_cli.pyramid.codec import Codec, halved
from kin_cli.store.blobs import BlobStore

_TIFF_UNIT = 16  # TIFF requires tile sides that are multiples of 16
_TILE_MIN = 128
_TILE_MAX = 512
_TASK_LEVELS = 3  # a task of a worker is a tile of level 3 with the 8×8 tiles of level 0 below it


@dataclass(frozen=True)
class Blocks:
    """Sides in pixels of the window that the network sees, of the block encoded at once, and of the TIFF tile.

    A block consists of whole windows and of whole tiles, so that every tile comes from a single block.
    """

    window: int
    block: int
    tile: int


def fit_blocks(window: int, size: Size | None = None) -> Blocks:
    """Choose block and tile for windows of ``window`` pixels, a positive multiple of 4 (else ``UsageError``).

    The block is the largest common multiple of window and 16 up to 512, or the least common multiple if that is above
    512. The tile is the largest divisor of the block up to 512 that is a multiple of 16, or, if this is below 128, the
    smallest one from 128 on. For an image of ``size`` with a side of at most 128 px, 256 replaces 512 as the limit of
    the tile: libvips refuses larger tiles there.
    """
    if window < 4 or window % 4:
        raise UsageError(f"a window of {window} pixels is not a positive multiple of 4")
    common = math.lcm(window, _TIFF_UNIT)
    block = common * max(1, _TILE_MAX // common)
    divisors = [side for side in range(_TIFF_UNIT, block + 1, _TIFF_UNIT) if block % side == 0]
    narrow = size is not None and min(size.width, size.height) <= _TILE_MIN
    largest = max((side for side in divisors if side <= (_TILE_MAX // 2 if narrow else _TILE_MAX)), default=_TIFF_UNIT)
    tile = largest if largest >= _TILE_MIN else min(side for side in divisors if side >= _TILE_MIN)
    return Blocks(window, block, tile)


@dataclass(frozen=True)
class PyramidLayout:
    """The levels of an image of ``size``, cut into tiles of ``tile`` pixels (a multiple of 16), and the tile numbers.

    Level 0 is the image. Each further level halves both sides, rounded down but at least 1 pixel (as Aperio, libvips
    and viv assume), until both are below ``min_side``.
    """

    size: Size
    tile: int
    min_side: int = 1024

    def __post_init__(self) -> None:
        if self.tile < _TIFF_UNIT or self.tile % _TIFF_UNIT:
            raise ValueError(f"a TIFF tile must be a positive multiple of {_TIFF_UNIT} pixels, got {self.tile}")
        if self.min_side < 2:
            raise ValueError(f"min_side must be at least 2, got {self.min_side}")

    @cached_property
    def sizes(self) -> tuple[Size, ...]:
        """Size of every level, level 0 first."""
        sizes = [self.size]
        while max(sizes[-1].width, sizes[-1].height) >= self.min_side:
            sizes.append(Size(max(1, sizes[-1].width // 2), max(1, sizes[-1].height // 2)))
        return tuple(sizes)

    @property
    def top(self) -> int:
        """The smallest level, i.e. the number of levels − 1."""
        return len(self.sizes) - 1

    def grid(self, level: int) -> Grid:
        """The tiles of a level."""
        return Grid(self.sizes[level], self.tile)

    @cached_property
    def _first_keys(self) -> tuple[int, ...]:
        return tuple(accumulate((len(self.grid(level)) for level in range(len(self.sizes))), initial=0))

    @property
    def tile_count(self) -> int:
        """Number of tiles of all levels."""
        return self._first_keys[-1]

    @property
    def reduced_count(self) -> int:
        """Number of tiles above level 0, which ``build_levels`` makes."""
        return self.tile_count - self._first_keys[1]

    def key(self, level: int, cell: Cell) -> int:
        """Number of a tile, 0 … ``tile_count`` − 1: level by level, in each row by row."""
        return self._first_keys[level] + self.grid(level).index(cell)

    def keys(self, level: int) -> range:
        """The numbers of all tiles of a level."""
        return range(self._first_keys[level], self._first_keys[level + 1])

    def place(self, key: int) -> tuple[int, Cell]:
        """Level and cell of the tile with number ``key``."""
        level = next(n for n in range(len(self.sizes)) if key < self._first_keys[n + 1])
        return level, self.grid(level).cell(key - self._first_keys[level])

    def children(self, level: int, cell: Cell) -> Iterator[Cell]:
        """The cells of level ``level`` − 1 that lie below a cell, row by row; each cell lies below exactly one cell.

        Usually 2×2. The last row and column may have a third child, for the last pixel row or column that halving cut
        off; it contributes no pixel to the cell.
        """
        upper, lower = self.grid(level), self.grid(level - 1)
        row_stop = lower.rows if cell.row == upper.rows - 1 else 2 * cell.row + 2
        col_stop = lower.cols if cell.col == upper.cols - 1 else 2 * cell.col + 2
        for row in range(2 * cell.row, row_stop):
            for col in range(2 * cell.col, col_stop):
                yield Cell(row, col)


class OutputFormat(Enum):
    """An output format; the values are the file name endings that select it."""

    OME_TIFF = (".ome.tif", ".ome.tiff")
    PLAIN_TIFF = (".tif", ".tiff")
    PNG = (".png",)
    JPEG = (".jpg", ".jpeg")

    @classmethod
    def of(cls, path: Path) -> OutputFormat:
        """The format that a file name selects; ``UsageError`` if it selects none."""
        kind = cls.named_by(path)
        if kind is not None:
            return kind
        known = ", ".join(suffix for kind in cls for suffix in kind.value)
        raise UsageError(f"{path}: cannot tell the format from the name", f"end it in one of {known}")

    @classmethod
    def named_by(cls, path: Path) -> OutputFormat | None:
        """The format that a file name selects, None if it selects none."""
        name = path.name.lower()
        # OME-TIFF first: ".ome.tif" also ends in ".tif"
        return next((kind for kind in cls if name.endswith(kind.value)), None)

    @property
    def pyramidal(self) -> bool:
        """Whether the file holds all levels (``write_pyramid``) or only level 0 (``write_flat``)."""
        return self in (OutputFormat.OME_TIFF, OutputFormat.PLAIN_TIFF)


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
