"""Writing the report of a finished translation."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from kin_cli.concurrency import available_cores
from kin_cli.errors import InputError, UsageError
from kin_cli.evaluation.seams import SlideSeams, measure_slide_seams
from kin_cli.evaluation.settings import Sampling, SeamChoice, SlideChoice
from kin_cli.evaluation.tiles import Panel, opened, sampled_boxes
from kin_cli.geometry import Box, Grid, Size
from kin_cli.metrics.colour import Pixels
from kin_cli.metrics.seams import DIRECTIONS, STATISTICS, SeamLine, SeamResult, SeamTable, seam_figure
from kin_cli.metrics.sobel import SobelGradient
from kin_cli.metrics.ssim import Ssim
from kin_cli.plan import source_view
from kin_cli.progress import Progress
from kin_cli.settings import Settings
from kin_cli.slide.mask_file import tissue_mask
from kin_cli.slide.tissue import TissueMask
from kin_cli.slide.view import SlideView, overview

_OVERVIEW_PX = 1400
_CLOSE_UP_PX = 512
_CLOSE_UPS = 6
_TILES = 200
_TILE_PX = 512


# FROM report.evidence: What a report shows of a slide and its translation: pictures, seams and figures, gathered from the finished file.


@dataclass(frozen=True, eq=False)
class Place:
    """A close-up, the same box of source and translation at full resolution, and the boundary in its middle."""

    line: SeamLine | None
    box: Box
    l0_x: float
    l0_y: float
    before: Pixels
    after: Pixels


@dataclass(frozen=True)
class Sharpness:
    """Figures over a sample of tiles; the gradient is the mean Sobel magnitude in Y, of 8-bit values."""

    tiles: int
    ssim: float
    source_gradient: float
    gradient: float


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything that is measured for a report.

    ``own`` holds the seam figures of the source by itself, by direction: what texture alone gives. ``left_out`` says in
    a line each what could not be measured, and why.
    """

    before: Pixels
    after: Pixels
    size: Size
    seams: SlideSeams | None
    own: dict[str, SeamResult]
    places: tuple[Place, ...]
    sharpness: Sharpness | None
    left_out: tuple[str, ...]


def gather(settings: Settings, progress: Progress) -> Evidence:
    """Read source and translation again, and measure.

    Memory bound: two overviews of 1400 px with what ``overview`` needs, what ``SeamMeter`` and ``Panel`` need, and
    twelve close-ups of 512 px, whatever the slide's size.

    Raises ``InputError`` where either cannot be read or their sizes differ.
    """
    with ExitStack() as stack:
        source = source_view(settings.source)
        translation = stack.enter_context(opened(SlideChoice(settings.output.path)))
        pair = _Pair(source, translation, tissue_mask(source, settings.source.tissue), progress, _workers(settings))
        left_out = []
        seams = None
        try:
            seams = pair.seams(settings.norm.patch_px)
        except UsageError as error:
            left_out.append(error.message)
        sharpness = None
        try:
            sharpness = pair.sharpness()
        except InputError as error:
            left_out.append(error.message)
        return Evidence(
            overview(source, _OVERVIEW_PX),
            overview(translation, _OVERVIEW_PX),
            source.size,
            seams,
            {} if seams is None else own_figures(seams),
            tuple(pair.places(seams, settings.norm.patch_px)),
            sharpness,
            tuple(left_out),
        )


def own_figures(seams: SlideSeams) -> dict[str, SeamResult]:
    """The seam figures of the source alone, by direction, from the table that holds it as the control."""
    table, index = seams.report.table, STATISTICS.index(seams.statistic)
    if table.source is None:
        return {}
    alone = SeamTable(table.horizontal, table.cells, table.source, None)
    chosen = (np.ones(len(table), np.bool_), ~table.horizontal, table.horizontal)
    return {name: seam_figure(alone.where(rows), index) for name, rows in zip(DIRECTIONS, chosen, strict=True)}


@dataclass(frozen=True, eq=False)
class _Pair:
    source: SlideView
    translation: SlideView
    mask: TissueMask
    progress: Progress
    workers: int

    def seams(self, patch_px: int) -> SlideSeams:
        choice = SeamChoice(patch_px)
        return measure_slide_seams(
            self.translation,
            choice,
            source=self.source,
            mask=self.mask,
            progress=self.progress,
            workers=self.workers,
        )

    def sharpness(self) -> Sharpness:
        boxes = sampled_boxes(self.source, self.mask, Sampling(_TILES, tile_px=_TILE_PX))
        ssim, before, after = Ssim(), SobelGradient(), SobelGradient()
        both = Panel([after], [ssim])
        both.run(
            boxes,
            self.translation.read,
            source=self.source.read,
            stage="tiles",
            progress=self.progress,
            workers=self.workers,
        )
        Panel([before]).run(
            boxes, self.source.read, source=None, stage="source", progress=self.progress, workers=self.workers
        )
        gradients = [metric.figures()["sobel_y"] for metric in (before, after)]
        return Sharpness(len(boxes), ssim.figures()["ssim"], *gradients)

    def places(self, seams: SlideSeams | None, patch_px: int) -> list[Place]:
        """Close-ups of the worst boundaries, none showing what another shows; of the most tissue where none is bad."""
        places: list[Place] = []
        for line in [] if seams is None else seams.report.worst(seams.statistic):
            box = close_up(line, self.source.size)
            if len(places) < _CLOSE_UPS and all(box.intersection(place.box).empty for place in places):
                places.append(self._place(line, box))
        if not places:
            grid = Grid(self.source.size, max(patch_px, _CLOSE_UP_PX))
            row, col = divmod(int(np.argmax(self.mask.fraction(grid))), grid.cols)
            x, y = col * grid.step, row * grid.step
            places.append(self._place(None, Box(x, y, _CLOSE_UP_PX, _CLOSE_UP_PX).clipped(self.source.size)))
        return places

    def _place(self, line: SeamLine | None, box: Box) -> Place:
        l0_x, l0_y = self.source.out_to_l0(float(box.x), float(box.y))
        return Place(line, box, l0_x, l0_y, self.source.read(box), self.translation.read(box))


def close_up(line: SeamLine, size: Size) -> Box:
    """A square around the middle of a boundary, moved inside the image where it would reach beyond."""
    along = line.length // 2
    x, y = (line.x, line.y + along) if line.direction == "vertical" else (line.x + along, line.y)
    width, height = min(_CLOSE_UP_PX, size.width), min(_CLOSE_UP_PX, size.height)
    left, top = (
        min(max(0, at - side // 2), full - side)
        for at, side, full in ((x, width, size.width), (y, height, size.height))
    )
    return Box(left, top, width, height)


def _workers(settings: Settings) -> int:
    return settings.compute.workers or available_cores()
