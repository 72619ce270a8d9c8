"""The geometry of the output: windows, blocks and TIFF tiles, the levels of the pyramid, and the file formats."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from kin_cli.errors import UsageError
from kin_cli.geometry import Cell, Grid, Size

_TIFF_UNIT = 16  # TIFF requires tile sides that are multiples of 16
_TILE_MIN = 128
_TILE_MAX = 512


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
        name = path.name.lower()
        for kind in cls:  # OME-TIFF first: ".ome.tif" also ends in ".tif"
            if name.endswith(kind.value):
                return kind
        known = ", ".join(suffix for kind in cls for suffix in kind.value)
        raise UsageError(f"{path}: cannot tell the format from the name", f"end it in one of {known}")

    @property
    def pyramidal(self) -> bool:
        """Whether the file holds all levels (``write_pyramid``) or only level 0 (``write_flat``)."""
        return self in (OutputFormat.OME_TIFF, OutputFormat.PLAIN_TIFF)
