"""The table of statistics: one cell per patch, holding every norm layer's mean and standard deviation.

A cell is an array (2, C): row 0 the means, row 1 the standard deviations, C the channels of all norm layers in the
order in which the network runs them. Cells live in a file; nothing here grows with the slide but the weights
(4 bytes a cell) and the store's index.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kin_cli.geometry import Cell
from kin_cli.norm.kernel import Kernel
from kin_cli.store.blobs import BlobStore

Floats = NDArray[np.float32]


class StatTable:
    """The measured statistics of a slide, shape (rows, cols, 2, C) float32; an unmeasured cell reads as NaN."""

    def __init__(self, store: BlobStore, *, rows: int, cols: int, channels: int) -> None:
        self._store = store
        self.rows, self.cols, self.channels = rows, cols, channels

    def __contains__(self, cell: Cell) -> bool:
        return cell.row * self.cols + cell.col in self._store

    def write(self, cell: Cell, stats: Floats) -> None:
        """Keep the statistics (2, C) of one patch (Eq. 3-4); they are on disk after the store's next commit."""
        if stats.shape != (2, self.channels):
            raise ValueError(f"cell {tuple(cell)}: expected statistics (2, {self.channels}), got {stats.shape}")
        self._store.put(cell.row * self.cols + cell.col, np.ascontiguousarray(stats, "<f4").tobytes())

    def read(self, cell: Cell) -> Floats:
        """The statistics (2, C) of one patch, NaN where it was not measured."""
        if cell not in self:
            return np.full((2, self.channels), np.nan, np.float32)
        payload = self._store.get(cell.row * self.cols + cell.col)
        return np.frombuffer(payload, "<f4").reshape(2, self.channels).astype(np.float32, copy=False)

    def measured(self) -> Iterator[Cell]:
        """The cells that hold statistics, row by row."""
        for index in range(self.rows * self.cols):
            if index in self._store:
                yield Cell(*divmod(index, self.cols))


class Statistics(Protocol):
    """What pass 2 normalises with: means and scales of the cells of the patch grid."""

    def block(self, rows: range, cols: range) -> Floats:
        """Means and scales of a block of cells: (len(rows), len(cols), 2, ΣC) float32, or (1, 1, 2, ΣC) if uniform."""


class UniformStatistics:
    """The same statistics everywhere: those of TIN's thumbnail. ``stats`` is (2, ΣC) float32, means and scales."""

    def __init__(self, stats: Floats) -> None:
        self._stats = stats

    def block(self, rows: range, cols: range) -> Floats:  # noqa: ARG002
        """See ``Statistics``: (1, 1, 2, ΣC)."""
        return self._stats[None, None]


