"""The table of statistics T, shape (rows, cols, 2, ΣC): every norm layer's mean and standard deviation, per patch.

ΣC counts the channels of all norm layers, in the order in which the network runs them; ``[..., 0, :]`` are the means,
``[..., 1, :]`` the standard deviations (Eq. 3-4). The table is kept in a file: only the weights (4 bytes per cell) and
the store's index are in memory for the whole slide.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from threading import RLock
from typing import Generic, Protocol, TypeVar

import numpy as np

from kin_cli.geometry import Cell, Floats
from kin_cli.norm.kernel import Kernel
from kin_cli.store.blobs import BlobStore

Value = TypeVar("Value")
_KEPT_BYTES = 32 << 20  # three rows of cells of a slide 130,000 px wide, at ΣC 5,248


class StatTable:
    """The measured statistics of a slide, shape (rows, cols, 2, ΣC) float32; NaN for cells not measured."""

    def __init__(self, store: BlobStore, *, rows: int, cols: int, channels: int) -> None:
        self._store = store
        self.rows, self.cols, self.channels = rows, cols, channels

    def __contains__(self, cell: Cell) -> bool:
        return cell.row * self.cols + cell.col in self._store

    def write(self, cell: Cell, stats: Floats) -> None:
        """Store the statistics (2, ΣC) of one patch; they are on disk after the store's next commit."""
        if stats.shape != (2, self.channels):
            raise ValueError(f"cell {tuple(cell)}: expected statistics (2, {self.channels}), got {stats.shape}")
        self._store.put(cell.row * self.cols + cell.col, np.ascontiguousarray(stats, "<f4").tobytes())

    def read(self, cell: Cell) -> Floats:
        """The statistics (2, ΣC) of one patch; NaN if it was not measured."""
        if cell not in self:
            return np.full((2, self.channels), np.nan, np.float32)
        payload = self._store.get(cell.row * self.cols + cell.col)
        return np.frombuffer(payload, "<f4").reshape(2, self.channels).astype(np.float32, copy=False)

    def measured(self) -> Iterator[Cell]:
        """The measured cells, row by row."""
        for index in range(self.rows * self.cols):
            if index in self._store:
                yield Cell(*divmod(index, self.cols))


class Statistics(Protocol):
    """Means and scales for pass 2, given per cell of the patch grid."""

    def block(self, rows: range, cols: range) -> Floats:
        """Means and scales of a block of cells: (len(rows), len(cols), 2, ΣC) float32, or (1, 1, 2, ΣC) if uniform."""


class UniformStatistics:
    """One set of statistics for the whole slide, as in TIN: ``stats`` is (2, ΣC) float32, means and scales."""

    def __init__(self, stats: Floats) -> None:
        self._stats = stats

    def block(self, rows: range, cols: range) -> Floats:  # noqa: ARG002
        """See ``Statistics``: (1, 1, 2, ΣC)."""
        return self._stats[None, None]


