"""Evaluation during training: the EMA generator translates parts of slides as ``kin translate`` does, and is measured.

It uses none of training's random generators, so that the weights are those of a run without evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kin_cli.concurrency import prefetch
from kin_cli.errors import InputError, UsageError
from kin_cli.evaluation.seams import SlideSeams, measure_slide_seams
from kin_cli.evaluation.settings import SeamChoice, SlideChoice
from kin_cli.evaluation.tiles import Panel, opened, tissue_boxes
from kin_cli.geometry import Box, Grid, Size
from kin_cli.metrics.fid import FeatureExtractor, FeatureSums, FidTiles, frechet_distance
from kin_cli.metrics.seams import SeamGrid
from kin_cli.passes.devices import resolve_device
from kin_cli.progress import SilentProgress
from kin_cli.settings import (
    ComputeSettings,
    Method,
    OutputSettings,
    Settings,
    SourceSettings,
    TrustSettings,
    paper_settings,
)
from kin_cli.slide.open import find_images, open_slide
from kin_cli.slide.tissue import tissue_mask
from kin_cli.slide.view import SlideView, open_view
from kin_cli.store.files import os_errors_as_output_errors
from kin_cli.store.work import delete_work
from kin_cli.training.folder import EVALUATION
from kin_cli.training.patches import PatchSource
from kin_cli.training.settings import TrainSettings
from kin_cli.translation import translate

METHODS: tuple[Method, ...] = ("in", "kin")
_REAL_NUMBERS = 1 << 41  # patches from here on are drawn by neither training nor its sample pictures
_SIDE_PATCHES = 8  # largest side of a piece that is chosen automatically
_SILENT = SilentProgress()


@dataclass(frozen=True)
class Piece:
    """A part of a slide to evaluate on; ``region`` is in pixels at ``mpp`` (None: level 0)."""

    path: Path
    mpp: float | None
    region: Box


def find_pieces(settings: TrainSettings) -> list[Piece]:
    """The pieces to evaluate on, one per file, in the order of the files.

    Raises:
        UsageError: No patch fits into what ``source_region`` leaves out.
        InputError: A piece has no tissue.
    """
    evaluation, patches = settings.evaluation, settings.patches
    files = find_images(evaluation.slides) if evaluation.slides is not None else find_images(patches.source)[:1]
    pieces = []
    for file in files:
        with open_slide(file) as slide:
            mpp = patches.mpp if slide.mpp else None
            view = open_view(slide, mpp=mpp, region=evaluation.region)
            region = evaluation.region
            if region is None:
                trained = patches.source_region if evaluation.slides is None else None
                within = view.region if trained is None else largest_left_out(view.size, trained)
                region = _richest(view, within, patches.patch_px)
                view = open_view(slide, mpp=mpp, region=region)
            if not tissue_boxes(view, tissue_mask(view, "auto"), patches.patch_px):
                raise InputError(
                    f"{file}: no patch of the piece to evaluate is at least half tissue", "--evaluation-region"
                )
        pieces.append(Piece(file, mpp, region))
    return pieces


def largest_left_out(size: Size, region: Box) -> Box:
    """The largest rectangle of an image of ``size`` beside ``region``; empty if the region covers the image."""
    return max(_strips(size, region), key=lambda strip: strip.width * strip.height)


def _strips(size: Size, region: Box) -> Iterator[Box]:
    yield Box(0, 0, size.width, region.y)
    yield Box(0, region.bottom, size.width, size.height - region.bottom)
    yield Box(0, 0, region.x, size.height)
    yield Box(region.right, 0, size.width - region.right, size.height)


def _richest(view: SlideView, within: Box, patch_px: int) -> Box:
    """The box of up to 8 × 8 patches inside ``within`` with the most tissue; the first of equals."""
    rows, cols = min(_SIDE_PATCHES, within.height // patch_px), min(_SIDE_PATCHES, within.width // patch_px)
    if min(rows, cols) < 1:
        raise UsageError(
            f"{view.slide.path}: --source-region leaves no patch of {patch_px} px out to evaluate on",
            "--evaluation SLIDE, or --evaluation-region",
        )
    fraction = tissue_mask(view, "auto").fraction(Grid(view.size, patch_px)).astype(np.float64)
    top, left = -(-within.y // patch_px), -(-within.x // patch_px)
    bottom, right = max(within.bottom // patch_px, top + rows), max(within.right // patch_px, left + cols)
    fraction = np.pad(fraction, ((0, max(0, bottom - fraction.shape[0])), (0, max(0, right - fraction.shape[1]))))
    boxes = np.lib.stride_tricks.sliding_window_view(fraction[top:bottom, left:right], (rows, cols))
    row, col = np.unravel_index(int(boxes.sum((2, 3)).argmax()), boxes.shape[:2])
    x, y = (left + int(col)) * patch_px, (top + int(row)) * patch_px
    # a narrow strip may hold no whole cells of the grid: shift the box inside, off the grid
    return Box(
        min(x, within.right - cols * patch_px),
        min(y, within.bottom - rows * patch_px),
        cols * patch_px,
        rows * patch_px,
    )


class Trial:
    """Translates the pieces by both methods, and measures seams and, with ``inception``, FID.

    The last translations stay in the ``evaluation`` folder of the run. Memory bound: that of a translation and of
    ``SeamMeter``; for FID, its network and 34 MB per set of tiles.

    Raises:
        KinError: On construction, if evaluation would fail: no tissue in a piece, patches too small, no weights.
    """

    def __init__(self, settings: TrainSettings, target: PatchSource) -> None:
        self._settings, self._target = settings, target
        self._folder = settings.output / EVALUATION
        self.pieces = find_pieces(settings)
        for piece in self.pieces:
            SeamGrid(Size(piece.region.width, piece.region.height), settings.patches.patch_px)
        weights = settings.evaluation.inception
        self._extractor = None
        if weights is not None:
            self._extractor = FeatureExtractor(weights, device=resolve_device(settings.device))
        self._real: FeatureSums | None = None

    def run(self, generator: Path, step: int) -> list[dict[str, str]]:
        """Evaluate the file ``generator``: one row per piece and method.

        FID is that of all pieces together; if there are several, it has a row of its own.
        """
        rows = []
        for method in METHODS:
            tiles = None if self._extractor is None else FidTiles(self._extractor)
            seams = [self._measured(piece, method, generator, tiles) for piece in self.pieces]
            named = [{"step": str(step), "image": piece.path.name, "method": method} for piece in self.pieces]
            values = [_seam_values(measured) for measured in seams]
            if tiles is not None and len(seams) > 1:
                named.append({"step": str(step), "image": "all", "method": method})
                values.append({})
            if tiles is not None:
                values[-1] |= self._fid(tiles.sums)
            rows += [name | measured for name, measured in zip(named, values, strict=True)]
        self._remove_tables()
        return rows

    def _measured(self, piece: Piece, method: Method, generator: Path, tiles: FidTiles | None) -> SlideSeams:
        patch_px, workers = self._settings.patches.patch_px, self._settings.workers
        with (
            opened(SlideChoice(self._translated(piece, method, generator))) as view,
            opened(SlideChoice(piece.path, mpp=piece.mpp, region=piece.region)) as source,
        ):
            mask = tissue_mask(source, "auto")
            if tiles is not None:
                boxes = tissue_boxes(view, mask, patch_px)
                Panel([tiles]).run(boxes, view.read, source=None, stage="fid", progress=_SILENT, workers=workers)
            return measure_slide_seams(
                view, SeamChoice(patch_px), source=source, mask=mask, progress=_SILENT, workers=workers
            )

    def _translated(self, piece: Piece, method: Method, generator: Path) -> Path:
        """Translate a piece and return the file. Both methods share one table, so that pass 1 runs once."""
        number = self.pieces.index(piece)
        if method == METHODS[0] and number == 0:
            self._remove_tables()  # left over if a run was killed
            with os_errors_as_output_errors(self._folder):
                self._folder.mkdir(exist_ok=True)
        output = self._folder / f"{piece.path.stem}-{number}-{method}.ome.tif"
        translate(
            Settings(
                trust=TrustSettings(enabled=False),
                source=SourceSettings(slide=piece.path, mpp=piece.mpp, region=piece.region),
                model=generator,
                output=OutputSettings(output, compression="deflate", overwrite=True),
                norm=paper_settings(method, patch_px=self._settings.patches.patch_px),
                compute=ComputeSettings(device=self._settings.device, workers=self._settings.workers),
                table=self._folder / f"table-{number}",
            ),
            _SILENT,
        )
        return output

    def _remove_tables(self) -> None:
        for number in range(len(self.pieces)):
            delete_work(self._folder / f"table-{number}")

    def _fid(self, translated: FeatureSums) -> dict[str, str]:
        if self._real is None:
            self._real = self._real_sums()
        distance = frechet_distance(translated, self._real)
        return {"fid": f"{distance:.3f}" if np.isfinite(distance) else "", "fid_tiles": str(translated.count)}

    def _real_sums(self) -> FeatureSums:
        """Feature sums of target patches, drawn as in training."""
        assert self._extractor is not None
        tiles, workers = FidTiles(self._extractor), self._settings.workers
        numbers = range(_REAL_NUMBERS, _REAL_NUMBERS + self._settings.evaluation.patches)
        for patch in prefetch(self._target.draw, numbers, workers=workers, ahead=2 * workers):
            tiles.add(patch)
        return tiles.sums


def summary(rows: Sequence[dict[str, str]]) -> str:
    """The rows of an evaluation as one line of text."""
    return "; ".join(_row_text(row) for row in rows)


def _row_text(row: dict[str, str]) -> str:
    parts = []
    if row.get("seam_excess"):
        parts.append(f"seams {row['seam_excess']} ΔE (R* {row['seam_ratio'] or 'none'})")
    if row.get("fid"):
        parts.append(f"FID {row['fid']}")
    return f"{row['image']} {row['method']}: {', '.join(parts) or 'too small to measure'}"


def _seam_values(seams: SlideSeams) -> dict[str, str]:
    found = seams.result
    values = {"seam_ratio": found.headline, "seam_excess": found.excess}
    texts = {name: "" if value is None else f"{value:.4f}" for name, value in values.items()}
    return {**texts, "boundaries": str(found.n)}