class SmoothedTable:
    """A table seen through a kernel: (rows, cols, 2, C) of means and *scales*, scale = 1/std after smoothing (Eq. 5-7).

    Each cell enters with its weight (the share of its pixels that are tissue, or 1), and the kernel is renormalised:
    smooth(w·T) / smooth(w), edges replicated. Cells that were not measured or hold a non-finite number weigh nothing.
    A cell without any weight within the kernel's reach takes the mean of its eight neighbours that have some, or else
    the mean of the whole table, so that the read-out is finite everywhere and depends on the place alone.

    ``prior`` adds the table's weighted mean with that weight: (smooth(w·T) + prior·mean) / (smooth(w) + prior). It
    matters only where there is next to no tissue in reach: a speck of dust on glass, normalised by its own tiny spread,
    is blown up into tissue. 0 is the paper.

    Memory bound: (n + 2·radius + 2)² cells of 8·C bytes for n × n cells asked for, three times over.
    """

    def __init__(self, table: StatTable, weights: Floats, kernel: Kernel, *, prior: float = 0.0) -> None:
        if weights.shape != (table.rows, table.cols):
            raise ValueError(f"expected weights ({table.rows}, {table.cols}), got {weights.shape}")
        self._table = table
        self._weights = weights
        self._kernel = kernel
        self._prior = prior
        self._mean: Floats | None = None
        if kernel.kind == "global" or prior:
            self._table_mean()  # now, before several threads ask for it

    @property
    def channels(self) -> int:
        """C: the channels of all norm layers together."""
        return self._table.channels

    def block(self, rows: range, cols: range) -> Floats:
        """Mean and scale of a block of cells, shape (len(rows), len(cols), 2, C).

        The ranges may reach beyond the table, whose edge cells are replicated there.
        """
        inner_rows, row_index = _clamped(rows, self._table.rows)
        inner_cols, col_index = _clamped(cols, self._table.cols)
        if self._kernel.kind == "global":
            smooth = np.broadcast_to(self._table_mean(), (len(inner_rows), len(inner_cols), 2, self.channels)).copy()
        else:
            smooth, supported = self._smooth(inner_rows, inner_cols)
            if not supported.all():
                self._fill(smooth, supported, inner_rows, inner_cols)
        std = smooth[:, :, 1]
        # A channel that is 0 everywhere has no spread to divide by: it normalises to 0, as it does with an epsilon.
        np.divide(1.0, std, out=std, where=std > 0)
        return np.ascontiguousarray(smooth[row_index][:, col_index])

    def _smooth(self, rows: range, cols: range) -> tuple[Floats, NDArray[np.bool_]]:
        """Weighted smoothing of cells inside the table, and which of them have any weight in reach."""
        radius = self._kernel.radius
        raw, weight = self._raw(
            range(rows.start - radius, rows.stop + radius), range(cols.start - radius, cols.stop + radius)
        )
        taps = self._kernel.taps().astype(np.float32)
        raw *= weight[..., None, None]
        total = _convolve(_convolve(raw, taps, 0), taps, 1)
        fraction = _convolve(_convolve(weight, taps, 0), taps, 1)
        if self._prior:
            total += np.float32(self._prior) * self._table_mean()
            fraction += np.float32(self._prior)
        supported = fraction > 0
        total /= np.where(supported, fraction, 1)[..., None, None]
        return total, supported

    def _raw(self, rows: range, cols: range) -> tuple[Floats, Floats]:
        """Cells and weights of a block that may reach beyond the table; cells without weight are 0."""
        inner_rows, row_index = _clamped(rows, self._table.rows)
        inner_cols, col_index = _clamped(cols, self._table.cols)
        cells = np.zeros((len(inner_rows), len(inner_cols), 2, self.channels), np.float32)
        weight = np.zeros(cells.shape[:2], np.float32)
        for i, row in enumerate(inner_rows):
            for j, col in enumerate(inner_cols):
                if self._weights[row, col] > 0:
                    stats = self._table.read(Cell(row, col))
                    if np.isfinite(stats).all():
                        cells[i, j], weight[i, j] = stats, self._weights[row, col]
        return cells[row_index][:, col_index], weight[row_index][:, col_index]

    def _fill(self, smooth: Floats, supported: NDArray[np.bool_], rows: range, cols: range) -> None:
        """Give the unsupported cells of a smoothed block a value."""
        ring_rows, row_index = _clamped(range(rows.start - 1, rows.stop + 1), self._table.rows)
        ring_cols, col_index = _clamped(range(cols.start - 1, cols.stop + 1), self._table.cols)
        values, support = self._smooth(ring_rows, ring_cols)
        values, support = values[row_index][:, col_index], support[row_index][:, col_index]
        for i, j in zip(*np.nonzero(~supported), strict=True):
            near = values[i : i + 3, j : j + 3][support[i : i + 3, j : j + 3]]
            smooth[i, j] = near.mean(axis=0) if len(near) else self._table_mean()

    def _table_mean(self) -> Floats:
        """Weighted mean of all cells, (2, C); mean 0 and std 1 where nothing could be measured."""
        if self._mean is None:
            total, fraction = np.zeros((2, self.channels)), 0.0
            for cell in self._table.measured():
                weight, stats = float(self._weights[cell]), self._table.read(cell)
                if weight > 0 and np.isfinite(stats).all():
                    total += weight * stats
                    fraction += weight
            neutral = np.stack([np.zeros(self.channels), np.ones(self.channels)])
            self._mean = (total / fraction if fraction else neutral).astype(np.float32)
        return self._mean


def _clamped(wanted: range, count: int) -> tuple[range, NDArray[np.intp]]:
    """The indices of ``wanted`` inside [0, count), and for each of ``wanted`` its place there with edges replicated."""
    index = np.clip(np.arange(wanted.start, wanted.stop), 0, count - 1)
    inner = range(int(index[0]), int(index[-1]) + 1)
    return inner, index - inner.start


def _convolve(values: Floats, taps: Floats, axis: int) -> Floats:
    """Symmetric kernel along one axis, only where it fits: the axis gets shorter by len(taps) - 1."""
    length = values.shape[axis] - len(taps) + 1
    index: list[slice] = [slice(None)] * values.ndim
    out: Floats | None = None
    for offset, tap in enumerate(taps):
        index[axis] = slice(offset, offset + length)
        term = values[tuple(index)] * tap
        out = term if out is None else np.add(out, term, out=out)
    assert out is not None
    return out
