"""Cosine similarity of the statistics of patches: by their distance, and to statistics that replace a patch's own.

These are the quantities of the paper's Figures S1 and S2, for any slide and generator.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kin_cli import __version__
from kin_cli.errors import InputError
from kin_cli.geometry import Cell, Doubles, Floats, Grid, Mask
from kin_cli.job import kept_table
from kin_cli.models.architectures import LayerBlock, layer_blocks
from kin_cli.norm.kernel import Kernel
from kin_cli.norm.table import SmoothedTable, StatTable
from kin_cli.passes.engine import Execution
from kin_cli.passes.measure import batched, measure_slide, thumbnail_statistics
from kin_cli.plan import Plan, make_plan
from kin_cli.progress import Progress
from kin_cli.settings import Settings

STATISTICS = ("mean", "std")
"""Rows of the statistics (2, C) of a patch."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Quantiles that describe a distribution of similarities."""
_LEAST_TISSUE = 0.5  # tissue fraction of a patch; background would dominate the differences
_PAIRS_AT_ONCE = 256


@dataclass(frozen=True)
class AnalysisSettings:
    """Settings of an analysis.

    Attributes:
        base: how the patches are measured; its kernel defines the neighbourhood.
        table: file of the table of statistics, which is reused if it exists.
        patches: number of patches to draw from those that are at least half tissue.
        seed: random seed for drawing them.
        reach_px: they are compared with all others up to this distance, in pixels.
    """

    base: Settings
    table: Path
    patches: int = 500
    seed: int = 0
    reach_px: int = 5000


@dataclass(frozen=True, eq=False)
class DistanceCurve:
    """Similarity of pairs of patches by distance class; only classes that hold a pair.

    Attributes:
        distance: (distances,) mean distance of the pairs, in patches.
        mean: (2, blocks, distances) mean of their similarities.
        deviation: (2, blocks, distances) standard deviation (biased) of their similarities.
        pairs: (2, blocks, distances) number of pairs.
    """

    distance: Doubles
    mean: Doubles
    deviation: Doubles
    pairs: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Replacement:
    """Similarity of the patches to statistics that a method uses instead of their own.

    Attributes:
        name: which statistics: "thumbnail" (TIN), "all patches" (kernel global), or "neighbourhood …" (KIN).
        quantiles: (quantiles, 2, blocks) of the cosine similarity.
        outside: (2, blocks), see ``outside``; for the thumbnail only.
        deviation_ratio: (blocks,), see ``deviation_ratio``; for the thumbnail only.
    """

    name: str
    quantiles: Doubles
    outside: Doubles | None = None
    deviation_ratio: Doubles | None = None


@dataclass(frozen=True, eq=False)
class Analysis:
    """Result of an analysis.

    ``patches`` is the number of patches that are at least half tissue, ``drawn`` how many of them were drawn.
    """

    settings: AnalysisSettings
    blocks: list[LayerBlock]
    curve: DistanceCurve
    replacements: list[Replacement]
    patches: int
    drawn: int
    mpp: float | None
    seconds: float

    @property
    def patch_px(self) -> int:
        """Side of a patch in pixels."""
        return self.settings.base.norm.patch_px

    def rows(self) -> list[list[object]]:
        """Return a heading and one row per similarity: statistic, block, what it compares with, and the values."""
        head = ["statistic", "block", "with", "distance_patches", "distance_um", "pairs", "mean", "deviation"]
        rows: list[list[object]] = [[*head, *(f"q{100 * q:02.0f}" for q in QUANTILES)]]
        for s, statistic in enumerate(STATISTICS):
            for b, block in enumerate(self.blocks):
                for d, distance in enumerate(self.curve.distance.tolist()):
                    um = None if self.mpp is None else distance * self.patch_px * self.mpp
                    found = (self.curve.pairs, self.curve.mean, self.curve.deviation)
                    pair = [_number(values[s, b, d]) for values in found]
                    rows.append([statistic, block.name, "patches", distance, um, *pair, *[None] * len(QUANTILES)])
                for replacement in self.replacements:
                    values = [_number(value) for value in replacement.quantiles[:, s, b]]
                    rows.append([statistic, block.name, replacement.name, None, None, self.drawn, None, None, *values])
        return rows

    def as_dict(self) -> dict[str, Any]:
        """Return the record, ready for JSON."""
        base, (head, *rows) = self.settings.base, self.rows()
        thumbnail = self.replacements[0]
        return {
            "kin": __version__,
            "slide": str(base.source.slide),
            "model": str(base.model),
            "patch_px": self.patch_px,
            "mpp": self.mpp,
            "patches": self.patches,
            "drawn": self.drawn,
            "seed": self.settings.seed,
            "blocks": [{**asdict(block), "channels": _extent(block)} for block in self.blocks],
            "similarity": [dict(zip(map(str, head), row, strict=True)) for row in rows],
            "thumbnail": {
                "outside_90_percent": _by_block(self.blocks, thumbnail.outside),
                "deviation_over_usual": _by_block(self.blocks, thumbnail.deviation_ratio),
            },
            "seconds": self.seconds,
        }


