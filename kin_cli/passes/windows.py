"""The plan of pass 2: which windows the network sees, in which blocks of tiles they come, and what is translated.

Four different things: a *patch* carries statistics, a *window* is what the network sees at once, a *halo* of real
pixels surrounds it, a *tile* is what the file stores. Windows come in square blocks that whole windows and whole tiles
both fill, so that a tile never waits for another block and memory never depends on the image's width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kin_cli.geometry import Box, Cell, Grid

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Window:
    """What the network sees at once: ``rows`` × ``cols`` patches from ``first``, and the halo around them."""

    first: Cell
    rows: int
    cols: int
    core: Box
    halo_px: int

    @property
    def read(self) -> Box:
        """The pixels to read, halo included; may reach beyond the image."""
        return self.core.grown(self.halo_px)


@dataclass(frozen=True)
class Block:
    """The windows that fill a square of whole tiles, and those of its tiles that are to be made."""

    box: Box
    windows: tuple[Window, ...]
    tiles: tuple[Cell, ...]


class WindowGrid:
    """Windows of ``window_px`` over a patch grid, restricted to the cells that are translated.

    ``selected`` (rows, cols) says which cells of the patch grid are translated. A tile is *whole* if all its cells
    inside the image are, *mixed* if some are, *empty* if none is. ``tight`` windows end where their selected cells do:
    less work at the edge of tissue, for windows of many shapes.
    """

    def __init__(
        self,
        patches: Grid,
        tiles: Grid,
        selected: Flags,
        *,
        window_px: int,
        block_px: int,
        halo_px: int,
        tight: bool = False,
    ) -> None:
        self.patches, self.tiles, self.selected = patches, tiles, selected
        self._step, self._halo, self._tight = window_px // patches.step, halo_px, tight
        self._blocks = Grid(patches.size, block_px)
        self._some, self._all = np.zeros((2, tiles.rows, tiles.cols), bool)
        for tile in tiles:
            inside = self.cells_of(tiles.clipped(tile))
            self._some[tile], self._all[tile] = selected[inside].any(), selected[inside].all()

    def cells_of(self, box: Box) -> tuple[slice, slice]:
        """Index into ``selected`` of the cells that share a pixel with a box inside the image."""
        step = self.patches.step
        return slice(box.y // step, (box.bottom - 1) // step + 1), slice(box.x // step, (box.right - 1) // step + 1)

    def is_whole(self, tile: Cell) -> bool:
        """Every pixel of the tile is translated."""
        return bool(self._all[tile])

    def is_empty(self, tile: Cell) -> bool:
        """No pixel of the tile is translated."""
        return not self._some[tile]

    @property
    def translated_tiles(self) -> int:
        """Tiles of which at least a part is translated."""
        return int(self._some.sum())

    def selected_pixels(self, box: Box) -> Flags:
        """Which pixels of a box inside the image are translated, shape (height, width)."""
        rows = np.arange(box.y, box.bottom) // self.patches.step
        cols = np.arange(box.x, box.right) // self.patches.step
        return self.selected[np.ix_(rows, cols)]

    @property
    def tiles_by_block_row(self) -> list[int]:
        """Translated tiles in each row of blocks: how its work compares with that of others."""
        tiles = self._blocks.step // self.tiles.step
        return [int(self._some[row * tiles : (row + 1) * tiles].sum()) for row in range(self._blocks.rows)]

    def blocks(self, done: Callable[[Cell], bool], *, rows: range | None = None) -> Iterator[Block]:
        """Blocks that still have tiles to make, row by row; ``done`` tells which tiles are finished."""
        for place in self._blocks:
            if rows is not None and place.row not in rows:
                continue
            box = self._blocks.box(place)
            tiles = tuple(t for t in self.tiles.cells_in(box) if self._some[t] and not done(t))
            if tiles:
                yield Block(box, tuple(self._windows(box, tiles)), tiles)

    def _windows(self, block: Box, tiles: tuple[Cell, ...]) -> Iterator[Window]:
        """The windows of a block that show a translated cell of a tile still to be made."""
        wanted = np.zeros_like(self.selected)
        for tile in tiles:
            wanted[self.cells_of(self.tiles.clipped(tile))] = True
        wanted &= self.selected
        step, patch = self._step, self.patches.step
        for row in range(block.y // patch, min(block.bottom // patch, self.patches.rows), step):
            for col in range(block.x // patch, min(block.right // patch, self.patches.cols), step):
                if wanted[row : row + step, col : col + step].any():
                    yield self._window(slice(row, row + step), slice(col, col + step))

    def _window(self, rows: slice, cols: slice) -> Window:
        """The window over these cells, as far as they are in the grid."""
        inside = self.selected[rows, cols]
        if not self._tight:
            inside = np.ones_like(inside)
        # by what is selected, not by what is still to be made: an interruption must not change a window
        down, across = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        first = Cell(rows.start + int(down[0]), cols.start + int(across[0]))
        height, width = int(down[-1] - down[0]) + 1, int(across[-1] - across[0]) + 1
        patch = self.patches.step
        core = Box(first.col * patch, first.row * patch, width * patch, height * patch)
        return Window(first, height, width, core, self._halo)
