"""Opening what is compared, and choosing the tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from kin_cli.concurrency import prefetch
from kin_cli.errors import InputError
from kin_cli.evaluation.settings import Sampling, SlideChoice
from kin_cli.geometry import Box, Grid
from kin_cli.metrics.colour import Pixels
from kin_cli.progress import Progress
from kin_cli.slide.open import open_source
from kin_cli.slide.tissue import TissueMask
from kin_cli.slide.view import SlideView

_LEAST_TISSUE = 0.5  # of a tile; the rest of it may be glass
Reader = Callable[[Box], Pixels]


# FROM evaluation.views: Opening what is compared, and choosing the tiles.


@contextmanager
def opened(choice: SlideChoice) -> Iterator[SlideView]:
    """The chosen part of a slide, for as long as the block runs."""
    view = open_source(
        choice.path, level=choice.level, mpp=choice.mpp, source_mpp=choice.source_mpp, region=choice.region
    )
    with view.slide:
        yield view


def check_same_size(view: SlideView, source: SlideView) -> None:
    """Raise ``InputError`` unless a translation and its source match pixel by pixel."""
    if view.size != source.size:
        raise InputError(
            f"{source.slide.path}: {source.size} pixels, but {view.slide.path} has {view.size}",
            "the source is what was translated: say which part of it by --source-level and --source-region",
        )


def sampled_boxes(view: SlideView, mask: TissueMask, sampling: Sampling) -> list[Box]:
    """The tiles that count: those of ``tissue_boxes``, or as many of them as the sampling draws, in reading order.

    Memory bound: 200 bytes per tile.

    Raises:
        InputError: there is none.
    """
    found = tissue_boxes(view, mask, sampling.tile_px)
    if not found:
        side = sampling.tile_px
        hint = "take smaller tiles by --patch-size, or all of them by --tissue none"
        raise InputError(f"{view.slide.path}: no tile of {side}×{side} px is at least half tissue", hint)
    if sampling.tiles is not None and sampling.tiles < len(found):
        drawn = np.random.default_rng(sampling.seed).choice(len(found), sampling.tiles, replace=False)
        found = [found[number] for number in np.sort(drawn)]
    return found


def tissue_boxes(view: SlideView, mask: TissueMask, tile_px: int) -> list[Box]:
    """Tiles of a regular grid that lie wholly in the view and are at least half tissue, in reading order."""
    grid = Grid(view.size, tile_px)
    fraction = mask.fraction(grid)
    return [grid.box(cell) for cell in grid if fraction[cell] >= _LEAST_TISSUE and grid.clipped(cell) == grid.box(cell)]


# FROM evaluation.panel: Several metrics fed with the same tiles, each of which is read once.


class TileMetric(Protocol):
    """What is gathered tile by tile: ``measure`` runs on any thread, ``add`` on one, in the order of the tiles."""

    @property
    def halo_px(self) -> int:
        """Pixels around a tile that ``measure`` wants to see."""

    @property
    def measure(self) -> Callable[..., Any]:
        """What a tile (h, w, 3), with its halo, gives; of a comparison, of a tile and the same one of the source."""

    @property
    def add(self) -> Callable[[Any], None]:
        """Take what ``measure`` returned in."""


@dataclass(frozen=True)
class Panel:
    """Metrics that look at a slide alone, and metrics that look at it ``against`` its source.

    Memory bound: for each of ``2 * workers + 1`` tiles its pixels with a halo of 16, twice with a source, and what the
    metrics make of it; at most 60 bytes per pixel for each worker; and what the metrics keep.
    """

    alone: Sequence[TileMetric]
    against: Sequence[TileMetric] = ()

    def run(
        self, boxes: Sequence[Box], read: Reader, *, source: Reader | None, stage: str, progress: Progress, workers: int
    ) -> None:
        """Measure every box and take it in."""
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
        with progress.stage(stage, len(boxes)) as advance:
            for parts in prefetch(measured, boxes, workers=workers, ahead=2 * workers):
                for metric, part in zip(metrics, parts, strict=True):
                    metric.add(part)
                advance(1)


def _cut(tile: Pixels, margin: int) -> Pixels:
    return tile[margin : tile.shape[0] - margin, margin : tile.shape[1] - margin]
