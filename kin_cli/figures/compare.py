"""What is to be compared, and by which figures."""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kin_cli import __version__
from kin_cli.errors import InputError, UsageError
from kin_cli.evaluation.run import Evaluation, MetricValue, entries_for, evaluate
from kin_cli.evaluation.seams import SlideSeams, seam_grid
from kin_cli.evaluation.settings import EvaluationSettings, Sampling, SeamChoice, SlideChoice
from kin_cli.evaluation.tiles import opened, sampled_boxes
from kin_cli.geometry import Box, Grid, Size
from kin_cli.metrics.seams import SeamLine, SeamResult
from kin_cli.passes.devices import resolve_device, resolve_devices
from kin_cli.progress import Progress
from kin_cli.settings import NormSettings, OutputSettings, Settings
from kin_cli.slide.mask_file import tissue_mask
from kin_cli.slide.tissue import TissueMask
from kin_cli.slide.view import SlideView, overview
from kin_cli.store.files import os_errors_as_output_errors, working_folder
from kin_cli.translate import translate

_MEETING = 4  # boundaries at a corner
_TISSUE = 0.5  # of each of the four patches: where a reader would look
Pixels = npt.NDArray[np.uint8]

_TILE_PX = (512, 256, 128)  # of the metrics that sample tiles: the largest of which a few fit
# the translations are lossless, so it is the source that made the metric leave colour out
_LUMA_NOTE = (
    "The source is JPEG whose chroma is subsampled in tiles on this very grid, which looks like seams in colour: "
    "R* and excess are of luma."
)
_ALONE = ("sobel", "piqe")  # metrics that the source itself has


# FROM compare.settings: What is to be compared, and by which figures.


@dataclass(frozen=True)
class Variant:
    """One way to normalise: ``name`` for files, ``title`` for people."""

    name: str
    title: str
    norm: NormSettings


@dataclass(frozen=True)
class Look:
    """What is shown: ``close_ups`` places, squares of ``close_up_px`` pixels (None: as large as a patch)."""

    close_ups: int = 3
    close_up_px: int | None = None
    overview_px: int = 800


@dataclass(frozen=True)
class Yardstick:
    """What is measured beside the seams, over ``tiles`` tiles with tissue drawn with ``seed``.

    ``metrics`` are names for ``EvaluationSettings``; None takes SSIM, Sobel and PIQE, with a ``reference`` (a real
    slide of the target stain) the histogram too, and with ``inception`` weights FID.
    """

    metrics: tuple[str, ...] | None = None
    reference: Path | None = None
    inception: Path | None = None
    tiles: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if self.inception is not None and self.reference is None:
            raise UsageError("--inception alone measures nothing", "FID compares with a --reference slide")

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics, without the seams, which are always measured."""
        if self.metrics is not None:
            return tuple(name for name in self.metrics if name != "seams")
        further = () if self.reference is None else ("histogram",)
        return ("ssim", "sobel", "piqe", *further, *(() if self.inception is None else ("fid",)))


@dataclass(frozen=True)
class CompareSettings:
    """A comparison of variants of one translation.

    Attributes:
        base: the translation; its norm settings and output path are those of each variant in turn.
        variants: in the order in which they are made; the first decides which places are shown.
        folder: where translations lie while they are needed, and the table unless ``base.table`` says where.
        keep: leave folder, translations and table there for another time.
    """

    base: Settings
    variants: tuple[Variant, ...]
    folder: Path
    keep: bool = False
    look: Look = Look()
    yardstick: Yardstick = Yardstick()


# FROM compare.places: Where to look: the corners of the patch grid at which the seams are worst.


@dataclass(frozen=True)
class Corner:
    """A corner where four patches meet, and the mean excess of the boundaries that meet there."""

    x: int
    y: int
    excess: float


def worst_corners(
    lines: Sequence[SeamLine], tissue: npt.NDArray[np.float32], *, patch_px: int, count: int
) -> list[Corner]:
    """Up to ``count`` corners, worst first, none of which shares a patch with another.

    ``tissue`` (rows, cols) is the share of tissue of every patch. Corners all of whose patches are at least half tissue
    come before the others. A boundary that was not measured counts as one without excess.
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


