"""Windows of pass 2: what the network sees at once, the blocks in which the windows come, the tiles to be translated.

    ┌─────────────────────────────┐
    │ halo                        │    patch    carries one set of statistics (512 px)
    │   ╔═══════════╤═══════════╗ │    window   1 × 1 or more patches, which the network sees at once
    │   ║   patch   │   patch   ║ │    halo     real pixels around a window, which the network sees, too; cut off
    │   ║           │           ║ │             afterwards
    │   ╟───────── window ──────╢ │    tile     what the file stores, and the square that metrics measure; its side
    │   ║   patch   │   patch   ║ │             need not be that of a patch or of a window
    │   ║           │           ║ │    block    square of whole windows and of whole tiles
    │   ╚═══════════╧═══════════╝ │
    └─────────────────────────────┘

A block as four windows, and the same block as the nine tiles that are cut from them:

    ╔═════════════╦═════════════╗    ┌────────┬────────┬────────┐
    ║             ║             ║    │  tile  │  tile  │  tile  │
    ║   window    ║   window    ║    ├────────┼────────┼────────┤
    ╠═════════════╬═════════════╣    │  tile  │  tile  │  tile  │
    ║             ║             ║    ├────────┼────────┼────────┤
    ║   window    ║   window    ║    │  tile  │  tile  │  tile  │
    ╚═════════════╩═════════════╝    └────────┴────────┴────────┘

So no tile waits for the windows of another block, and memory does not depend on the width of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kin_cli.geometry import Box, Cell, Floats, Grid, Mask

BLEND_PX = 256  # over which translated background passes into the fill: a step of 4 grey levels is not seen in it


@dataclass(frozen=True)
class Window:
    """``rows`` × ``cols`` patches from ``first``: the box ``core``, with a halo of ``halo_px`` on all sides."""

    first: Cell
    rows: int
    cols: int
    core: Box
    halo_px: int

    @property
    def read(self) -> Box:
        """The pixels to read: core and halo. The box may reach beyond the image."""
        return self.core.grown(self.halo_px)


@dataclass(frozen=True)
class Block:
    """A square of whole windows and of whole tiles: the windows to run, and the tiles to make of them."""

    box: Box
    windows: tuple[Window, ...]
    tiles: tuple[Cell, ...]


class WindowGrid:
    """All windows of an image, over the patches that are translated.

    ``selected`` (rows, cols) marks the cells of the patch grid that are translated. A tile is *whole* if all cells
    inside the image that come nearer to it than ``blend_px`` are, *empty* if none of its own is, *partial* otherwise.
    ``shape``: "clipped" windows end with the grid; "tight" ones are cropped to their selected cells: less work at the
    edge of tissue, but windows of many shapes; "whole" ones reach beyond the grid, so that all have one shape.
    """

    def __init__(
        self,
        patches: Grid,
        tiles: Grid,
        selected: Mask,
        *,
        window_px: int,
        block_px: int,
        halo_px: int,
        blend_px: int = 0,
        shape: Literal["clipped", "tight", "whole"] = "clipped",
    ) -> None:
        self.patches, self.tiles, self.selected, self.blend_px = patches, tiles, selected, blend_px
        self._step, self._halo, self._shape = window_px // patches.step, halo_px, shape
        self._blocks = Grid(patches.size, block_px)
        self._some, self._all = np.zeros((2, tiles.rows, tiles.cols), bool)
        for tile in tiles:
            box = tiles.clipped(tile)
            around = self.cells_of(box.grown(blend_px).clipped(patches.size))
            self._some[tile], self._all[tile] = selected[self.cells_of(box)].any(), selected[around].all()

    def cells_of(self, box: Box) -> tuple[slice, slice]:
        """Index into ``selected`` of the cells that overlap a box inside the image."""
        step = self.patches.step
        return slice(box.y // step, (box.bottom - 1) // step + 1), slice(box.x // step, (box.right - 1) // step + 1)

    def is_whole(self, tile: Cell) -> bool:
        """Whether all pixels of the tile, and around it, are translated, so that nothing of it is filled or blended."""
        return bool(self._all[tile])

    def is_empty(self, tile: Cell) -> bool:
        """Whether no pixel of the tile is translated."""
        return not self._some[tile]

    @property
    def translated_tiles(self) -> int:
        """Number of whole and partial tiles."""
        return int(self._some.sum())

    @property
    def partial_tiles(self) -> int:
        """Number of partial tiles."""
        return int((self._some & ~self._all).sum())

    def selected_pixels(self, box: Box) -> Mask:
        """The translated pixels of a box inside the image, shape (height, width)."""
        rows = np.arange(box.y, box.bottom) // self.patches.step
        cols = np.arange(box.x, box.right) // self.patches.step
        return self.selected[np.ix_(rows, cols)]

    def share_of_translation(self, box: Box) -> Floats:
        """How much of a translated pixel is kept in a blend, 0 to 1, float32 (height, width), for a box of the image.

        It rises from 0 at the nearest patch that is not translated to 1 ``blend_px`` pixels away, if that is not 0.
        """
        around = self.cells_of(box.grown(self.blend_px).clipped(self.patches.size))
        squares = np.full((box.height, box.width), self.blend_px**2, np.float32)
        rows, cols = np.arange(box.y, box.bottom) + 0.5, np.arange(box.x, box.right) + 0.5
        for row, col in np.argwhere(~self.selected[around]):
            patch = self.patches.box(Cell(int(row) + around[0].start, int(col) + around[1].start))
            down = np.maximum(0, np.maximum(patch.y - rows, rows - patch.bottom))
            across = np.maximum(0, np.maximum(patch.x - cols, cols - patch.right))
            np.minimum(squares, (down**2)[:, None] + (across**2)[None], out=squares, casting="same_kind")
        share: Floats = np.sqrt(squares) / np.float32(self.blend_px)
        return share

    @property
    def tiles_by_block_row(self) -> list[int]:
        """Number of translated tiles in each row of blocks, to divide the work into equal parts."""
        tiles = self._blocks.step // self.tiles.step
        return [int(self._some[row * tiles : (row + 1) * tiles].sum()) for row in range(self._blocks.rows)]

    def blocks(self, done: Callable[[Cell], bool], *, rows: range | None = None) -> Iterator[Block]:
        """Blocks with tiles still to make, row by row; ``done(tile)`` says whether a tile is finished."""
        for place in self._blocks:
            if rows is not None and place.row not in rows:
                continue
            box = self._blocks.box(place)
            tiles = tuple(t for t in self.tiles.cells_in(box) if self._some[t] and not done(t))
            if tiles:
                yield Block(box, tuple(self._windows(box, tiles)), tiles)

    def _windows(self, block: Box, tiles: tuple[Cell, ...]) -> Iterator[Window]:
        """The windows of a block that hold a translated cell of a tile still to be made."""
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
        """The window over these cells."""
        inside = self.selected[rows, cols]
        if self._shape == "whole":
            sides = min(self._step, self.patches.rows), min(self._step, self.patches.cols)
            inside = np.ones(sides, bool)
        elif self._shape == "clipped":
            inside = np.ones_like(inside)
        # not by what is still to be made: an interruption must not change a window
        down, across = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        first = Cell(rows.start + int(down[0]), cols.start + int(across[0]))
        height, width = int(down[-1] - down[0]) + 1, int(across[-1] - across[0]) + 1
        patch = self.patches.step
        core = Box(first.col * patch, first.row * patch, width * patch, height * patch)
        return Window(first, height, width, core, self._halo)
