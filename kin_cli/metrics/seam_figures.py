"""From a table of boundaries to the figures of the seam metric: ratio, interval, excess.

No random numbers: the interval is a delete-one-block jackknife, since neighbouring boundaries are alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from kin_cli.metrics.colour import Floats

Interval = tuple[float, float]

_FLOOR = 0.02  # mean reference, ΔE or 8-bit units; below it, 8-bit rounding is all there is
_FEWEST_FOR_INTERVAL = 20
_ENOUGH_BLOCKS = 10
_BLOCK_TILES = (4, 2, 1)


@dataclass(frozen=True, eq=False)
class SeamTable:
    """Every boundary that was measured: two numbers per statistic.

    Attributes:
        horizontal: (n,) bool; False for the boundary left of a tile, True for the one above it.
        cells: (n, 2) int, (row, col) of the tile right of or below the boundary.
        values: (n, 6, 2) float64; at the boundary, and the mean over its reference lines; see ``STATISTICS``.
        source: the same of the source image, None without one.
    """

    horizontal: npt.NDArray[np.bool_]
    cells: npt.NDArray[np.intp]
    values: Floats
    source: Floats | None

    def __len__(self) -> int:
        return len(self.cells)

    def where(self, rows: npt.NDArray[np.bool_]) -> SeamTable:
        """The boundaries that ``rows`` (n,) selects."""
        source = None if self.source is None else self.source[rows]
        return SeamTable(self.horizontal[rows], self.cells[rows], self.values[rows], source)


@dataclass(frozen=True)
class SeamFigure:
    """One statistic over a set of boundaries.

    Attributes:
        ratio: R, sum at the boundaries over sum at the reference lines; 1 is seamless. None where there is nothing to
            compare with (no boundaries, or a mean reference below 0.02).
        source_ratio: R of the source at the same lines, None without a source.
        ratio_to_source: R* = R / R of the source, the headline where there is a source.
        interval: 95 % interval of R*, or of R without a source; None under 20 boundaries.
        p: one-sided probability of such a ratio without seams, None without an interval.
        excess: root of mean² at the boundaries less what the texture explains, in the statistic's unit: the seam alone.
        boundary: mean at the boundaries.
        reference: mean at the reference lines.
        n: number of boundaries.
        blocks: number of blocks that the jackknife deleted in turn.
    """

    ratio: float | None
    source_ratio: float | None
    ratio_to_source: float | None
    interval: Interval | None
    p: float | None
    excess: float | None
    boundary: float | None
    reference: float | None
    n: int
    blocks: int

    @property
    def headline(self) -> float | None:
        """R* where there is a source, R where there is none."""
        return self.ratio if self.source_ratio is None else self.ratio_to_source


def seam_figure(table: SeamTable, statistic: int) -> SeamFigure:
    """The figure of one statistic, by its index in ``STATISTICS``, over all boundaries of ``table``."""
    if not len(table):
        return SeamFigure(None, None, None, None, None, None, None, None, 0, 0)
    blocks = _blocks(table.cells)
    found = int(blocks.max()) + 1
    values = table.values[:, statistic]
    at, beside = (float(mean) for mean in values.mean(axis=0))
    ratio = at / beside if beside >= _FLOOR else None
    pair, source_ratio = [values], None
    if table.source is not None:
        pair.append(table.source[:, statistic])
        source_at, source_beside = (float(mean) for mean in pair[1].mean(axis=0))
        source_ratio = source_at / source_beside if source_beside >= _FLOOR else None
    to_source = ratio / source_ratio if ratio is not None and source_ratio else None
    usable = ratio is not None if table.source is None else to_source is not None
    interval, p = _jackknife(pair, blocks) if usable and len(table) >= _FEWEST_FOR_INTERVAL else (None, None)
    explained = beside * (1.0 if source_ratio is None else source_ratio)
    excess = max(0.0, at**2 - explained**2) ** 0.5
    return SeamFigure(ratio, source_ratio, to_source, interval, p, excess, at, beside, len(table), found)


def local_excess(table: SeamTable, statistic: int) -> Floats:
    """For each boundary (n,), what neither its reference lines nor the source at this place explain, in its unit.

    What the source shows at the boundary counts with the contrast that the translation gives to the slide as a whole.
    """
    at, explained = table.values[:, statistic, 0], table.values[:, statistic, 1]
    if table.source is not None:
        source_reference = table.source[:, statistic, 1].mean() if len(table) else 0.0
        contrast = explained.mean() / source_reference if source_reference >= _FLOOR else 1.0
        explained = np.maximum(explained, contrast * table.source[:, statistic, 0])
    excess: Floats = np.sqrt(np.maximum(0.0, at**2 - explained**2))
    return excess


def _blocks(cells: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """The number of the block of 4×4 tiles that each boundary lies in; smaller blocks if these are under ten."""
    numbers = np.zeros(len(cells), np.intp)
    for tiles in _BLOCK_TILES:
        _, numbers = np.unique(cells // tiles, axis=0, return_inverse=True)
        numbers = numbers.reshape(-1)
        if len(numbers) and numbers.max() + 1 >= _ENOUGH_BLOCKS:
            break
    return numbers


def _jackknife(pair: list[Floats], blocks: npt.NDArray[np.intp]) -> tuple[Interval | None, float | None]:
    """95 % interval and one-sided p of R (one array in ``pair``) or of R* (two: output, source)."""
    number = int(blocks.max()) + 1
    logs, whole = np.zeros(number), 0.0
    for values, sign in zip(pair, (1, -1), strict=False):
        sums = np.stack([np.bincount(blocks, values[:, side], number) for side in (0, 1)])
        left = sums.sum(axis=1, keepdims=True) - sums
        if number < 2 or left.min() <= 0:
            return None, None
        logs += sign * np.log(left[0] / left[1])
        whole += sign * float(np.log(sums[0].sum() / sums[1].sum()))
    error = float(np.sqrt((number - 1) / number * ((logs - logs.mean()) ** 2).sum()))
    half = float(stats.t.ppf(0.975, number - 1)) * error
    interval = (float(np.exp(whole - half)), float(np.exp(whole + half)))
    if error == 0:
        return interval, float(whole <= 0)
    return interval, float(stats.t.sf(whole / error, number - 1))
