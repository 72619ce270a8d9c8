"""How the image written is cut up: windows into blocks into TIFF tiles, and the levels of the pyramid."""

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

_TIFF_UNIT = 16  # TIFF wants tile sides in multiples of 16
_TILE_MIN = 128
_TILE_MAX = 512


# FROM pyramid.layout: How the image written is cut up: windows into blocks into TIFF tiles, and the levels of the pyramid.


@dataclass(frozen=True)
class Blocks:
    """Sides in pixels of the window that the network sees, of the block that is encoded at once, and of the TIFF tile.

    A block is a whole number of windows and a whole number of tiles, so no tile waits for two blocks.
    """

    window: int
    block: int
    tile: int


def fit_blocks(window: int, size: Size | None = None) -> Blocks:
    """Block and tile for windows of ``window`` pixels, a positive multiple of 4 (else ``UsageError``).

    On an image of ``size`` narrower than 129 px tiles are at most 256 px wide: libvips refuses larger ones there.

    The block is the smallest common multiple of window and 16, or the largest up to 512 if that is larger. The tile is
    its largest divisor up to 512 that is a multiple of 16; where none reaches 128, the smallest from 128 on.
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
    """The levels of an image of ``size``, each in tiles of ``tile`` pixels (a multiple of 16), all tiles numbered.

    Level 0 is the image; each further level halves both sides, rounding down but never below 1 pixel (what Aperio,
    libvips and viv assume), until both are below ``min_side``.
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
        """Size of every level, the full image first."""
        sizes = [self.size]
        while max(sizes[-1].width, sizes[-1].height) >= self.min_side:
            sizes.append(Size(max(1, sizes[-1].width // 2), max(1, sizes[-1].height // 2)))
        return tuple(sizes)

    @property
    def top(self) -> int:
        """Number of the smallest level."""
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
        """Number of tiles of all levels but level 0: those that ``build_levels`` makes."""
        return self.tile_count - self._first_keys[1]

    def key(self, level: int, cell: Cell) -> int:
        """Number of a tile in 0 … ``tile_count`` − 1: level by level, each row by row."""
        return self._first_keys[level] + self.grid(level).index(cell)

    def keys(self, level: int) -> range:
        """The numbers of all tiles of a level."""
        return range(self._first_keys[level], self._first_keys[level + 1])

    def place(self, key: int) -> tuple[int, Cell]:
        """Level and cell of a tile's number."""
        level = next(n for n in range(len(self.sizes)) if key < self._first_keys[n + 1])
        return level, self.grid(level).cell(key - self._first_keys[level])

    def children(self, level: int, cell: Cell) -> Iterator[Cell]:
        """The cells of ``level − 1`` below a cell, row by row: every cell is below exactly one of the level above.

        Mostly 2×2. In the last row and column there may be a third, of a pixel or less that rounding down has cut off:
        it gives the cell above no pixel.
        """
        upper, lower = self.grid(level), self.grid(level - 1)
        row_stop = lower.rows if cell.row == upper.rows - 1 else 2 * cell.row + 2
        col_stop = lower.cols if cell.col == upper.cols - 1 else 2 * cell.col + 2
        for row in range(2 * cell.row, row_stop):
            for col in range(2 * cell.col, col_stop):
                yield Cell(row, col)


# FROM pyramid.formats: The kinds of output, told by the name of the file.


class OutputFormat(Enum):
    """A kind of output and the endings of names that ask for it."""

    OME_TIFF = (".ome.tif", ".ome.tiff")
    PLAIN_TIFF = (".tif", ".tiff")
    PNG = (".png",)
    JPEG = (".jpg", ".jpeg")

    @classmethod
    def of(cls, path: Path) -> OutputFormat:
        """The kind that a name asks for; ``UsageError`` if none."""
        name = path.name.lower()
        for kind in cls:  # the OME endings first: the plain ones are their ends
            if name.endswith(kind.value):
                return kind
        known = ", ".join(suffix for kind in cls for suffix in kind.value)
        raise UsageError(f"{path}: cannot tell the format from the name", f"end it in one of {known}")

    @property
    def pyramidal(self) -> bool:
        """Whether the file holds all levels (``write_pyramid``) or the image alone (``write_flat``)."""
        return self in (OutputFormat.OME_TIFF, OutputFormat.PLAIN_TIFF)
