"""Opening what is compared, and choosing the tiles."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from kin_cli.errors import InputError
from kin_cli.evaluation.settings import Sampling, SlideChoice
from kin_cli.geometry import Box, Grid
from kin_cli.slide.mask import TissueMask, all_tissue
from kin_cli.slide.mask_file import load_mask
from kin_cli.slide.opening import open_slide
from kin_cli.slide.tissue import detect_tissue
from kin_cli.slide.view import SlideView, open_view

_LEAST_TISSUE = 0.5  # of a tile; the rest of it may be glass


@contextmanager
def opened(choice: SlideChoice) -> Iterator[SlideView]:
    """The chosen part of a slide, for as long as the block runs."""
    with open_slide(choice.path, mpp=choice.source_mpp) as slide:
        yield open_view(slide, level=choice.level, mpp=choice.mpp, region=choice.region)


def check_same_size(view: SlideView, source: SlideView) -> None:
    """Raise ``InputError`` unless a translation and its source match pixel by pixel."""
    if view.size != source.size:
        raise InputError(
            f"{source.slide.path}: {source.size} pixels, but {view.slide.path} has {view.size}",
            "the source is what was translated: say which part of it by --source-level and --source-region",
        )


def tissue_of(view: SlideView, tissue: str | Path) -> TissueMask:
    """The tissue of a view: detected ("auto"), everything ("none" and photographs), or as a file says."""
    if isinstance(tissue, Path):
        return load_mask(tissue, view)
    if tissue == "none" or not view.slide.has_glass_by_default:
        return all_tissue(view.size)
    return detect_tissue(view)


def sampled_boxes(view: SlideView, mask: TissueMask, sampling: Sampling) -> list[Box]:
    """The tiles that count: those of ``tissue_boxes``, or as many of them as the sampling draws, in reading order.

    Memory bound: 200 bytes per tile.

    Raises:
        InputError: there is none.
    """
    found = tissue_boxes(view, mask, sampling.patch_px)
    if not found:
        side = sampling.patch_px
        hint = "take smaller tiles by --patch-size, or all of them by --tissue none"
        raise InputError(f"{view.slide.path}: no tile of {side}×{side} px is at least half tissue", hint)
    if sampling.patches is not None and sampling.patches < len(found):
        drawn = np.random.default_rng(sampling.seed).choice(len(found), sampling.patches, replace=False)
        found = [found[number] for number in np.sort(drawn)]
    return found


def tissue_boxes(view: SlideView, mask: TissueMask, tile_px: int) -> list[Box]:
    """Tiles of a regular grid that lie wholly in the view and are at least half tissue, in reading order."""
    grid = Grid(view.size, tile_px)
    share = mask.share(grid)
    return [grid.box(cell) for cell in grid if share[cell] >= _LEAST_TISSUE and grid.clipped(cell) == grid.box(cell)]
