"""``analyse``: measure the patches, compare them with each other and with what would stand for all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kin_cli import __version__
from kin_cli.analysis.similarity import (
    QUANTILES,
    STATISTICS,
    DistanceCurve,
    Floats,
    SimilarityByDistance,
    Stats,
    cosine,
    deviation_ratio,
    outside,
    quantiles,
)
from kin_cli.errors import InputError
from kin_cli.geometry import Cell, Grid
from kin_cli.models.blocks import LayerBlock, layer_blocks
from kin_cli.norm.kernel import Kernel
from kin_cli.norm.table import SmoothedTable, StatTable
from kin_cli.passes.measure import batched, measure_slide
from kin_cli.passes.thumbnail import thumbnail_statistics
from kin_cli.pipeline.reporting import Reporter
from kin_cli.plan import Plan
from kin_cli.planning import make_plan
from kin_cli.settings import Settings
from kin_cli.tables import kept_table

_LEAST_TISSUE = 0.5  # of a patch; glass and tissue differ anyhow
_PAIRS_AT_ONCE = 256


@dataclass(frozen=True)
class AnalysisSettings:
    """What is analysed.

    ``patches`` of the patches that are at least half tissue are drawn with ``seed`` and compared with all others up to
    ``reach_px`` away. ``base`` says how they are measured, and its kernel which neighbourhood is looked at.
    """

    base: Settings
    table: Path
    patches: int = 500
    seed: int = 0
    reach_px: int = 5000


@dataclass(frozen=True, eq=False)
class Standin:
    """How alike the patches are to statistics that would be used instead of their own.

    ``name`` says which: thumbnail (TIN), all patches (kernel global), or their neighbourhood (KIN). ``quantiles``
    (quantiles, 2, blocks) of the cosine similarity; of a single set of statistics also its place in the distribution.
    """

    name: str
    quantiles: Floats
    outside: Floats | None = None
    deviation_ratio: Floats | None = None


@dataclass(frozen=True, eq=False)
class Analysis:
    """What came out; lengths in patches unless they say otherwise."""

    settings: AnalysisSettings
    blocks: list[LayerBlock]
    curve: DistanceCurve
    standins: list[Standin]
    patches: int
    drawn: int
    mpp: float | None
    seconds: float

    @property
    def patch_px(self) -> int:
        """Side of a patch."""
        return self.settings.base.norm.patch_px

    def rows(self) -> list[list[object]]:
        """A heading and all figures, a line each: what with what, and how alike."""
        head = ["statistic", "block", "with", "distance_patches", "distance_um", "pairs", "mean", "deviation"]
        rows: list[list[object]] = [[*head, *(f"q{100 * q:02.0f}" for q in QUANTILES)]]
        for s, statistic in enumerate(STATISTICS):
            for b, block in enumerate(self.blocks):
                for d, distance in enumerate(self.curve.distance.tolist()):
                    um = None if self.mpp is None else distance * self.patch_px * self.mpp
                    found = (self.curve.pairs, self.curve.mean, self.curve.deviation)
                    pair = [_number(values[s, b, d]) for values in found]
                    rows.append([statistic, block.name, "patches", distance, um, *pair, *[None] * len(QUANTILES)])
                for standin in self.standins:
                    values = [_number(value) for value in standin.quantiles[:, s, b]]
                    rows.append([statistic, block.name, standin.name, None, None, self.drawn, None, None, *values])
        return rows

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        base, (head, *rows) = self.settings.base, self.rows()
        thumbnail = self.standins[0]
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


def analyse(settings: AnalysisSettings, reporter: Reporter) -> Analysis:
    """Measure a slide's patches, or take them from the table there is, and compare them.

    Memory bound: that of pass 1, the statistics of the patches drawn and of 256 more.

    Raises:
        InputError: fewer than two patches are at least half tissue.
    """
    start = time.monotonic()
    plan = make_plan(settings.base)
    with plan.view.slide, kept_table(plan, settings.table) as store:
        fleet = plan.fleet()
        table = StatTable(store, rows=plan.grid.rows, cols=plan.grid.cols, channels=fleet.channels)
        measured = measure_slide(
            plan.view,
            plan.grid,
            plan.measured_cells,
            fleet=fleet,
            table=table,
            side_px=plan.settings.norm.measured_px,
            batch=plan.batch,
            workers=plan.workers,
            reporter=reporter,
        )
        if measured:
            store.commit()
        patches = _Patches(plan, table, settings)
        blocks = layer_blocks(fleet.first.layers)
        curve = patches.by_distance(blocks, reporter)
        thumbnail = thumbnail_statistics(plan.view, None, engine=fleet.first, patch_px=settings.base.norm.patch_px)
        standins = patches.standins(_with_deviations(thumbnail), blocks)
    seconds = round(time.monotonic() - start, 1)
    found, drawn = int(patches.wanted.sum()), len(patches.drawn)
    return Analysis(settings, blocks, curve, standins, found, drawn, plan.view.mpp, seconds)


class _Patches:
    """The patches with enough tissue, and those drawn among them."""

    def __init__(self, plan: Plan, table: StatTable, settings: AnalysisSettings) -> None:
        self._plan, self._table = plan, table
        self._reach = max(1, round(settings.reach_px / plan.settings.norm.patch_px))
        self.wanted: npt.NDArray[np.bool_] = plan.weights >= _LEAST_TISSUE
        places = np.argwhere(self.wanted)
        if len(places) < 2:
            slide = plan.settings.source.slide
            hint = "take smaller ones by --patch-size, or all of them by --tissue none"
            raise InputError(f"{slide}: {len(places)} patches are at least half tissue, so there are no pairs", hint)
        if settings.patches < len(places):
            chosen = np.random.default_rng(settings.seed).choice(len(places), settings.patches, replace=False)
            places = places[np.sort(chosen)]
        self.drawn = [Cell(int(row), int(col)) for row, col in places]

    def by_distance(self, blocks: list[LayerBlock], reporter: Reporter) -> DistanceCurve:
        """Every patch drawn with all others within reach, each pair once."""
        grid = self._plan.grid
        order = {cell: number for number, cell in enumerate(self.drawn)}
        found = SimilarityByDistance(blocks, reach=self._reach)
        with reporter.stage("pairs", len(self.drawn), "patches") as advance:
            for cell in self.drawn:
                own = self._table.read(cell)
                others = (c for c in self._around(cell, grid) if order.get(c, len(order)) > order[cell])
                for group in batched(others, _PAIRS_AT_ONCE):
                    stats = np.stack([self._table.read(other) for other in group])
                    away = np.array(group, np.float64) - np.array(cell)
                    found.add(own, stats, distances=np.hypot(away[:, 0], away[:, 1]))
                advance(1)
        return found.curve()

    def standins(self, thumbnail: Stats, blocks: list[LayerBlock]) -> list[Standin]:
        """What the thumbnail, the average of all and the neighbourhood have instead of a patch's own statistics."""
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
            Standin(
                "thumbnail",
                quantiles(cosine(thumbnail, own, blocks=blocks)),
                outside(thumbnail, own, blocks=blocks),
                deviation_ratio(thumbnail, own, blocks=blocks),
            ),
            Standin("all patches", quantiles(cosine(average, own, blocks=blocks))),
            Standin(f"neighbourhood {kernel}", quantiles(np.concatenate(near))),
        ]

    def _around(self, cell: Cell, grid: Grid) -> Iterator[Cell]:
        reach = self._reach
        rows = range(max(0, cell.row - reach), min(grid.rows, cell.row + reach + 1))
        cols = range(max(0, cell.col - reach), min(grid.cols, cell.col + reach + 1))
        return (Cell(row, col) for row in rows for col in cols if self.wanted[row, col])


def _with_deviations(stats: Stats) -> Stats:
    """Means and scales (2, C) as means and standard deviations; a scale of 0 is a deviation of 0."""
    scale = stats[1]
    return np.stack([stats[0], np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)])


def _number(value: np.generic) -> float | int | None:
    number: float | int = value.item()
    return number if math.isfinite(number) else None


def _extent(block: LayerBlock) -> list[int]:
    return [block.channels.start, block.channels.stop]


def _by_block(blocks: list[LayerBlock], values: Floats | None) -> dict[str, object]:
    if values is None:
        return {}
    return {
        block.name: [_number(value) for value in values[..., number].ravel()] for number, block in enumerate(blocks)
    }
