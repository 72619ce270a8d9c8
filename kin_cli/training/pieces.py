"""What is evaluated while a run goes on: pieces of slides, given or held out of training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kin_cli.errors import InputError, UsageError
from kin_cli.evaluation.views import tissue_boxes, tissue_of
from kin_cli.geometry import Box, Grid, Size
from kin_cli.slide.opening import open_slide
from kin_cli.slide.view import SlideView, open_view
from kin_cli.training.patches import find_images
from kin_cli.training.settings import TrainSettings

_SIDE_PATCHES = 8


@dataclass(frozen=True)
class Piece:
    """A part of a slide, in pixels at ``mpp`` (of level 0, where None)."""

    path: Path
    mpp: float | None
    region: Box


def find_pieces(settings: TrainSettings) -> list[Piece]:
    """What is translated, in the order of the files.

    Raises ``UsageError`` where nothing is held out that a patch fits into, ``InputError`` where there is no tissue.
    """
    choice, patches = settings.evaluation, settings.patches
    files = find_images(choice.slides) if choice.slides is not None else find_images(patches.source)[:1]
    pieces = []
    for file in files:
        with open_slide(file) as slide:
            mpp = patches.mpp if slide.mpp else None
            view = open_view(slide, mpp=mpp, region=choice.region)
            region = choice.region
            if region is None:
                kept_out = patches.source_region if choice.slides is None else None
                within = view.region if kept_out is None else largest_left_out(view.size, kept_out)
                region = _richest(view, within, patches.patch_px)
                view = open_view(slide, mpp=mpp, region=region)
            if not tissue_boxes(view, tissue_of(view, "auto"), patches.patch_px):
                raise InputError(
                    f"{file}: no patch of the piece to evaluate is at least half tissue", "--evaluation-region"
                )
        pieces.append(Piece(file, mpp, region))
    return pieces


def largest_left_out(size: Size, region: Box) -> Box:
    """The largest rectangle of an image beside a region of it; empty where the region leaves nothing out."""
    return max(_strips(size, region), key=lambda strip: strip.width * strip.height)


def _strips(size: Size, region: Box) -> Iterator[Box]:
    yield Box(0, 0, size.width, region.y)
    yield Box(0, region.bottom, size.width, size.height - region.bottom)
    yield Box(0, 0, region.x, size.height)
    yield Box(region.right, 0, size.width - region.right, size.height)


def _richest(view: SlideView, within: Box, patch_px: int) -> Box:
    """The square of up to 8 × 8 whole patches inside ``within`` that holds the most tissue, the first of several."""
    rows, cols = min(_SIDE_PATCHES, within.height // patch_px), min(_SIDE_PATCHES, within.width // patch_px)
    if min(rows, cols) < 1:
        raise UsageError(
            f"{view.slide.path}: --source-region leaves no patch of {patch_px} px out to evaluate on",
            "--evaluation SLIDE, or --evaluation-region",
        )
    share = tissue_of(view, "auto").share(Grid(view.size, patch_px)).astype(np.float64)
    top, left = -(-within.y // patch_px), -(-within.x // patch_px)
    bottom, right = max(within.bottom // patch_px, top + rows), max(within.right // patch_px, left + cols)
    share = np.pad(share, ((0, max(0, bottom - share.shape[0])), (0, max(0, right - share.shape[1]))))
    windows = np.lib.stride_tricks.sliding_window_view(share[top:bottom, left:right], (rows, cols))
    row, col = np.unravel_index(int(windows.sum((2, 3)).argmax()), windows.shape[:2])
    x, y = (left + int(col)) * patch_px, (top + int(row)) * patch_px
    # the grid may not fit a narrow strip: moved back inside, its first patch is no longer on a multiple
    return Box(
        min(x, within.right - cols * patch_px),
        min(y, within.bottom - rows * patch_px),
        cols * patch_px,
        rows * patch_px,
    )
