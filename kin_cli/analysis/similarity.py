"""Cosine similarity of the patches' statistics, by the distance between them and against one that stands for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kin_cli.models.blocks import LayerBlock

Floats = npt.NDArray[np.float64]
Stats = npt.NDArray[np.float32]

STATISTICS = ("mean", "std")
"""The rows of a cell of the table, in its order."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Those that describe a distribution of similarities."""


def cosine(one: Stats, others: Stats, *, blocks: Sequence[LayerBlock]) -> Floats:
    """Cosine similarity of the statistics of one patch (2, C) with those of others (n, 2, C): (n, 2, blocks).

    For each layer block on its own, all its channels as one vector, as in the paper's Figures S1 and S2; NaN where a
    vector is zero.
    """
    found = np.empty((len(others), 2, len(blocks)))
    for number, block in enumerate(blocks):
        a, b = (stats[..., block.channels].astype(np.float64) for stats in (one, others))
        norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            found[..., number] = (b * a).sum(axis=-1) / norms
    return found


@dataclass(frozen=True, eq=False)
class DistanceCurve:
    """Similarity by distance, for each of the distances (patches) that occur: arrays (2, blocks, distances).

    Attributes:
        distance: (distances,) mean of the pairs' distances in patches.
        mean: of their similarities.
        deviation: their standard deviation (biased).
        pairs: their number.
    """

    distance: Floats
    mean: Floats
    deviation: Floats
    pairs: npt.NDArray[np.int64]


class SimilarityByDistance:
    """Gathers pairs of patches in classes of distance one patch wide, around 1, 2, … ``reach`` patches.

    Memory bound: five numbers for each class, block and statistic.
    """

    def __init__(self, blocks: Sequence[LayerBlock], *, reach: int) -> None:
        self._blocks, self.reach = blocks, reach
        self._sums = np.zeros((3, reach + 1, 2, len(blocks)))  # number, sum and sum of squares of the similarities
        self._distances = np.zeros((2, reach + 1))

    def add(self, one: Stats, others: Stats, *, distances: Floats) -> None:
        """Take in the pairs of a patch (2, C) with others (n, 2, C) that lie ``distances`` (n,) patches away."""
        near = np.rint(distances).astype(np.intp)
        wanted = (near >= 1) & (near <= self.reach)
        near, similarity = near[wanted], cosine(one, others[wanted], blocks=self._blocks)
        finite = np.isfinite(similarity)
        values = np.where(finite, similarity, 0.0)
        for total, part in zip(self._sums, (finite, values, values**2), strict=True):
            np.add.at(total, near, part)
        np.add.at(self._distances[0], near, 1)
        np.add.at(self._distances[1], near, distances[wanted])

    def curve(self) -> DistanceCurve:
        """The curve over all classes that hold a pair; NaN where all of them are of zero vectors."""
        found = self._distances[0] > 0
        count, total, squares = (part[found].transpose(1, 2, 0) for part in self._sums)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = total / count
            deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
        distance = self._distances[1, found] / self._distances[0, found]
        return DistanceCurve(distance, mean, deviation, count.astype(np.int64))


def quantiles(similarity: Floats) -> Floats:
    """``QUANTILES`` of similarities (n, 2, blocks) over the patches, (quantiles, 2, blocks); NaN are left out."""
    found = np.full((len(QUANTILES), *similarity.shape[1:]), np.nan)
    for row, block in np.ndindex(*similarity.shape[1:]):
        values = similarity[:, row, block]
        values = values[np.isfinite(values)]
        if len(values):
            found[:, row, block] = np.quantile(values, QUANTILES)
    return found


def outside(one: Stats, patches: Stats, *, blocks: Sequence[LayerBlock]) -> Floats:
    """Share of the channels in which ``one`` (2, C) lies beyond what 90 % of the patches (n, 2, C) have: (2, blocks).

    One of the patches would be there in a tenth of its channels.
    """
    low, high = np.quantile(patches, (0.05, 0.95), axis=0)
    beyond = (one < low) | (one > high)
    return np.stack([beyond[:, block.channels].mean(axis=1) for block in blocks], axis=1)


def deviation_ratio(one: Stats, patches: Stats, *, blocks: Sequence[LayerBlock]) -> Floats:
    """Median over the channels of ``one``'s standard deviation over the patches' median: (blocks,)."""
    usual = np.median(patches[:, 1], axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(usual > 0, one[1] / usual, np.nan)
    return np.array([np.nanmedian(ratio[block.channels]) for block in blocks])
