"""Sizes, boxes, cells, grids and array types: frozen values without I/O.

Pixels are addressed as (x, y), cells as (row, col), arrays as (height, width, channels). A box does not say which image
its pixels belong to; the variable does, by its prefix: ``l0_`` is level 0 of the slide, ``read_`` the level that is
read, ``out_`` the image that is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Quoted, because ``kin --help`` must not load numpy. ``Pixels | None`` works in annotations only.
Pixels: TypeAlias = "NDArray[np.uint8]"  # (height, width, 3): an RGB image or a part of one
Mask: TypeAlias = "NDArray[np.bool_]"  # (height, width) of pixels, or (rows, cols) of cells: True where selected
Floats: TypeAlias = "NDArray[np.float32]"  # any shape: statistics (…, 2, C), weights (rows, cols)
Doubles: TypeAlias = "NDArray[np.float64]"  # any shape: metrics, sums and coordinates
Integers: TypeAlias = "NDArray[np.int64]"  # any shape: counts, file offsets, cells along an axis
Indices: TypeAlias = "NDArray[np.intp]"  # any shape: positions in another array
AnyArray: TypeAlias = "NDArray[Any]"  # any shape and dtype


class Cell(NamedTuple):
    """The position of one square in a grid, counted from 0."""

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


def scale_bar(width_px: float, mpp: float | None) -> tuple[float, str] | None:
    """Length in pixels and label of a scale bar for a picture of ``width_px``; None if the pixel size is unknown.

    The longest of 1, 2 and 5 times a power of ten, in µm or mm, that is at most a quarter of the picture.
    """
    if mpp is None:
        return None
    longest = width_px * mpp / 4
    power = 10.0 ** math.floor(math.log10(longest))
    length = next(step * power for step in (5, 2, 1) if step * power <= longest * (1 + 1e-9))
    label = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    return length / mpp, label


@dataclass(frozen=True)
class Box:
    """A rectangle of pixels, [x, x + width) × [y, y + height); it may reach beyond the image and may be empty."""

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
        """Whether the box holds no pixel."""
        return self.width == 0 or self.height == 0

    def grown(self, margin: int) -> Box:
        """The box with ``margin`` pixels added on every side."""
        return Box(self.x - margin, self.y - margin, self.width + 2 * margin, self.height + 2 * margin)

    def shifted(self, dx: int, dy: int) -> Box:
        """The box moved by (dx, dy)."""
        return Box(self.x + dx, self.y + dy, self.width, self.height)

    def clipped(self, size: Size) -> Box:
        """The part of the box inside an image of ``size``; empty if the two do not overlap."""
        return self.intersection(Box(0, 0, size.width, size.height))

    def intersection(self, other: Box) -> Box:
        """The rectangle that both boxes cover; empty if they do not overlap."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        width = max(0, min(self.right, other.right) - x)
        height = max(0, min(self.bottom, other.bottom) - y)
        return Box(x, y, width, height)

    def slices(self, origin: Box | None = None) -> tuple[slice, slice]:
        """Index of the box in an array (height, width, …) that covers ``origin``; None: that covers the whole image."""
        x0, y0 = (origin.x, origin.y) if origin else (0, 0)
        return slice(self.y - y0, self.bottom - y0), slice(self.x - x0, self.right - x0)


@dataclass(frozen=True)
class Grid:
    """An image cut into squares of ``step`` pixels; the last row and column may reach beyond the image."""

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
        """Row-major index of a cell, from 0."""
        return cell.row * self.cols + cell.col

    def cell(self, index: int) -> Cell:
        """The cell with this row-major index."""
        return Cell(*divmod(index, self.cols))

    def box(self, cell: Cell) -> Box:
        """The full square of a cell, which may reach beyond the image."""
        return Box(cell.col * self.step, cell.row * self.step, self.step, self.step)

    def middle(self, cell: Cell, side: int) -> Box:
        """The square of ``side`` pixels in the middle of a cell; ``side`` is at most ``step``."""
        margin = (self.step - side) // 2
        return Box(cell.col * self.step + margin, cell.row * self.step + margin, side, side)

    def clipped(self, cell: Cell) -> Box:
        """The part of a cell inside the image."""
        return self.box(cell).clipped(self.size)

    def cells_in(self, box: Box) -> Iterator[Cell]:
        """The cells of the grid that overlap ``box``, row by row."""
        inside = box.clipped(self.size)
        if inside.empty:
            return
        for row in range(inside.y // self.step, (inside.bottom - 1) // self.step + 1):
            for col in range(inside.x // self.step, (inside.right - 1) // self.step + 1):
                yield Cell(row, col)
