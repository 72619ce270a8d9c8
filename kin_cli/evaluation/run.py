"""Evaluate a slide: open it, choose tiles, run the metrics on them, and collect their values in one record."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from kin_cli import __version__
from kin_cli.concurrency import available_cores, prefetch
from kin_cli.errors import InputError, UsageError
from kin_cli.evaluation.seams import TOO_FEW, SlideSeams, interval_text, measure_slide_seams
from kin_cli.evaluation.settings import EvaluationSettings
from kin_cli.evaluation.tiles import Panel, TileMetric, check_same_size, opened, sampled_boxes
from kin_cli.geometry import Box, Doubles, Size
from kin_cli.metrics.colour import pooled
from kin_cli.metrics.fid import (
    FEW_TILES,
    PREPROCESSING,
    WHERE_FROM,
    FeatureExtractor,
    FeatureSums,
    FeatureTiles,
    frechet_distance,
)
from kin_cli.metrics.fsim import Fsim, fsim_of_pooled, pooling_px
from kin_cli.metrics.histogram import Histogram, HueHistogram, LabHistogram, correlations
from kin_cli.metrics.kid import (
    EFFICIENTNET_PREPROCESSING,
    EfficientNetFeatures,
    FeatureSample,
    kernel_deviation,
    kernel_distance,
)
from kin_cli.metrics.niqe import Niqe, NiqeOfAuthors, load_niqe_model
from kin_cli.metrics.piqe import Piqe, PiqeOfAuthors
from kin_cli.metrics.seams import SeamResult
from kin_cli.metrics.sobel import ClippedSobel, SobelGradient
from kin_cli.metrics.ssim import Ssim
from kin_cli.passes.devices import resolve_device
from kin_cli.progress import Progress
from kin_cli.slide.tissue import TissueMask, tissue_mask
from kin_cli.slide.view import SlideView

_READ_PX = 1024


@dataclass(frozen=True)
class MetricValue:
    """Name and value of a metric (None if it is not defined), which values are better, and details in words.

    ``better`` is "lower", "higher", or "" for neither.
    """

    metric: str
    value: float | None
    better: str
    detail: str = ""


def metric_value(metric: str, value: float, better: str, detail: str = "") -> MetricValue:
    """Make a ``MetricValue``; NaN and infinity become None."""
    return MetricValue(metric, value if math.isfinite(value) else None, better, detail)


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    ``seams`` is None if they were not measured. ``left_out`` names the input that each metric left out needs. ``tiles``
    holds the number of tiles measured of each slide.
    """

    settings: EvaluationSettings
    values: tuple[MetricValue, ...]
    seams: SlideSeams | None
    left_out: dict[str, str]
    tiles: dict[str, int]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return the record, ready for JSON."""
        settings = self.settings
        others = {"reference": settings.reference, "source": settings.source}
        return {
            "kin": __version__,
            "slide": str(settings.slide.path),
            **{name: None if choice is None else str(choice.path) for name, choice in others.items()},
            "tile_px": settings.sampling.tile_px,
            "seed": settings.sampling.seed,
            "tiles": self.tiles,
            "values": [asdict(value) for value in self.values],
            "seams": None if self.seams is None else self.seams.as_dict(),
            "left_out": self.left_out,
            "seconds": self.seconds,
        }


def evaluate(settings: EvaluationSettings, progress: Progress) -> Evaluation:
    """Compute the chosen metrics of a slide.

    Memory bound: see ``Panel`` and ``SeamMeter``; only the table of borders and some features grow with the slide.

    Raises:
        KinError: an input is missing, cannot be read, or does not fit the others.
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
        run = _EvaluationRun(settings, slides, progress, settings.workers or available_cores())
        seams = run.seams() if "seams" in names else None
        values = run.values(entries)
        if "fsim" in names:
            values.append(run.fsim_whole())
    if seams is not None:
        values += seam_values(seams)
    for name, why in left_out.items():
        progress.note(f"{name} is left out: it needs {why}")
    return Evaluation(settings, tuple(values), seams, left_out, run.tiles, round(time.monotonic() - start, 1))


def seam_values(seams: SlideSeams) -> list[MetricValue]:
    """Return the headline of the seam metric: ratio and excess."""
    found = seams.result
    name = "seams R*" if seams.summary.table.source is not None else "seams R"
    detail = seam_detail(found, seams.statistic)
    ratio = math.nan if found.headline is None or found.too_few else found.headline
    excess = math.nan if found.excess is None else found.excess
    return [metric_value(name, ratio, "lower", detail), metric_value("seams excess", excess, "lower", seams.unit)]


def seam_detail(result: SeamResult, statistic: str) -> str:
    """What a ratio of the seam metric rests on: the statistic, the number of borders, and its interval."""
    detail = f"{statistic}, {result.n} borders"
    if result.too_few:
        return f"{detail}, {TOO_FEW}"
    return detail if result.interval is None else f"{detail}, 95 % in {interval_text(result)}"