def analyse(settings: AnalysisSettings, progress: Progress) -> Analysis:
    """Measure the patches of a slide, or read an existing table, and compare their statistics.

    Memory bound: that of pass 1, and the statistics of the patches drawn and of 256 more.

    Raises:
        InputError: fewer than two patches are at least half tissue.
    """
    start = time.monotonic()
    plan = make_plan(settings.base)
    with plan.view.slide, plan.identity, kept_table(plan, settings.table, note=progress.note) as store:
        engines = plan.engines()
        table = StatTable(store, rows=plan.grid.rows, cols=plan.grid.cols, channels=engines.channels)
        measured = measure_slide(
            plan.view,
            plan.grid,
            plan.measured_cells,
            table,
            side_px=plan.settings.norm.measured_px,
            execution=Execution(engines, plan.batch, plan.workers, progress),
        )
        if measured:
            store.commit()
        patches = _Patches(plan, table, settings)
        blocks = layer_blocks(engines.first.layers)
        curve = patches.by_distance(blocks, progress)
        thumbnail = thumbnail_statistics(plan.view, None, engine=engines.first, patch_px=settings.base.norm.patch_px)
        replacements = patches.replacements(_with_deviations(thumbnail), blocks)
    seconds = round(time.monotonic() - start, 1)
    found, drawn = int(patches.wanted.sum()), len(patches.drawn)
    return Analysis(settings, blocks, curve, replacements, found, drawn, plan.view.mpp, seconds)


def cosine(one: Floats, others: Floats, *, blocks: Sequence[LayerBlock]) -> Doubles:
    """Cosine similarity of the statistics of one patch (2, C) to those of others (n, 2, C): (n, 2, blocks).

    The channels of a layer block form one vector, as in the paper's Figures S1 and S2; NaN if a vector is zero.
    """
    found = np.empty((len(others), 2, len(blocks)))
    for number, block in enumerate(blocks):
        a, b = (stats[..., block.channels].astype(np.float64) for stats in (one, others))
        norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            found[..., number] = (b * a).sum(axis=-1) / norms
    return found


class SimilarityByDistance:
    """Accumulates pairs of patches in distance classes one patch wide, around 1, 2, … ``reach`` patches.

    Memory bound: five numbers per class, block and statistic.
    """

    def __init__(self, blocks: Sequence[LayerBlock], *, reach: int) -> None:
        self._blocks, self.reach = blocks, reach
        self._sums = np.zeros((3, reach + 1, 2, len(blocks)))  # number, sum and sum of squares of the similarities
        self._distances = np.zeros((2, reach + 1))

    def add(self, one: Floats, others: Floats, *, distances: Doubles) -> None:
        """Add the pairs of a patch (2, C) with others (n, 2, C) that are ``distances`` (n,) patches away."""
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
        """Return the curve; NaN if all vectors of a class are zero."""
        found = self._distances[0] > 0
        count, total, squares = (part[found].transpose(1, 2, 0) for part in self._sums)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = total / count
            deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
        distance = self._distances[1, found] / self._distances[0, found]
        return DistanceCurve(distance, mean, deviation, count.astype(np.int64))


def quantiles(similarity: Doubles) -> Doubles:
    """``QUANTILES`` of similarities (n, 2, blocks) over the patches: (quantiles, 2, blocks). NaN are left out."""
    found = np.full((len(QUANTILES), *similarity.shape[1:]), np.nan)
    for row, block in np.ndindex(*similarity.shape[1:]):
        values = similarity[:, row, block]
        values = values[np.isfinite(values)]
        if len(values):
            found[:, row, block] = np.quantile(values, QUANTILES)
    return found


def outside(one: Floats, patches: Floats, *, blocks: Sequence[LayerBlock]) -> Doubles:
    """Fraction of channels in which ``one`` (2, C) is outside the central 90 % of the patches (n, 2, C): (2, blocks).

    A patch drawn at random is outside in a tenth of its channels.
    """
    low, high = np.quantile(patches, (0.05, 0.95), axis=0)
    beyond = (one < low) | (one > high)
    return np.stack([beyond[:, block.channels].mean(axis=1) for block in blocks], axis=1)


