"""Evaluation on the way: the moving average translates a piece of slide as ``kin translate`` would, and is measured.

It draws from no random generator that training uses, so that a run with it gives the same weights as one without.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kin_cli.concurrency import prefetch
from kin_cli.evaluation.seams import SlideSeams, measure_slide_seams
from kin_cli.evaluation.settings import SeamChoice, SlideChoice
from kin_cli.evaluation.tiles import Panel, opened, tissue_boxes
from kin_cli.geometry import Size
from kin_cli.metrics.fid import FeatureExtractor, FeatureSums, FidTiles, frechet_distance
from kin_cli.metrics.seams import SeamGrid
from kin_cli.passes.devices import resolve_device
from kin_cli.progress import SilentProgress
from kin_cli.settings import ComputeSettings, Method, NormSettings, OutputSettings, Settings, SourceSettings
from kin_cli.slide.mask_file import tissue_mask
from kin_cli.store.files import os_errors_as_output_errors
from kin_cli.training.patches import PatchSource, Piece, find_pieces
from kin_cli.training.settings import TrainSettings
from kin_cli.translate import translate

METHODS: tuple[Method, ...] = ("in", "kin")
_REAL_NUMBERS = 1 << 41  # beyond any patch that training or its pictures draw
_SILENT = SilentProgress()


class Trial:
    """Translates the pieces with both methods, and measures seams and, with ``inception``, FID.

    The last translations stay in the ``evaluation`` folder of the run. Memory bound: that of a translation and of
    ``SeamMeter``; with FID its network and 34 MB for each set of tiles.
    Raises, when made, what would make an evaluation fail: no tissue in a piece, patches too small, no weights.
    """

    def __init__(self, settings: TrainSettings, target: PatchSource) -> None:
        self._settings, self._target = settings, target
        self._folder = settings.output / "evaluation"
        self.pieces = find_pieces(settings)
        for piece in self.pieces:
            SeamGrid(Size(piece.region.width, piece.region.height), settings.patches.patch_px)
        weights = settings.evaluation.inception
        self._extractor = None
        if weights is not None:
            self._extractor = FeatureExtractor(weights, device=resolve_device(settings.device))
        self._real: FeatureSums | None = None

    def run(self, generator: Path, step: int) -> list[dict[str, str]]:
        """Evaluate the generator of a file: a row for each piece and method; of several pieces FID is that of all."""
        rows = []
        for method in METHODS:
            tiles = None if self._extractor is None else FidTiles(self._extractor)
            own = [self._measured(piece, method, generator, tiles) for piece in self.pieces]
            named = [{"step": str(step), "image": piece.path.name, "method": method} for piece in self.pieces]
            figures = [_seam_figures(seams) for seams in own]
            if tiles is not None and len(own) > 1:
                named.append({"step": str(step), "image": "all", "method": method})
                figures.append({})
            if tiles is not None:
                figures[-1] |= self._fid(tiles.sums)
            rows += [name | found for name, found in zip(named, figures, strict=True)]
        self._forget_tables()
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
        """Both methods read one table: pass 1 runs once."""
        number = self.pieces.index(piece)
        if method == METHODS[0] and number == 0:
            self._forget_tables()  # what a run that was killed left
            with os_errors_as_output_errors(self._folder):
                self._folder.mkdir(exist_ok=True)
        output = self._folder / f"{piece.path.stem}-{number}-{method}.ome.tif"
        translate(
            Settings(
                source=SourceSettings(slide=piece.path, mpp=piece.mpp, region=piece.region),
                model=generator,
                output=OutputSettings(output, compression="deflate", overwrite=True),
                norm=NormSettings(method=method, patch_px=self._settings.patches.patch_px),
                compute=ComputeSettings(device=self._settings.device, workers=self._settings.workers),
                table=self._folder / f"table-{number}",
            ),
            _SILENT,
        )
        return output

    def _forget_tables(self) -> None:
        for number in range(len(self.pieces)):
            shutil.rmtree(self._folder / f"table-{number}", ignore_errors=True)

    def _fid(self, translated: FeatureSums) -> dict[str, str]:
        if self._real is None:
            self._real = self._real_sums()
        distance = frechet_distance(translated, self._real)
        return {"fid": f"{distance:.3f}" if np.isfinite(distance) else "", "fid_tiles": str(translated.count)}

    def _real_sums(self) -> FeatureSums:
        """Of target patches as training draws them."""
        assert self._extractor is not None
        tiles, workers = FidTiles(self._extractor), self._settings.workers
        numbers = range(_REAL_NUMBERS, _REAL_NUMBERS + self._settings.evaluation.patches)
        for patch in prefetch(self._target.draw, numbers, workers=workers, ahead=2 * workers):
            tiles.add(patch)
        return tiles.sums


def summary(rows: Sequence[dict[str, str]]) -> str:
    """One line about the rows of an evaluation."""
    return "; ".join(_words(row) for row in rows)


def _words(row: dict[str, str]) -> str:
    parts = []
    if row.get("seam_excess"):
        parts.append(f"seams {row['seam_excess']} ΔE (R* {row['seam_ratio'] or 'none'})")
    if row.get("fid"):
        parts.append(f"FID {row['fid']}")
    return f"{row['image']} {row['method']}: {', '.join(parts) or 'too small for figures'}"


def _seam_figures(seams: SlideSeams) -> dict[str, str]:
    found = seams.figure
    values = {"seam_ratio": found.headline, "seam_excess": found.excess}
    texts = {name: "" if value is None else f"{value:.4f}" for name, value in values.items()}
    return {**texts, "boundaries": str(found.n)}