class SmoothedTable:
    """The table after smoothing with the kernel (Eq. 5-6): (rows, cols, 2, ΣC), means and scales, scale = 1/σ (Eq. 7).

        stats = (smooth(w·T) + prior·mean) / (smooth(w) + prior)

    smooth  convolution with the kernel; the table's edge cells are replicated
    w       weight of a cell, (rows, cols): its tissue fraction, or 1; 0 if it was not measured or is not finite
    mean    Σ w·T / Σ w over the whole table
    prior   weight of ``mean``; 0 in the paper. It matters only if there is next to no tissue within the kernel: a speck
            of dust on background, normalized by its own tiny standard deviation, would be blown up into tissue

    If all weights within the kernel are 0, a cell takes the average of those of its eight neighbours that have a value,
    or else ``mean``. So the result is finite everywhere, and depends only on the position.

    Cells are smoothed once and kept while they are among the last that were asked for, and so is each column of the
    kernel: neighbouring windows share both.

    Memory bound: 32 MiB for cells, 32 MiB for columns, and one block. Thread-safe.
    """

    def __init__(self, table: StatTable, weights: Floats, kernel: Kernel, *, prior: float = 0.0) -> None:
        if weights.shape != (table.rows, table.cols):
            raise ValueError(f"expected weights ({table.rows}, {table.cols}), got {weights.shape}")
        self._table = table
        self._weights = weights
        self._kernel = kernel
        self._prior = prior
        self._mean: Floats | None = None
        self._taps = kernel.taps().astype(np.float32)
        self._lock = RLock()
        kept = max(_KEPT_BYTES // (8 * max(1, table.channels)), 4 * (kernel.size + 2))
        self._smoothed = _Kept[tuple[Floats, np.float32]](9, self._smooth)  # for the neighbours of an empty cell
        self._columns = _Kept[tuple[Floats, np.float32]](kept, self._column)
        self._finished = _Kept[Floats](kept, self._finish)
        if kernel.kind == "global" or prior:
            self._table_mean()  # now, because several threads read it later

    @property
    def channels(self) -> int:
        """ΣC: the channels of all norm layers together."""
        return self._table.channels

    def block(self, rows: range, cols: range) -> Floats:
        """Means and scales of a block of cells, shape (len(rows), len(cols), 2, ΣC).

        The ranges may reach beyond the table: its edge cells are replicated.
        """
        found = np.empty((len(rows), len(cols), 2, self.channels), np.float32)
        with self._lock:
            for i, row in enumerate(_clamped(rows, self._table.rows)):
                for j, col in enumerate(_clamped(cols, self._table.cols)):
                    found[i, j] = self._finished(row, col)
        return found

    def _finish(self, row: int, col: int) -> Floats:
        """Means and scales (2, ΣC) of one cell."""
        smooth: Floats
        if self._kernel.kind == "global":
            smooth = self._table_mean().copy()
        else:
            total, support = self._smoothed(row, col)
            smooth = total.copy() if support > 0 else self._of_neighbours(row, col)
        std = smooth[1]
        # a channel that is 0 everywhere has σ = 0: scale 0 normalizes it to 0, as an epsilon would
        np.divide(1.0, std, out=std, where=std > 0)
        return smooth

    def _smooth(self, row: int, col: int) -> tuple[Floats, np.float32]:
        """Weighted mean (2, ΣC) of the cells within the kernel, and their weight."""
        radius = self._kernel.radius
        columns = [
            self._columns(row, other) for other in _clamped(range(col - radius, col + radius + 1), self._table.cols)
        ]
        total, support = self._weighted_sum(columns)
        if self._prior:
            total += np.float32(self._prior) * self._table_mean()
            support += np.float32(self._prior)
        total /= support if support > 0 else np.float32(1)
        return total, support

    def _column(self, row: int, col: int) -> tuple[Floats, np.float32]:
        """Weighted sum (2, ΣC) of the kernel's rows in one column, and of the weights."""
        radius = self._kernel.radius
        rows = _clamped(range(row - radius, row + radius + 1), self._table.rows)
        return self._weighted_sum([self._raw(other, col) for other in rows])

    def _weighted_sum(self, terms: list[tuple[Floats, np.float32]]) -> tuple[Floats, np.float32]:
        """Σ taps · terms, of the statistics and of the weights."""
        total, weight = terms[0][0] * self._taps[0], terms[0][1] * self._taps[0]
        scratch = np.empty_like(total)
        for tap, (stats, other) in zip(self._taps[1:], terms[1:], strict=True):
            total += np.multiply(stats, tap, out=scratch)
            weight += other * tap
        return total, weight

    def _raw(self, row: int, col: int) -> tuple[Floats, np.float32]:
        """Statistics (2, ΣC) of a cell times its weight, and the weight; both 0 if it has none."""
        weight = np.float32(self._weights[row, col])
        if weight > 0:
            stats = self._table.read(Cell(row, col))
            if np.isfinite(stats).all():
                weighted: Floats = stats * weight
                return weighted, weight
        return np.zeros((2, self.channels), np.float32), np.float32(0)

    def _of_neighbours(self, row: int, col: int) -> Floats:
        """The mean of the neighbours of a cell that have a value, (2, ΣC), or that of the table."""
        rows, cols = (
            _clamped(range(at - 1, at + 2), n) for at, n in ((row, self._table.rows), (col, self._table.cols))
        )
        near = [self._smoothed(down, across) for down in rows for across in cols]
        values = [value for value, support in near if support > 0]
        mean: Floats = np.stack(values).mean(axis=0) if values else self._table_mean().copy()
        return mean

    def _table_mean(self) -> Floats:
        """Weighted mean of all cells, (2, ΣC); mean 0 and standard deviation 1 if nothing was measured."""
        if self._mean is None:
            total, weights = np.zeros((2, self.channels)), 0.0
            for cell in self._table.measured():
                weight, stats = float(self._weights[cell]), self._table.read(cell)
                if weight > 0 and np.isfinite(stats).all():
                    total += weight * stats
                    weights += weight
            neutral = np.stack([np.zeros(self.channels), np.ones(self.channels)])
            self._mean = (total / weights if weights else neutral).astype(np.float32)
        return self._mean


def _clamped(wanted: range, count: int) -> list[int]:
    """The positions ``wanted``, those outside [0, count) replaced by the edge."""
    return [min(max(at, 0), count - 1) for at in wanted]


class _Kept(Generic[Value]):
    """A function of a cell that keeps its last ``most`` results."""

    def __init__(self, most: int, make: Callable[[int, int], Value]) -> None:
        self._most, self._make = most, make
        self._kept: OrderedDict[tuple[int, int], Value] = OrderedDict()

    def __call__(self, row: int, col: int) -> Value:
        key = (row, col)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        made = self._kept[key] = self._make(row, col)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return made