def close_up(x: int, y: int, *, side: int, size: Size) -> Box:
    """A square around a place, moved as far as it must be to lie inside an image of ``size``, no larger than that."""
    width, height = min(side, size.width), min(side, size.height)
    left = min(max(0, x - width // 2), size.width - width)
    upper = min(max(0, y - height // 2), size.height - height)
    return Box(left, upper, width, height)


# FROM compare.run: The comparison itself: translate, measure, cut out what is shown, and on to the next variant.


@dataclass(frozen=True, eq=False)
class Column:
    """One picture of the slide: the source, or a variant with its seams."""

    name: str
    title: str
    overview: Pixels
    close_ups: tuple[Pixels, ...]
    figures: tuple[MetricValue, ...]
    seams: SlideSeams | None = None

    def seam(self, direction: str = "both") -> SeamResult | None:
        """The headline of the seam metric, by direction; None of the source."""
        return None if self.seams is None else self.seams.report.figure(self.seams.statistic, direction)


@dataclass(frozen=True, eq=False)
class Comparison:
    """What came out: the source, every variant, and the places of the close-ups with their corners."""

    settings: CompareSettings
    view: SlideView
    source: Column
    variants: tuple[Column, ...]
    corners: tuple[Corner | None, ...]
    boxes: tuple[Box, ...]
    notes: tuple[str, ...]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Everything but the pictures, ready for JSON; places in pixels of what was translated and of level 0."""
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
    """Make every variant, measure it, cut out what is shown, and remove it again unless it is kept.

    Pass 1 runs once, its table serves every variant. One translation at a time lies on the disk unless all are kept.
    What is left in the folder, ``clean_up`` removes when the result is safe.

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


def clean_up(settings: CompareSettings) -> None:
    """Remove the folder with what a comparison left in it, unless it is to be kept."""
    if not settings.keep:
        with os_errors_as_output_errors(settings.folder):
            shutil.rmtree(settings.folder)


def source_choice(base: Settings) -> SlideChoice:
    """The part of the slide that is translated, as the evaluation names it."""
    source = base.source
    return SlideChoice(source.slide, source.level, source.mpp, source.region, source.source_mpp)


class _ComparisonRun:
    """One comparison under way."""

    def __init__(self, settings: CompareSettings, choice: SlideChoice, view: SlideView, progress: Progress) -> None:
        self._settings, self._choice, self._view, self._progress = settings, choice, view, progress
        self._mask: TissueMask = tissue_mask(view, settings.base.source.tissue)
        self.notes: list[str] = []
        self._sampling = self._chosen_sampling()
        self._refuse_what_cannot_be_measured()
        self.corners: list[Corner | None] = []
        self.boxes: list[Box] = []

    def _refuse_what_cannot_be_measured(self) -> None:
        """Raise now what the evaluation would raise after the first translation."""
        wanted = self._evaluation(SlideChoice(self._choice.path), source=self._choice)
        names, _ = wanted.chosen()
        entries_for(names, wanted, resolve_device(wanted.device))
        seam_grid([self._view], wanted.seams.patch_px, wanted.seams.origin)
        if wanted.reference is not None:
            with opened(wanted.reference):
                pass

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
        """The source with what can be measured of it alone."""
        found = None
        if self._sampling is not None:
            found = self._evaluated(self._choice, source=None)
        return self._shown(self._view, found, name="source", title="source")

    @contextmanager
    def _translated(self, variant: Variant) -> Iterator[Path]:
        base, folder = self._settings.base, self._settings.folder
        output = replace(base.output, path=folder / f"{variant.name}.tif")
        # TIN takes its statistics from a thumbnail
        table = None if variant.norm.method == "tin" else base.table or folder / "table"
        translate(replace(base, norm=variant.norm, output=output, table=table), self._progress)
        yield output.path
        if not self._settings.keep:
            _remove(output)

    def _evaluated(self, slide: SlideChoice, *, source: SlideChoice | None) -> Evaluation:
        return evaluate(self._evaluation(slide, source=source), self._progress)

    def _evaluation(self, slide: SlideChoice, *, source: SlideChoice | None) -> EvaluationSettings:
        base, yardstick = self._settings.base, self._settings.yardstick
        names = yardstick.names if self._sampling is not None else ()
        metrics = (*names, "seams") if source is not None else tuple(name for name in names if name in _ALONE)
        return EvaluationSettings(
            slide=slide,
            reference=None if yardstick.reference is None else SlideChoice(yardstick.reference),
            source=source,
            metrics=metrics,
            sampling=self._sampling or Sampling(tissue=base.source.tissue),
            seams=SeamChoice(base.norm.patch_px),
            inception=yardstick.inception,
            device=str(resolve_devices(base.compute.device)[0]),
            workers=base.compute.workers,
        )

    def _chosen_sampling(self) -> Sampling | None:
        """Tiles of the largest side of which some are half tissue; None, with a note, where even small ones are not."""
        yardstick, tissue = self._settings.yardstick, self._settings.base.source.tissue
        for side in _TILE_PX:
            sampling = Sampling(yardstick.tiles, yardstick.seed, side, tissue)
            try:
                sampled_boxes(self._view, self._mask, sampling)
            except InputError as error:
                reason = error.message
            else:
                return sampling
        self.notes.append(f"only seams are measured: {reason}")
        return None

    def _choose_places(self, seams: SlideSeams | None) -> None:
        look, patch_px = self._settings.look, self._settings.base.norm.patch_px
        corners: list[Corner] = []
        if seams is not None:
            tissue = self._mask.fraction(Grid(self._view.size, patch_px))
            lines = seams.report.lines(seams.statistic)
            corners = worst_corners(lines, tissue, patch_px=patch_px, count=look.close_ups)
        self.corners = [*corners] or [None] * min(1, look.close_ups)
        size = self._view.size
        centre = Corner(size.width // 2, size.height // 2, 0.0)
        side = look.close_up_px or patch_px
        self.boxes = [close_up(c.x, c.y, side=side, size=size) for c in (corner or centre for corner in self.corners)]

    def _shown(self, view: SlideView, found: Evaluation | None, *, name: str, title: str) -> Column:
        return Column(
            name,
            title,
            overview(view, self._settings.look.overview_px),
            tuple(view.read(box) for box in self.boxes),
            () if found is None else found.figures,
            None if found is None else found.seams,
        )


def _as_dict(column: Column) -> dict[str, Any]:
    figures = [asdict(figure) for figure in column.figures]
    seams = None if column.seams is None else column.seams.as_dict()
    return {"name": column.name, "title": column.title, "figures": figures, "seams": seams}


def _remove(output: OutputSettings) -> None:
    for file in (output.path, output.record_path):
        with os_errors_as_output_errors(file):
            file.unlink()
