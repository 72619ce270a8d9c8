"""The table of statistics T, shape (rows, cols, 2, ΣC): every norm layer's mean and standard deviation, per patch.

ΣC counts the channels of all norm layers, in the order in which the network runs them; ``[..., 0, :]`` are the means,
``[..., 1, :]`` the standard deviations (Eq. 3-4). The table is kept in a file: only the weights (4 bytes per cell) and
the store's index are in memory for the whole slide.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from kin_cli.geometry import Cell, Floats, Indices, Mask
from kin_cli.norm.kernel import Kernel
from kin_cli.store.blobs import BlobStore


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

    Memory bound: 3 · (n + 2·radius + 2)² cells of 8·ΣC bytes for a block of n × n cells.
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
            self._table_mean()  # now, because several threads read it later

    @property
    def channels(self) -> int:
        """ΣC: the channels of all norm layers together."""
        return self._table.channels

    def block(self, rows: range, cols: range) -> Floats:
        """Means and scales of a block of cells, shape (len(rows), len(cols), 2, ΣC).

        The ranges may reach beyond the table: its edge cells are replicated.
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
        # a channel that is 0 everywhere has σ = 0: scale 0 normalizes it to 0, as an epsilon would
        np.divide(1.0, std, out=std, where=std > 0)
        return np.ascontiguousarray(smooth[row_index][:, col_index])

    def _smooth(self, rows: range, cols: range) -> tuple[Floats, Mask]:
        """Weighted means of cells inside the table, and which cells have any weight within the kernel."""
        radius = self._kernel.radius
        raw, weight = self._raw(
            range(rows.start - radius, rows.stop + radius), range(cols.start - radius, cols.stop + radius)
        )
        taps = self._kernel.taps().astype(np.float32)
        raw *= weight[..., None, None]
        total = _convolve(_convolve(raw, taps, 0), taps, 1)
        support = _convolve(_convolve(weight, taps, 0), taps, 1)
        if self._prior:
            total += np.float32(self._prior) * self._table_mean()
            support += np.float32(self._prior)
        supported = support > 0
        total /= np.where(supported, support, 1)[..., None, None]
        return total, supported

    def _raw(self, rows: range, cols: range) -> tuple[Floats, Floats]:
        """Statistics and weights of a block that may reach beyond the table; statistics without weight are 0."""
        inner_rows, row_index = _clamped(rows, self._table.rows)
        inner_cols, col_index = _clamped(cols, self._table.cols)
        block = np.zeros((len(inner_rows), len(inner_cols), 2, self.channels), np.float32)
        weight = np.zeros(block.shape[:2], np.float32)
        for i, row in enumerate(inner_rows):
            for j, col in enumerate(inner_cols):
                if self._weights[row, col] > 0:
                    stats = self._table.read(Cell(row, col))
                    if np.isfinite(stats).all():
                        block[i, j], weight[i, j] = stats, self._weights[row, col]
        return block[row_index][:, col_index], weight[row_index][:, col_index]

    def _fill(self, smooth: Floats, supported: Mask, rows: range, cols: range) -> None:
        """Fill the unsupported cells of a smoothed block from their neighbours, in place."""
        ring_rows, row_index = _clamped(range(rows.start - 1, rows.stop + 1), self._table.rows)
        ring_cols, col_index = _clamped(range(cols.start - 1, cols.stop + 1), self._table.cols)
        values, support = self._smooth(ring_rows, ring_cols)
        values, support = values[row_index][:, col_index], support[row_index][:, col_index]
        for i, j in zip(*np.nonzero(~supported), strict=True):
            near = values[i : i + 3, j : j + 3][support[i : i + 3, j : j + 3]]
            smooth[i, j] = near.mean(axis=0) if len(near) else self._table_mean()

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


def _clamped(wanted: range, count: int) -> tuple[range, Indices]:
    """The part of ``wanted`` inside [0, count), and an index into it that replicates its edges for the rest."""
    index = np.clip(np.arange(wanted.start, wanted.stop), 0, count - 1)
    inner = range(int(index[0]), int(index[-1]) + 1)
    return inner, index - inner.start


def _convolve(values: Floats, taps: Floats, axis: int) -> Floats:
    """Convolve with a symmetric kernel along one axis, without padding: the axis gets shorter by len(taps) - 1."""
    length = values.shape[axis] - len(taps) + 1
    index: list[slice] = [slice(None)] * values.ndim
    out: Floats | None = None
    for offset, tap in enumerate(taps):
        index[axis] = slice(offset, offset + length)
        term = values[tuple(index)] * tap
        out = term if out is None else np.add(out, term, out=out)
    assert out is not None
    return out
