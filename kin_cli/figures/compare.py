"""Compare ways to normalize one slide: translate, measure, cut out what is shown, and go on to the next variant."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from kin_cli import __version__
from kin_cli.errors import InputError, NoTissueError, UsageError
from kin_cli.evaluation.run import Evaluation, MetricValue, entries_for, evaluate
from kin_cli.evaluation.seams import SlideSeams, close_up, seam_grid
from kin_cli.evaluation.settings import EvaluationSettings, Sampling, SeamChoice, SlideChoice
from kin_cli.evaluation.tiles import opened, sampled_boxes
from kin_cli.figures.folder import TABLE, clear
from kin_cli.geometry import Box, Floats, Grid, Pixels
from kin_cli.metrics.seams import SeamLine, SeamResult
from kin_cli.passes.devices import resolve_device, resolve_devices
from kin_cli.progress import Progress
from kin_cli.settings import BORDERS, NormSettings, OutputSettings, Settings
from kin_cli.slide.tissue import TissueMask, tissue_mask
from kin_cli.slide.view import SlideView, overview
from kin_cli.store.files import os_errors_as_output_errors, working_folder
from kin_cli.translation import translate

_MEETING = 4  # borders at a corner
_TISSUE = 0.5  # tissue fraction of each of the four patches at a corner
_TILE_PX = (512, 256, 128)  # tiles of the other metrics: the largest side at which some tiles are tissue
# The translations are lossless, so that only the source can make the metric fall back to luma.
_LUMA_NOTE = (
    "The source stores JPEG tiles with subsampled chroma on the grid of the patches, which looks like seams in colour: "
    "R* and excess are those of luma."
)
_ALONE = ("sobel", "piqe")  # metrics of a slide without a source, such as the source itself


@dataclass(frozen=True)
class Variant:
    """One way to normalize: ``name`` in file names and tables, ``title`` in figures."""

    name: str
    title: str
    norm: NormSettings


@dataclass(frozen=True)
class FigureOptions:
    """What a figure shows: number and side of the close-ups (None: the side of a patch), and size of the overview."""

    close_ups: int = 3
    close_up_px: int | None = None
    overview_px: int = 800


@dataclass(frozen=True)
class MetricOptions:
    """Metrics besides the seams, over ``tiles`` tiles with tissue, drawn at random with ``seed``.

    ``metrics`` are names as in ``EvaluationSettings``; None takes SSIM, Sobel and PIQE, with a ``reference`` (a real
    slide of the target stain) also the histogram, with ``inception`` (a file of weights) also FID, and with either
    ``features`` or ``inception`` also KID.
    """

    metrics: tuple[str, ...] | None = None
    reference: Path | None = None
    inception: Path | None = None
    features: Literal["efficientnet-lite0"] | None = None
    tiles: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if self.inception is not None and self.reference is None:
            raise UsageError("--inception alone measures nothing", "FID compares with a --reference slide")
        if self.features is not None and self.reference is None:
            raise UsageError("--features alone measures nothing", "KID compares with a --reference slide")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the metrics without the seams, which are always measured."""
        if self.metrics is not None:
            return tuple(name for name in self.metrics if name != "seams")
        histogram = () if self.reference is None else ("histogram",)
        fid = () if self.inception is None else ("fid",)
        kid = () if self.inception is None and self.features is None else ("kid",)
        return ("ssim", "sobel", "piqe", *histogram, *fid, *kid)


@dataclass(frozen=True)
class CompareSettings:
    """Settings of a comparison.

    Attributes:
        base: the translation; each variant replaces its norm settings and its output path.
        variants: the columns, in the order in which they are made; the first decides which places are shown.
        folder: folder of the translations, and of the table if ``base.table`` is None.
        keep: keep the folder and the translations for another time.
        figure: what the figure shows.
        metrics: metrics besides the seams.
    """

    base: Settings
    variants: tuple[Variant, ...]
    folder: Path
    keep: bool = False
    figure: FigureOptions = FigureOptions()
    metrics: MetricOptions = MetricOptions()


@dataclass(frozen=True)
class Corner:
    """A corner (x, y) where four patches meet, and the mean excess of the four borders that meet there."""

    x: int
    y: int
    excess: float


