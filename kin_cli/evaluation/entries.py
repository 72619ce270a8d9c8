"""Each metric with what it needs of the slide, the reference and the source, and the figures that it yields."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from kin_cli.errors import InputError, UsageError
from kin_cli.evaluation.panel import TileMetric
from kin_cli.evaluation.settings import EvaluationSettings
from kin_cli.metrics.fid import FEW_TILES, PREPROCESSING, WHERE_FROM, FeatureExtractor, FidTiles, frechet_distance
from kin_cli.metrics.fsim import Fsim
from kin_cli.metrics.histogram import Histogram, HueHistogram, LabHistogram, correlations
from kin_cli.metrics.niqe import Niqe, NiqeOfAuthors
from kin_cli.metrics.niqe_model import load_niqe_model
from kin_cli.metrics.piqe import Piqe, PiqeOfAuthors
from kin_cli.metrics.sobel import ClippedSobel, SobelGradient
from kin_cli.metrics.ssim import Ssim


@dataclass(frozen=True)
class Figure:
    """One number: its name, its value (None where there is none), which is better, and what it rests on.

    ``better`` is "lower", "higher", or "" where neither is.
    """

    metric: str
    value: float | None
    better: str
    detail: str = ""


def figure(metric: str, value: float, better: str, detail: str = "") -> Figure:
    """A figure; what is not a number has no value."""
    return Figure(metric, value if math.isfinite(value) else None, better, detail)


@dataclass(frozen=True)
class Entry:
    """A metric under way: what is fed with the slide's tiles and the reference's, and the figures in the end.

    ``paired``: the first is fed with the slide's tiles and those of its source.
    """

    slide: TileMetric
    figures: Callable[[], list[Figure]]
    reference: TileMetric | None = None
    paired: bool = False


def entries_for(names: tuple[str, ...], settings: EvaluationSettings, device: torch.device) -> list[Entry]:
    """The entries of metrics whose inputs are there (see ``EvaluationSettings.missing``); of "seams" there is none.

    Raises:
        ModelError: a model's file cannot be used.
    """
    variants = 2 if settings.authors else 1
    makers: dict[str, Callable[[], list[Entry]]] = {
        "fid": lambda: [_fid(settings, device)],
        "histogram": lambda: [_histogram(kind) for kind in (LabHistogram, HueHistogram)[:variants]],
        "sobel": lambda: [_sobel(kind) for kind in (SobelGradient, ClippedSobel)[:variants]],
        "piqe": lambda: [_piqe(kind) for kind in (Piqe, PiqeOfAuthors)[:variants]],
        "niqe": lambda: [_niqe(kind, settings) for kind in (Niqe, NiqeOfAuthors)[:variants]],
        "ssim": lambda: [_ssim()],
        "fsim": lambda: [_fsim()],
    }
    return [entry for name in names if name in makers for entry in makers[name]()]


def _fid(settings: EvaluationSettings, device: torch.device) -> Entry:
    if settings.inception is None:
        raise UsageError("fid cannot be computed without its network's weights", WHERE_FROM)
    extractor = FeatureExtractor(settings.inception, device=device)
    slide, reference = FidTiles(extractor), FidTiles(extractor)

    def figures() -> list[Figure]:
        one, other = slide.sums, reference.sums
        detail = f"{one.count} and {other.count} tiles, {PREPROCESSING}"
        if min(one.count, other.count) < FEW_TILES:
            detail += f"; too few to compare with other sets (under {FEW_TILES})"
        if not extractor.public:
            detail += f"; not the public weights (sha256 {extractor.sha256[:12]}…)"
        return [figure("fid", frechet_distance(one, other), "lower", detail)]

    return Entry(slide, figures, reference)


def _histogram(kind: type[Histogram]) -> Entry:
    slide, reference = kind(), kind()

    def figures() -> list[Figure]:
        found = correlations(slide, reference)
        if kind is HueHistogram:
            return [figure("histogram_authors", float(found[0]), "higher", "hue, ten bins")]
        channels = zip(("L*", "a*", "b*"), found, strict=True)
        detail = "mean of " + ", ".join(f"{channel} {value:.3f}" for channel, value in channels)
        return [figure("histogram", float(np.mean(found)), "higher", detail)]

    return Entry(slide, figures, reference)


def _sobel(kind: type[SobelGradient]) -> Entry:
    metric = kind()
    return Entry(metric, lambda: [figure(name, value, "lower") for name, value in metric.figures().items()])


def _piqe(kind: type[Piqe]) -> Entry:
    metric = kind()

    def figures() -> list[Figure]:
        found = metric.figures()
        return [figure(kind.name, found[kind.name], "lower", f"{found['piqe_blocks']:.0f} active blocks")]

    return Entry(metric, figures)


def _niqe(kind: type[Niqe], settings: EvaluationSettings) -> Entry:
    metric, reference = kind(), kind()
    given = None if settings.niqe_model is None else load_niqe_model(settings.niqe_model)

    def figures() -> list[Figure]:
        try:
            model = given or reference.fitted(str(settings.reference.path if settings.reference else ""))
        except InputError as error:
            # too few tiles are no reason to lose every other figure, unless this one was asked for
            if settings.metrics is not None:
                raise
            return [Figure(kind.name, None, "lower", str(error))]
        found = metric.figures(model)
        detail = f"{found['niqe_patches']:.0f} patches, {found['niqe_flat_patches']:.0f} flat ones left out; model "
        return [figure(kind.name, found[kind.name], "lower", detail + model.origin)]

    return Entry(metric, figures, None if given else reference)


def _ssim() -> Entry:
    metric = Ssim()
    return Entry(metric, lambda: [figure("ssim", metric.figures()["ssim"], "higher", "luma")], paired=True)


def _fsim() -> Entry:
    metric = Fsim()
    return Entry(metric, lambda: [figure("fsim", metric.figures()["fsim"], "higher", "mean of the tiles")], paired=True)
