"""Sizes, boxes, cells and grids: frozen values without I/O.

Pixels are (x, y), cells are (row, col), arrays are (height, width, channels). A box carries no frame: variables do, by
prefix (``l0_``: level 0 of the slide, ``read_``: the level that is read, ``out_``: the image that is written).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple


class Cell(NamedTuple):
    """One entry of a grid."""

    row: int
    col: int


@dataclass(frozen=True)
class Size:
    """Width and height in pixels, both at least 1."""

    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"a size must be at least 1×1, got {self.width}×{self.height}")

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return self.width * self.height

    def __str__(self) -> str:
        return f"{self.width}×{self.height}"


@dataclass(frozen=True)
class Box:
    """A rectangle of pixels, [x, x + width) × [y, y + height); it may lie outside any image and may be empty."""

    x: int
    y: int
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 0 or self.height < 0:
            raise ValueError(f"a box cannot have a negative extent: {self}")

    @property
    def right(self) -> int:
        """First column beyond the box."""
        return self.x + self.width

    @property
    def bottom(self) -> int:
        """First row beyond the box."""
        return self.y + self.height

    @property
    def empty(self) -> bool:
        """True where no pixel lies in the box."""
        return self.width == 0 or self.height == 0

    def grown(self, margin: int) -> Box:
        """The box with ``margin`` pixels added on every side."""
        return Box(self.x - margin, self.y - margin, self.width + 2 * margin, self.height + 2 * margin)

    def shifted(self, dx: int, dy: int) -> Box:
        """The box moved by (dx, dy)."""
        return Box(self.x + dx, self.y + dy, self.width, self.height)

    def clipped(self, size: Size) -> Box:
        """The part of the box inside an image of ``size``; empty if there is none."""
        return self.intersection(Box(0, 0, size.width, size.height))

    def intersection(self, other: Box) -> Box:
        """The pixels in both boxes; empty if there are none."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        width = max(0, min(self.right, other.right) - x)
        height = max(0, min(self.bottom, other.bottom) - y)
        return Box(x, y, width, height)

    def slices(self, origin: Box | None = None) -> tuple[slice, slice]:
        """Index of the box into an array (height, width, …) whose first pixel is the corner of ``origin``."""
        x0, y0 = (origin.x, origin.y) if origin else (0, 0)
        return slice(self.y - y0, self.bottom - y0), slice(self.x - x0, self.right - x0)


@dataclass(frozen=True)
class Grid:
    """An image cut into squares of ``step`` pixels, the last row and column perhaps reaching beyond it."""

    size: Size
    step: int

    def __post_init__(self) -> None:
        if self.step < 1:
            raise ValueError(f"a grid needs a step of at least 1 pixel, got {self.step}")

    @property
    def rows(self) -> int:
        """Number of rows of cells."""
        return math.ceil(self.size.height / self.step)

    @property
    def cols(self) -> int:
        """Number of columns of cells."""
        return math.ceil(self.size.width / self.step)

    def __len__(self) -> int:
        return self.rows * self.cols

    def __iter__(self) -> Iterator[Cell]:
        return (Cell(row, col) for row in range(self.rows) for col in range(self.cols))

    def index(self, cell: Cell) -> int:
        """Row-major number of a cell."""
        return cell.row * self.cols + cell.col

    def cell(self, index: int) -> Cell:
        """The cell of a row-major number."""
        return Cell(*divmod(index, self.cols))

    def box(self, cell: Cell) -> Box:
        """The full square of a cell, which may reach beyond the image."""
        return Box(cell.col * self.step, cell.row * self.step, self.step, self.step)

    def middle(self, cell: Cell, side: int) -> Box:
        """The square of ``side`` pixels, at most ``step``, in the middle of a cell."""
        margin = (self.step - side) // 2
        return Box(cell.col * self.step + margin, cell.row * self.step + margin, side, side)

    def clipped(self, cell: Cell) -> Box:
        """The part of a cell inside the image."""
        return self.box(cell).clipped(self.size)

    def cells_in(self, box: Box) -> Iterator[Cell]:
        """The cells of the grid that share a pixel with ``box``, row by row."""
        inside = box.clipped(self.size)
        if inside.empty:
            return
        for row in range(inside.y // self.step, (inside.bottom - 1) // self.step + 1):
            for col in range(inside.x // self.step, (inside.right - 1) // self.step + 1):
                yield Cell(row, col)