@dataclass(frozen=True, eq=False)
class Column:
    """One column of the figure: the source, or a variant with its seams."""

    name: str
    title: str
    overview: Pixels
    close_ups: tuple[Pixels, ...]
    values: tuple[MetricValue, ...]
    seams: SlideSeams | None = None

    def seam(self, direction: str = "both") -> SeamResult | None:
        """Return the headline of the seam metric in one direction; None for the source."""
        return None if self.seams is None else self.seams.summary.result(self.seams.statistic, direction)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Result of a comparison: source, variants, and the boxes of the close-ups with their corners.

    A corner is None if the box shows the middle of the slide instead.
    """

    settings: CompareSettings
    view: SlideView
    source: Column
    variants: tuple[Column, ...]
    corners: tuple[Corner | None, ...]
    boxes: tuple[Box, ...]
    notes: tuple[str, ...]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the pictures, ready for JSON; places in pixels of the translation and of level 0."""
        base = self.settings.base
        return {
            "kin": __version__,
            "slide": str(base.source.slide),
            "model": str(base.model),
            "patch_px": base.norm.patch_px,
            "region": list(asdict(self.view.region).values()),
            "mpp": self.view.mpp,
            "columns": [_as_dict(column) for column in (self.source, *self.variants)],
            "close_ups": [
                {
                    "box": list(asdict(box).values()),
                    "l0": [round(float(place)) for place in self.view.out_to_l0(box.x, box.y)],
                    "corner": None if corner is None else asdict(corner),
                }
                for box, corner in zip(self.boxes, self.corners, strict=True)
            ],
            "notes": list(self.notes),
            "seconds": self.seconds,
        }


def compare(settings: CompareSettings, progress: Progress) -> Comparison:
    """Translate by every variant, measure the translation, cut out what is shown, and delete it unless it is kept.

    Pass 1 runs once; all variants use its table. Only one translation at a time is on disk, unless all are kept. Call
    ``clean_up`` once the result is saved.

    Memory bound: that of a translation, and the pictures that are shown.
    """
    start = time.monotonic()
    choice = source_choice(settings.base)
    with working_folder(settings.folder), opened(choice) as view:
        run = _ComparisonRun(settings, choice, view, progress)
        variants = [run.column(number) for number in range(len(settings.variants))]
        source = run.source_column()
    seconds = round(time.monotonic() - start, 1)
    return Comparison(
        settings,
        view,
        source,
        tuple(variants),
        tuple(run.corners),
        tuple(run.boxes),
        tuple(dict.fromkeys(run.notes)),
        seconds,
    )


def clean_up(settings: CompareSettings, progress: Progress) -> None:
    """Delete the folder of a comparison, unless it is to be kept; what kin did not make is left, with a note."""
    if not settings.keep:
        clear(settings.folder, (variant.name for variant in settings.variants), note=progress.note)


def translation_of(settings: CompareSettings, variant: Variant) -> Settings:
    """The settings of the translation by one variant. TIN takes its statistics from a thumbnail, not from a table."""
    base, folder = settings.base, settings.folder
    output = replace(base.output, path=folder / f"{variant.name}.tif")
    table = None if variant.norm.method == "tin" else base.table or folder / TABLE
    return replace(base, norm=variant.norm, output=output, table=table)


def source_choice(base: Settings) -> SlideChoice:
    """Return the part of the slide that is translated, as a choice for the evaluation."""
    source = base.source
    return SlideChoice(source.slide, source.level, source.mpp, source.region, source.source_mpp, source.series)


def worst_corners(lines: Sequence[SeamLine], tissue: Floats, *, patch_px: int, count: int) -> list[Corner]:
    """Return up to ``count`` corners, worst first, no two of which touch the same patch.

    ``tissue`` (rows, cols) is the tissue fraction of each patch. Corners between four patches that are at least half
    tissue come before the others. A border that was not measured counts as an excess of 0.
    """
    meeting: defaultdict[tuple[int, int], float] = defaultdict(float)
    for line in lines:
        dx, dy = (0, line.length) if line.direction == "vertical" else (line.length, 0)
        for end in ((line.x, line.y), (line.x + dx, line.y + dy)):
            meeting[end] += line.excess / _MEETING
    ranked = []
    for (x, y), excess in meeting.items():
        row, col = y // patch_px, x // patch_px
        if 0 < row < tissue.shape[0] and 0 < col < tissue.shape[1]:
            full = bool((tissue[row - 1 : row + 1, col - 1 : col + 1] >= _TISSUE).all())
            ranked.append((not full, -excess, y, x))
    chosen: list[Corner] = []
    for _, excess, y, x in sorted(ranked):
        if len(chosen) == count:
            break
        if all(max(abs(x - other.x), abs(y - other.y)) >= 2 * patch_px for other in chosen):
            chosen.append(Corner(x, y, -excess))
    return chosen


class _Quiet:
    """Progress without the advice to leave no borders: a comparison shows them on purpose."""

    def __init__(self, progress: Progress) -> None:
        self.stage, self.outlook, self._told = progress.stage, progress.outlook, progress.note

    def note(self, message: str) -> None:
        """Pass on a message of another kind."""
        if not message.startswith(BORDERS):
            self._told(message)


