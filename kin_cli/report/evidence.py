"""Gather what a report shows from the finished file: pictures, seams, and metrics of slide and translation."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from kin_cli.concurrency import available_cores
from kin_cli.errors import InputError, UsageError
from kin_cli.evaluation.seams import SlideSeams, close_up, measure_slide_seams
from kin_cli.evaluation.settings import Sampling, SeamChoice, SlideChoice
from kin_cli.evaluation.tiles import Panel, opened, sampled_boxes
from kin_cli.geometry import Box, Grid, Pixels, Size
from kin_cli.metrics.seams import STATISTICS, SeamLine, SeamResult, SeamTable, by_direction, seam_result
from kin_cli.metrics.sobel import SobelGradient
from kin_cli.metrics.ssim import Ssim
from kin_cli.plan import source_view
from kin_cli.progress import Progress
from kin_cli.settings import Settings
from kin_cli.slide.tissue import TissueMask, tissue_mask
from kin_cli.slide.view import SlideView, overview

_OVERVIEW_PX = 1400
_CLOSE_UP_PX = 512
_CLOSE_UPS = 6
_TILES = 200
_TILE_PX = 512


@dataclass(frozen=True, eq=False)
class Place:
    """A close-up: the same box of source and translation at full resolution.

    ``line`` is the border in its middle, if there is one; (``l0_x``, ``l0_y``) its corner in pixels of level 0.
    """

    line: SeamLine | None
    box: Box
    l0_x: float
    l0_y: float
    before: Pixels
    after: Pixels


@dataclass(frozen=True)
class Sharpness:
    """Metrics over a sample of tiles: SSIM, and the mean Sobel magnitude in Y, in 8-bit units."""

    tiles: int
    ssim: float
    source_gradient: float
    gradient: float


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything that a report shows of the pixels.

    Attributes:
        before: overview of the source.
        after: overview of the translation.
        size: size of both at full resolution.
        mpp: µm per pixel at full resolution; None if unknown.
        seams: the seams of the translation against the source; None if they cannot be measured.
        own: by direction, the results of the source without a control: what texture alone gives.
        places: the close-ups.
        sharpness: metrics over tiles; None if no tile is at least half tissue.
        left_out: what could not be measured and why, one line each.
    """

    before: Pixels
    after: Pixels
    size: Size
    mpp: float | None
    seams: SlideSeams | None
    own: dict[str, SeamResult]
    places: tuple[Place, ...]
    sharpness: Sharpness | None
    left_out: tuple[str, ...]


def gather(settings: Settings, progress: Progress) -> Evidence:
    """Read source and translation again, and measure them.

    Memory bound: two overviews of 1400 px and the memory of ``overview``, ``SeamMeter`` and ``Panel``, and twelve
    close-ups of 512 px.

    Raises:
        InputError: source or translation cannot be read, or their sizes differ.
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
            source.mpp,
            seams,
            {} if seams is None else own_results(seams),
            tuple(pair.places(seams, settings.norm.patch_px)),
            sharpness,
            tuple(left_out),
        )


def own_results(seams: SlideSeams) -> dict[str, SeamResult]:
    """Return the seam results of the source slide itself, by direction; empty if there was no source."""
    table, index = seams.summary.table, STATISTICS.index(seams.statistic)
    if table.source is None:
        return {}
    alone = SeamTable(table.horizontal, table.cells, table.source, None)
    return {name: seam_result(part, index) for name, part in by_direction(alone).items()}


@dataclass(frozen=True, eq=False)
class _Pair:
    source: SlideView
    translation: SlideView
    mask: TissueMask
    progress: Progress
    workers: int

    def seams(self, patch_px: int) -> SlideSeams:
        return measure_slide_seams(
            self.translation,
            SeamChoice(patch_px),
            source=self.source,
            mask=self.mask,
            progress=self.progress,
            workers=self.workers,
        )

    def sharpness(self) -> Sharpness:
        boxes = sampled_boxes(self.source, self.mask, Sampling(_TILES, tile_px=_TILE_PX))
        ssim, before, after = Ssim(), SobelGradient(), SobelGradient()
        Panel([after], [ssim]).run(
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
        gradients = [metric.values()["sobel_y"] for metric in (before, after)]
        return Sharpness(len(boxes), ssim.values()["ssim"], *gradients)

    def places(self, seams: SlideSeams | None, patch_px: int) -> list[Place]:
        """Cut close-ups of the worst borders, without overlap; if none, of the patch with most tissue."""
        places: list[Place] = []
        for line in [] if seams is None else seams.summary.worst(seams.statistic):
            box = close_up(*line.middle, side=_CLOSE_UP_PX, size=self.source.size)
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


def _workers(settings: Settings) -> int:
    return settings.compute.workers or available_cores()
