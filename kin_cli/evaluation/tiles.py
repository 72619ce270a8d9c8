"""Open slides, sample their tiles, and run several metrics over the same tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from kin_cli.concurrency import prefetch
from kin_cli.errors import InputError
from kin_cli.evaluation.settings import Sampling, SlideChoice
from kin_cli.geometry import Box, Grid, Pixels
from kin_cli.metrics.seams import Reader
from kin_cli.progress import Progress
from kin_cli.slide.open import open_source
from kin_cli.slide.tissue import TissueMask
from kin_cli.slide.view import SlideView

_LEAST_TISSUE = 0.5  # tissue fraction of a tile; the rest of it may be background


@contextmanager
def opened(choice: SlideChoice) -> Iterator[SlideView]:
    """Open the chosen part of a slide, and close the slide at the end of the ``with`` block."""
    view = open_source(
        choice.path,
        level=choice.level,
        mpp=choice.mpp,
        source_mpp=choice.source_mpp,
        series=choice.series,
        region=choice.region,
    )
    with view.slide:
        yield view


def check_same_size(view: SlideView, source: SlideView) -> None:
    """Raise ``InputError`` unless a translation and its source have the same size."""
    if view.size != source.size:
        raise InputError(
            f"{source.slide.path}: {source.size} pixels, but {view.slide.path} has {view.size}",
            "the source is what was translated: say which part of it by --source-level and --source-region",
        )


def sampled_boxes(view: SlideView, mask: TissueMask, sampling: Sampling) -> list[Box]:
    """Sample the tiles of ``tissue_boxes`` as ``sampling`` says, in reading order.

    Memory bound: 200 bytes per tile.

    Raises:
        InputError: no tile is at least half tissue.
    """
    found = tissue_boxes(view, mask, sampling.tile_px)
    if not found:
        side = sampling.tile_px
        hint = "take smaller tiles with --tile-size, or all of them with --tissue none"
        raise InputError(f"{view.slide.path}: no tile of {side}×{side} px is at least half tissue", hint)
    if sampling.tiles is not None and sampling.tiles < len(found):
        drawn = np.random.default_rng(sampling.seed).choice(len(found), sampling.tiles, replace=False)
        found = [found[number] for number in np.sort(drawn)]
    return found


def tissue_boxes(view: SlideView, mask: TissueMask, tile_px: int) -> list[Box]:
    """Return the whole tiles of a regular grid that are at least half tissue, in reading order."""
    grid = Grid(view.size, tile_px)
    fraction = mask.fraction(grid)
    return [grid.box(cell) for cell in grid if fraction[cell] >= _LEAST_TISSUE and grid.clipped(cell) == grid.box(cell)]


class TileMetric(Protocol):
    """A metric accumulated tile by tile: ``measure`` runs on any thread, ``add`` on one, in the order of the tiles."""

    @property
    def halo_px(self) -> int:
        """Width of the border around a tile that ``measure`` needs, in pixels."""

    @property
    def measure(self) -> Callable[..., Any]:
        """Measure a tile (h, w, 3) given with its halo; a comparison also takes the same tile of the source."""

    @property
    def add(self) -> Callable[[Any], None]:
        """Add a result of ``measure``."""


@dataclass(frozen=True)
class Panel:
    """Metrics of a slide alone, and metrics that compare it ``against`` its source; each tile is read once.

    Memory bound: ``2 * workers + 1`` tiles with a halo of 16 px (twice with a source) and their results; at most 60
    bytes per pixel of a tile for each worker; and what the metrics keep.
    """

    alone: Sequence[TileMetric]
    against: Sequence[TileMetric] = ()

    def run(
        self, boxes: Sequence[Box], read: Reader, *, source: Reader | None, stage: str, progress: Progress, workers: int
    ) -> None:
        """Measure the tiles of all boxes and add the results to the metrics."""
        metrics = [*self.alone, *self.against]
        halo = max((metric.halo_px for metric in metrics), default=0)

        def measured(box: Box) -> list[Any]:
            around = box.grown(halo)
            tile = read(around)
            parts = [metric.measure(_cut(tile, halo - metric.halo_px)) for metric in self.alone]
            if source is not None and self.against:
                pair = (tile, source(around))
                parts += [m.measure(*(_cut(pixels, halo - m.halo_px) for pixels in pair)) for m in self.against]
            return parts

        if not metrics:
            return
        with progress.stage(stage, len(boxes), "tiles") as advance:
            for parts in prefetch(measured, boxes, workers=workers, ahead=2 * workers):
                for metric, part in zip(metrics, parts, strict=True):
                    metric.add(part)
                advance(1)


def _cut(tile: Pixels, margin: int) -> Pixels:
    return tile[margin : tile.shape[0] - margin, margin : tile.shape[1] - margin]