class _ComparisonRun:
    """One comparison with its source open; ``notes``, ``corners`` and ``boxes`` are filled on the way."""

    def __init__(self, settings: CompareSettings, choice: SlideChoice, view: SlideView, progress: Progress) -> None:
        self._settings, self._choice, self._view, self._progress = settings, choice, view, progress
        self._mask: TissueMask = tissue_mask(view, settings.base.source.tissue)
        if not self._mask.mask.any():
            raise NoTissueError(f"{choice.path}: no tissue in it", "--tissue none translates everything")
        self.notes: list[str] = list(self._mask.notes)
        self._sampling = self._chosen_sampling()
        self._check_evaluation()
        self.corners: list[Corner | None] = []
        self.boxes: list[Box] = []

    def column(self, number: int) -> Column:
        """Make, measure and show one variant."""
        variant = self._settings.variants[number]
        self._progress.note(f"{variant.title} ({number + 1} of {len(self._settings.variants)})")
        with self._translated(variant) as file:
            found = self._evaluated(SlideChoice(file), source=self._choice)
            if found.seams is not None and found.seams.note is not None:
                self.notes.append(_LUMA_NOTE)
            if number == 0:
                self._choose_places(found.seams)
            with opened(SlideChoice(file)) as view:
                return self._shown(view, found, name=variant.name, title=variant.title)

    def source_column(self) -> Column:
        """Show the source, with the metrics that need no source."""
        found = None
        if self._sampling is not None:
            found = self._evaluated(self._choice, source=None)
        return self._shown(self._view, found, name="source", title="source")

    def _check_evaluation(self) -> None:
        """Raise, before any translation, the errors that the evaluation would raise after it."""
        wanted = self._evaluation(SlideChoice(self._choice.path), source=self._choice)
        names, _ = wanted.chosen()
        entries_for(names, wanted, resolve_device(wanted.device))
        seam_grid([self._view], wanted.seams.patch_px, wanted.seams.origin)
        if wanted.reference is not None:
            with opened(wanted.reference):
                pass

    @contextmanager
    def _translated(self, variant: Variant) -> Iterator[Path]:
        settings = translation_of(self._settings, variant)
        translate(settings, _Quiet(self._progress))
        yield settings.output.path
        if not self._settings.keep:
            _remove(settings.output)

    def _evaluated(self, slide: SlideChoice, *, source: SlideChoice | None) -> Evaluation:
        return evaluate(self._evaluation(slide, source=source), self._progress)

    def _evaluation(self, slide: SlideChoice, *, source: SlideChoice | None) -> EvaluationSettings:
        base, options = self._settings.base, self._settings.metrics
        names = options.names if self._sampling is not None else ()
        metrics = (*names, "seams") if source is not None else tuple(name for name in names if name in _ALONE)
        return EvaluationSettings(
            slide=slide,
            reference=None if options.reference is None else SlideChoice(options.reference),
            source=source,
            metrics=metrics,
            sampling=self._sampling or Sampling(tissue=base.source.tissue),
            seams=SeamChoice(base.norm.patch_px),
            inception=options.inception,
            features=options.features,
            device=str(resolve_devices(base.compute.device)[0]),
            workers=base.compute.workers,
        )

    def _chosen_sampling(self) -> Sampling | None:
        """Choose the largest tiles of which some are half tissue; None, with a note, if not even small ones are."""
        options, tissue = self._settings.metrics, self._settings.base.source.tissue
        for side in _TILE_PX:
            sampling = Sampling(options.tiles, options.seed, side, tissue)
            try:
                sampled_boxes(self._view, self._mask, sampling)
            except InputError as error:
                reason = error.message
            else:
                return sampling
        self.notes.append(f"only seams are measured: {reason}")
        return None

    def _choose_places(self, seams: SlideSeams | None) -> None:
        figure, patch_px = self._settings.figure, self._settings.base.norm.patch_px
        corners: list[Corner] = []
        if seams is not None:
            tissue = self._mask.fraction(Grid(self._view.size, patch_px))
            lines = seams.summary.lines(seams.statistic)
            corners = worst_corners(lines, tissue, patch_px=patch_px, count=figure.close_ups)
        self.corners = [*corners] or [None] * min(1, figure.close_ups)
        size = self._view.size
        centre = Corner(size.width // 2, size.height // 2, 0.0)
        side = figure.close_up_px or patch_px
        self.boxes = [close_up(c.x, c.y, side=side, size=size) for c in (corner or centre for corner in self.corners)]

    def _shown(self, view: SlideView, found: Evaluation | None, *, name: str, title: str) -> Column:
        return Column(
            name,
            title,
            overview(view, self._settings.figure.overview_px),
            tuple(view.read(box) for box in self.boxes),
            () if found is None else found.values,
            None if found is None else found.seams,
        )


def _as_dict(column: Column) -> dict[str, Any]:
    values = [asdict(value) for value in column.values]
    seams = None if column.seams is None else column.seams.as_dict()
    return {"name": column.name, "title": column.title, "values": values, "seams": seams}


def _remove(output: OutputSettings) -> None:
    for file in (output.path, output.record_path):
        with os_errors_as_output_errors(file):
            file.unlink()