@dataclass(frozen=True)
class MetricEntry:
    """A metric with its accumulators.

    Attributes:
        slide: accumulates the tiles of the slide.
        values: returns the values once all tiles are added.
        reference: accumulates the tiles of the reference; None if there is nothing to accumulate.
        paired: ``slide`` also takes the tiles of the source.
    """

    slide: TileMetric
    values: Callable[[], list[MetricValue]]
    reference: TileMetric | None = None
    paired: bool = False


def entries_for(names: tuple[str, ...], settings: EvaluationSettings, device: torch.device) -> list[MetricEntry]:
    """Create the entries of metrics whose inputs are given (see ``EvaluationSettings.missing``); "seams" has none.

    Raises:
        ModelError: the file of a model cannot be used.
    """
    variants = 2 if settings.authors else 1
    makers: dict[str, Callable[[], list[MetricEntry]]] = {
        "fid": lambda: [_in_inception(settings, device, names)],
        "kid": lambda: _kid(settings, device, names),
        "histogram": lambda: [_histogram(kind) for kind in (LabHistogram, HueHistogram)[:variants]],
        "sobel": lambda: [_sobel(kind) for kind in (SobelGradient, ClippedSobel)[:variants]],
        "piqe": lambda: [_piqe(kind) for kind in (Piqe, PiqeOfAuthors)[:variants]],
        "niqe": lambda: [_niqe(kind, settings) for kind in (Niqe, NiqeOfAuthors)[:variants]],
        "ssim": lambda: [_ssim()],
        "fsim": lambda: [_fsim()],
    }
    return [entry for name in names if name in makers for entry in makers[name]()]


@dataclass(frozen=True)
class _Slides:
    view: SlideView
    source: SlideView | None
    reference: SlideView | None