def deviation_ratio(one: Floats, patches: Floats, *, blocks: Sequence[LayerBlock]) -> Doubles:
    """Standard deviation of ``one`` (2, C) over the patches' median (n, 2, C), median over channels: (blocks,)."""
    usual = np.median(patches[:, 1], axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(usual > 0, one[1] / usual, np.nan)
    return np.array([np.nanmedian(ratio[block.channels]) for block in blocks])


class _Patches:
    """The patches that are at least half tissue, and those drawn from them."""

    def __init__(self, plan: Plan, table: StatTable, settings: AnalysisSettings) -> None:
        self._plan, self._table = plan, table
        self._reach = max(1, round(settings.reach_px / plan.settings.norm.patch_px))
        self.wanted: Mask = plan.weights >= _LEAST_TISSUE
        places = np.argwhere(self.wanted)
        if len(places) < 2:
            slide = plan.settings.source.slide
            hint = "take smaller patches with --patch-size, or all of them with --tissue none"
            raise InputError(f"{slide}: {len(places)} patches are at least half tissue, so there are no pairs", hint)
        if settings.patches < len(places):
            chosen = np.random.default_rng(settings.seed).choice(len(places), settings.patches, replace=False)
            places = places[np.sort(chosen)]
        self.drawn = [Cell(int(row), int(col)) for row, col in places]

    def by_distance(self, blocks: list[LayerBlock], progress: Progress) -> DistanceCurve:
        """Compare every patch drawn with all patches within reach, each pair once."""
        grid = self._plan.grid
        order = {cell: number for number, cell in enumerate(self.drawn)}
        found = SimilarityByDistance(blocks, reach=self._reach)
        with progress.stage("pairs", len(self.drawn), "patches") as advance:
            for cell in self.drawn:
                own = self._table.read(cell)
                others = (c for c in self._around(cell, grid) if order.get(c, len(order)) > order[cell])
                for group in batched(others, _PAIRS_AT_ONCE):
                    stats = np.stack([self._table.read(other) for other in group])
                    away = np.array(group, np.float64) - np.array(cell)
                    found.add(own, stats, distances=np.hypot(away[:, 0], away[:, 1]))
                advance(1)
        return found.curve()

    def replacements(self, thumbnail: Floats, blocks: list[LayerBlock]) -> list[Replacement]:
        """Compare the patches drawn with the thumbnail, the average of all patches, and their neighbourhoods."""
        plan = self._plan
        own = np.stack([self._table.read(cell) for cell in self.drawn])
        every = SmoothedTable(self._table, plan.weights, Kernel.parse("global")).block(range(1), range(1))[0, 0]
        average = _with_deviations(every)
        kernel = plan.settings.norm.effective_kernel
        smooth = SmoothedTable(self._table, plan.weights, kernel, prior=plan.prior)
        near = [
            cosine(
                _with_deviations(smooth.block(range(row, row + 1), range(col, col + 1))[0, 0]),
                own[n : n + 1],
                blocks=blocks,
            )
            for n, (row, col) in enumerate(self.drawn)
        ]
        return [
            Replacement(
                "thumbnail",
                quantiles(cosine(thumbnail, own, blocks=blocks)),
                outside(thumbnail, own, blocks=blocks),
                deviation_ratio(thumbnail, own, blocks=blocks),
            ),
            Replacement("all patches", quantiles(cosine(average, own, blocks=blocks))),
            Replacement(f"neighbourhood {kernel}", quantiles(np.concatenate(near))),
        ]

    def _around(self, cell: Cell, grid: Grid) -> Iterator[Cell]:
        reach = self._reach
        rows = range(max(0, cell.row - reach), min(grid.rows, cell.row + reach + 1))
        cols = range(max(0, cell.col - reach), min(grid.cols, cell.col + reach + 1))
        return (Cell(row, col) for row in rows for col in cols if self.wanted[row, col])


def _with_deviations(stats: Floats) -> Floats:
    """Convert means and scales (2, C) to means and standard deviations; a scale of 0 becomes a deviation of 0."""
    scale = stats[1]
    return np.stack([stats[0], np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)])


def _number(value: np.generic) -> float | int | None:
    number: float | int = value.item()
    return number if math.isfinite(number) else None


def _extent(block: LayerBlock) -> list[int]:
    return [block.channels.start, block.channels.stop]


def _by_block(blocks: list[LayerBlock], values: Doubles | None) -> dict[str, object]:
    if values is None:
        return {}
    return {
        block.name: [_number(value) for value in values[..., number].ravel()] for number, block in enumerate(blocks)
    }
