"""``evaluate``: open, choose the tiles, feed the metrics, and put their figures in one record."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kin_cli import __version__
from kin_cli.evaluation.entries import Entry, Figure, entries_for, figure
from kin_cli.evaluation.panel import Panel
from kin_cli.evaluation.settings import EvaluationSettings
from kin_cli.evaluation.slide_seams import SlideSeams, measure_slide_seams
from kin_cli.evaluation.views import check_same_size, opened, sampled_boxes, tissue_of
from kin_cli.geometry import Box, Size
from kin_cli.metrics.colour import Floats
from kin_cli.metrics.fsim import fsim_of_pooled, pooling_px
from kin_cli.metrics.pooling import pooled
from kin_cli.passes.devices import resolve_device
from kin_cli.pipeline.reporting import Reporter
from kin_cli.pipeline.stages import available_cores, prefetch
from kin_cli.slide.mask import TissueMask
from kin_cli.slide.view import SlideView

_READ_PX = 1024


@dataclass(frozen=True)
class Evaluation:
    """What came out: every figure, the seams where they were measured, and what was left out and why."""

    settings: EvaluationSettings
    figures: tuple[Figure, ...]
    seams: SlideSeams | None
    left_out: dict[str, str]
    tiles: dict[str, int]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        settings = self.settings
        others = {"reference": settings.reference, "source": settings.source}
        return {
            "kin": __version__,
            "slide": str(settings.slide.path),
            **{name: None if choice is None else str(choice.path) for name, choice in others.items()},
            "patch_px": settings.sampling.patch_px,
            "seed": settings.sampling.seed,
            "tiles": self.tiles,
            "figures": [asdict(figure) for figure in self.figures],
            "seams": None if self.seams is None else self.seams.as_dict(),
            "left_out": self.left_out,
            "seconds": self.seconds,
        }


def evaluate(settings: EvaluationSettings, reporter: Reporter) -> Evaluation:
    """Compute the chosen metrics of a slide. Memory is constant in its size: see ``Panel`` and ``SeamMeter``.

    Raises a KinError where an input is missing, cannot be read, or does not fit the others.
    """
    names, left_out = settings.chosen()
    entries = entries_for(names, settings, resolve_device(settings.device))
    start = time.monotonic()
    with ExitStack() as stack:
        slides = _Slides(
            stack.enter_context(opened(settings.slide)),
            None if settings.source is None else stack.enter_context(opened(settings.source)),
            None if settings.reference is None else stack.enter_context(opened(settings.reference)),
        )
        if slides.source is not None:
            check_same_size(slides.view, slides.source)
        run = _Run(settings, slides, reporter, settings.workers or available_cores())
        seams = run.seams() if "seams" in names else None
        figures = run.figures(entries)
        if "fsim" in names:
            figures.append(run.fsim_of_the_whole())
    if seams is not None:
        figures += seam_figures(seams)
    for name, why in left_out.items():
        reporter.note(f"{name} is left out, it lacks {why}")
    return Evaluation(settings, tuple(figures), seams, left_out, run.tiles, round(time.monotonic() - start, 1))


def seam_figures(seams: SlideSeams) -> list[Figure]:
    """The headline of the seam metric as figures."""
    found = seams.figure
    name = "seams R*" if seams.report.table.source is not None else "seams R"
    detail = f"{seams.statistic}, {found.n} boundaries"
    if found.interval is not None:
        detail += f", 95 % in {found.interval[0]:.3f} to {found.interval[1]:.3f}"
    ratio = math.nan if found.headline is None else found.headline
    excess = math.nan if found.excess is None else found.excess
    return [figure(name, ratio, "lower", detail), figure("seams excess", excess, "lower", seams.unit)]


@dataclass(frozen=True)
class _Slides:
    view: SlideView
    source: SlideView | None
    reference: SlideView | None


class _Run:
    """One evaluation under way."""

    def __init__(self, settings: EvaluationSettings, slides: _Slides, reporter: Reporter, workers: int) -> None:
        self._settings, self._slides, self._reporter, self._workers = settings, slides, reporter, workers
        # a translation lies where its source lies, and in a real slide glass is easier to tell
        self._mask = tissue_of(slides.source or slides.view, settings.sampling.tissue)
        self.tiles: dict[str, int] = {}

    def seams(self) -> SlideSeams:
        """The seam metric over the whole tissue, whatever the sampling."""
        return measure_slide_seams(
            self._slides.view,
            self._settings.seams,
            source=self._slides.source,
            mask=self._mask,
            reporter=self._reporter,
            workers=self._workers,
        )

    def figures(self, entries: list[Entry]) -> list[Figure]:
        """Feed all entries; their figures in order."""
        if not entries:
            return []
        references = [entry.reference for entry in entries if entry.reference is not None]
        if references and self._slides.reference is not None:
            view = self._slides.reference
            # a mask that the user gives is one of the slide
            tissue = "none" if self._settings.sampling.tissue == "none" else "auto"
            self._feed(Panel(references), view, boxes=self._boxes("reference", view, tissue_of(view, tissue)))
        panel = Panel(
            [entry.slide for entry in entries if not entry.paired], [entry.slide for entry in entries if entry.paired]
        )
        self._feed(panel, self._slides.view, boxes=self._boxes("slide", self._slides.view, self._mask))
        return [found for entry in entries for found in entry.figures()]

    def fsim_of_the_whole(self) -> Figure:
        """FSIM as its authors define it for one picture, which makes a thumbnail of a slide; glass included."""
        views = [view for view in (self._slides.view, self._slides.source) if view is not None]
        size = views[0].size
        step = pooling_px(size.height, size.width)
        value = fsim_of_pooled(*(self._pooled(view, step) for view in views))
        return figure("fsim_whole", value, "higher", f"one picture, averaged over {step}×{step} px, glass included")

    def _pooled(self, view: SlideView, step: int) -> Floats:
        """Means over squares of ``step`` pixels. Memory bound: one read of 1024² px a thread, and the means."""
        side = max(1, _READ_PX // step) * step
        inside = Size(view.size.width // step * step, view.size.height // step * step)
        boxes = [
            Box(x, y, side, side).clipped(inside)
            for y in range(0, inside.height, side)
            for x in range(0, inside.width, side)
        ]
        means = np.empty((inside.height // step, inside.width // step, 3))

        def mean(box: Box) -> Floats:
            return pooled(view.read(box), step)

        with self._reporter.stage("thumbnail", len(boxes)) as advance:
            for box, part in zip(boxes, prefetch(mean, boxes, workers=self._workers, ahead=self._workers), strict=True):
                x, y = box.x // step, box.y // step
                means[y : y + part.shape[0], x : x + part.shape[1]] = part
                advance(1)
        return means

    def _boxes(self, name: str, view: SlideView, mask: TissueMask) -> list[Box]:
        boxes = sampled_boxes(view, mask, self._settings.sampling)
        self.tiles[name] = len(boxes)
        return boxes

    def _feed(self, panel: Panel, view: SlideView, *, boxes: list[Box]) -> None:
        source = self._slides.source
        panel.run(
            boxes,
            view.read,
            source=None if source is None else source.read,
            stage="reference" if view is self._slides.reference else "tiles",
            reporter=self._reporter,
            workers=self._workers,
        )
