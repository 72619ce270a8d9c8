"""Several metrics fed with the same tiles, each of which is read once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kin_cli.geometry import Box
from kin_cli.metrics.colour import Pixels
from kin_cli.pipeline.reporting import Reporter
from kin_cli.pipeline.stages import prefetch

Reader = Callable[[Box], Pixels]


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
        self, boxes: Sequence[Box], read: Reader, *, source: Reader | None, stage: str, reporter: Reporter, workers: int
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
        with reporter.stage(stage, len(boxes)) as advance:
            for parts in prefetch(measured, boxes, workers=workers, ahead=2 * workers):
                for metric, part in zip(metrics, parts, strict=True):
                    metric.add(part)
                advance(1)


def _cut(tile: Pixels, margin: int) -> Pixels:
    return tile[margin : tile.shape[0] - margin, margin : tile.shape[1] - margin]