class _EvaluationRun:
    """One evaluation with its slides open."""

    def __init__(self, settings: EvaluationSettings, slides: _Slides, progress: Progress, workers: int) -> None:
        self._settings, self._slides, self._progress, self._workers = settings, slides, progress, workers
        # Translation and source show the same place, and background is easier to detect in a real slide.
        self._mask = tissue_mask(slides.source or slides.view, settings.sampling.tissue)
        for note in self._mask.notes:
            progress.note(note)
        self.tiles: dict[str, int] = {}

    def seams(self) -> SlideSeams:
        """Measure the seams of the whole tissue, whatever the sampling."""
        return measure_slide_seams(
            self._slides.view,
            self._settings.seams,
            source=self._slides.source,
            mask=self._mask,
            progress=self._progress,
            workers=self._workers,
        )

    def values(self, entries: list[MetricEntry]) -> list[MetricValue]:
        """Run all metrics on their tiles, and return their values in order."""
        if not entries:
            return []
        references = [entry.reference for entry in entries if entry.reference is not None]
        if references and self._slides.reference is not None:
            view = self._slides.reference
            # A mask file given by the user is for the slide, not for the reference.
            tissue = "none" if self._settings.sampling.tissue == "none" else "auto"
            self._run_panel(Panel(references), view, boxes=self._boxes("reference", view, tissue_mask(view, tissue)))
        panel = Panel(
            [entry.slide for entry in entries if not entry.paired], [entry.slide for entry in entries if entry.paired]
        )
        self._run_panel(panel, self._slides.view, boxes=self._boxes("slide", self._slides.view, self._mask))
        return [value for entry in entries for value in entry.values()]

    def fsim_whole(self) -> MetricValue:
        """Compute FSIM as its authors define it for one image, which reduces a slide to a thumbnail with background."""
        views = [view for view in (self._slides.view, self._slides.source) if view is not None]
        size = views[0].size
        step = pooling_px(size.height, size.width)
        value = fsim_of_pooled(*(self._pooled(view, step) for view in views))
        return metric_value(
            "fsim_whole", value, "higher", f"one image, averaged over {step}×{step} px, background included"
        )

    def _pooled(self, view: SlideView, step: int) -> Doubles:
        """Average over squares of ``step`` pixels. Memory bound: one read of 1024² px per thread, and the means."""
        side = max(1, _READ_PX // step) * step
        inside = Size(view.size.width // step * step, view.size.height // step * step)
        boxes = [
            Box(x, y, side, side).clipped(inside)
            for y in range(0, inside.height, side)
            for x in range(0, inside.width, side)
        ]
        means = np.empty((inside.height // step, inside.width // step, 3))

        def mean(box: Box) -> Doubles:
            return pooled(view.read(box), step)

        with self._progress.stage("thumbnail", len(boxes), "squares") as advance:
            for box, part in zip(boxes, prefetch(mean, boxes, workers=self._workers, ahead=self._workers), strict=True):
                x, y = box.x // step, box.y // step
                means[y : y + part.shape[0], x : x + part.shape[1]] = part
                advance(1)
        return means

    def _boxes(self, name: str, view: SlideView, mask: TissueMask) -> list[Box]:
        boxes = sampled_boxes(view, mask, self._settings.sampling)
        self.tiles[name] = len(boxes)
        return boxes

    def _run_panel(self, panel: Panel, view: SlideView, *, boxes: list[Box]) -> None:
        source = self._slides.source
        panel.run(
            boxes,
            view.read,
            source=None if source is None else source.read,
            stage="reference" if view is self._slides.reference else "tiles",
            progress=self._progress,
            workers=self._workers,
        )


def _in_inception(settings: EvaluationSettings, device: torch.device, names: tuple[str, ...]) -> MetricEntry:
    """FID, KID, or both, as far as they are among the ``names``, in the features of one pass of InceptionV3."""
    if settings.inception is None:
        raise UsageError("fid cannot be computed: it needs the weights of its network", WHERE_FROM)
    extractor = FeatureExtractor(settings.inception, device=device)
    sums = FeatureSums(), FeatureSums()
    samples = FeatureSample(), FeatureSample()
    fid, kid = "fid" in names, "kid" in names and settings.features is None
    kept = [([one] if fid else []) + ([two] if kid else []) for one, two in zip(sums, samples, strict=True)]
    slide, reference = FeatureTiles(extractor, kept[0]), FeatureTiles(extractor, kept[1])

    def values() -> list[MetricValue]:
        slide.finish()
        reference.finish()
        foreign = "" if extractor.public else f"; not the public weights (sha256 {extractor.sha256[:12]}…)"
        found = []
        if fid:
            one, other = sums
            detail = f"{one.count} and {other.count} tiles, {PREPROCESSING}"
            if min(one.count, other.count) < FEW_TILES:
                detail += f"; too few to compare with other sets (under {FEW_TILES})"
            found.append(metric_value("fid", frechet_distance(one, other), "lower", detail + foreign))
        if kid:
            found.append(_kid_value(*samples, f"InceptionV3, {PREPROCESSING}{foreign}"))
        return found

    return MetricEntry(slide, values, reference)


def _kid(settings: EvaluationSettings, device: torch.device, names: tuple[str, ...]) -> list[MetricEntry]:
    """KID in the features that were chosen; nothing if the entry of FID computes it."""
    if settings.features is None:
        return [] if "fid" in names else [_in_inception(settings, device, names)]
    samples = FeatureSample(), FeatureSample()
    extractor = EfficientNetFeatures(device=device)
    slide, reference = (FeatureTiles(extractor, [sample]) for sample in samples)

    def values() -> list[MetricValue]:
        slide.finish()
        reference.finish()
        return [_kid_value(*samples, f"{settings.features}, {EFFICIENTNET_PREPROCESSING}")]

    return [MetricEntry(slide, values, reference)]


def _kid_value(slide: FeatureSample, reference: FeatureSample, network: str) -> MetricValue:
    deviation = kernel_deviation(slide.rows, reference.rows)
    spread = f"± {deviation:.4f}, " if math.isfinite(deviation) else ""
    detail = f"{spread}{slide.count} and {reference.count} tiles, {network}"
    return metric_value("kid", kernel_distance(slide.rows, reference.rows), "lower", detail)


def _histogram(kind: type[Histogram]) -> MetricEntry:
    slide, reference = kind(), kind()

    def values() -> list[MetricValue]:
        found = correlations(slide, reference)
        if kind is HueHistogram:
            return [metric_value("histogram_authors", float(found[0]), "higher", "hue, ten bins")]
        channels = zip(("L*", "a*", "b*"), found, strict=True)
        detail = "mean of " + ", ".join(f"{channel} {value:.3f}" for channel, value in channels)
        return [metric_value("histogram", float(np.mean(found)), "higher", detail)]

    return MetricEntry(slide, values, reference)


def _sobel(kind: type[SobelGradient]) -> MetricEntry:
    metric = kind()
    return MetricEntry(metric, lambda: [metric_value(name, value, "lower") for name, value in metric.values().items()])


def _piqe(kind: type[Piqe]) -> MetricEntry:
    metric = kind()

    def values() -> list[MetricValue]:
        found = metric.values()
        return [metric_value(kind.name, found[kind.name], "lower", f"{found['piqe_blocks']:.0f} active blocks")]

    return MetricEntry(metric, values)


def _niqe(kind: type[Niqe], settings: EvaluationSettings) -> MetricEntry:
    metric, reference = kind(), kind()
    given = None if settings.niqe_model is None else load_niqe_model(settings.niqe_model)

    def values() -> list[MetricValue]:
        try:
            model = given or reference.fitted(str(settings.reference.path if settings.reference else ""))
        except InputError as error:
            # Too few tiles should not lose all other values, unless NIQE was asked for.
            if settings.metrics is not None:
                raise
            return [MetricValue(kind.name, None, "lower", str(error))]
        found = metric.values(model)
        detail = f"{found['niqe_patches']:.0f} patches, {found['niqe_flat_patches']:.0f} flat ones left out; model "
        return [metric_value(kind.name, found[kind.name], "lower", detail + model.origin)]

    return MetricEntry(metric, values, None if given else reference)


def _ssim() -> MetricEntry:
    metric = Ssim()
    return MetricEntry(metric, lambda: [metric_value("ssim", metric.values()["ssim"], "higher", "luma")], paired=True)


def _fsim() -> MetricEntry:
    metric = Fsim()
    return MetricEntry(
        metric, lambda: [metric_value("fsim", metric.values()["fsim"], "higher", "mean of the tiles")], paired=True
    )
