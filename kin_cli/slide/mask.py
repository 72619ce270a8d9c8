"""Which part of a view is tissue: a coarse mask, its share of cells, and where there is surely glass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from kin_cli.geometry import Box, Cell, Grid, Size
from kin_cli.slide.area import sums_between

Mask = npt.NDArray[np.bool_]

_GLASS_MARGIN_PX = 8


@dataclass(frozen=True, eq=False)
class TissueMask:
    """A mask (h, w), True for tissue, stretched over the whole ``out_`` frame, whose size is ``size``."""

    mask: Mask
    size: Size

    @property
    def tissue_fraction(self) -> float:
        """Share of the frame that is tissue, 0 to 1."""
        return float(self.mask.mean())

    def share(self, grid: Grid, *, side: int | None = None) -> npt.NDArray[np.float32]:
        """Tissue in each cell of ``grid`` as a share of the full cell (step²), float32 (rows, cols).

        Parts of mask pixels count by their area, and what reaches beyond the frame counts as no tissue: the cells'
        shares times step² sum up to the tissue of the frame. With ``side`` likewise of the square of so many pixels in
        the middle of each cell.
        """
        height, width = self.mask.shape
        side = side or grid.step
        rows = np.minimum(_edges(grid, grid.rows, side), self.size.height) * (height / self.size.height)
        cols = np.minimum(_edges(grid, grid.cols, side), self.size.width) * (width / self.size.width)
        area = side**2 * (height / self.size.height) * (width / self.size.width)
        tissue = sums_between(self.mask, rows, cols)
        if side < grid.step:
            tissue = tissue[::2, ::2]  # every other interval lies between two squares
        shares: npt.NDArray[np.float32] = (tissue / np.float32(area)).clip(0, 1)
        return shares

    def glass(self, box: Box) -> Mask:
        """Where the pixels of ``box``, inside the frame, are surely glass: bool (h, w).

        Such pixels are at least one mask pixel and at least 8 ``out_`` pixels away from all tissue.
        """
        if box.clipped(self.size) != box:
            raise ValueError(f"{box} reaches beyond the frame, {self.size}")
        height, width = self.mask.shape
        rows = _places(box.y, box.bottom, height / self.size.height)
        cols = _places(box.x, box.right, width / self.size.width)
        return ~self._near_tissue[np.ix_(rows, cols)]

    @cached_property
    def _near_tissue(self) -> Mask:
        scales = (self.mask.shape[0] / self.size.height, self.mask.shape[1] / self.size.width)
        # half an out_ pixel more, since a pixel is looked up by its centre
        reach = [2 * max(1, math.ceil((_GLASS_MARGIN_PX + 0.5) * scale)) + 1 for scale in scales]
        grown: Mask = ndimage.maximum_filter(self.mask, size=reach, mode="constant", cval=0)
        return grown


def all_tissue(size: Size) -> TissueMask:
    """A mask that calls everything tissue."""
    return TissueMask(np.ones((1, 1), np.bool_), size)


def _edges(grid: Grid, count: int, side: int) -> npt.NDArray[np.intp]:
    """Where squares of ``side`` in the middle of ``count`` cells in a row begin and end, each place once."""
    if side == grid.step:
        return np.arange(count + 1) * grid.step
    begin = np.arange(count) * grid.step + grid.middle(Cell(0, 0), side).x
    return np.stack([begin, begin + side], axis=1).ravel()


def _places(start: int, stop: int, scale: float) -> npt.NDArray[np.intp]:
    """The mask pixels under the centres of ``out_`` pixels."""
    return ((np.arange(start, stop) + 0.5) * scale).astype(np.intp)
