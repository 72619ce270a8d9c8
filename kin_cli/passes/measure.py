"""Pass 1: the statistics of every patch with tissue go into the table (Eq. 3-4, the paper's caching phase)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from kin_cli.concurrency import prefetch
from kin_cli.errors import InputError
from kin_cli.geometry import Cell, Grid
from kin_cli.norm.table import StatTable
from kin_cli.passes.engine import Engine, Execution
from kin_cli.slide.open import open_slide
from kin_cli.slide.view import SlideView, open_view, overview

Item = TypeVar("Item")
_LARGEST_PX = 2048


# FROM passes.measure: Pass 1: the statistics of every patch with tissue go into the table (Eq. 3-4, the paper's caching phase).


def measure_slide(
    view: SlideView,
    grid: Grid,
    cells: Sequence[Cell],
    table: StatTable,
    *,
    side_px: int,
    execution: Execution,
    unreadable: Callable[[Cell], None] | None = None,
) -> int:
    """Measure those of ``cells`` that are not yet in the table; returns how many that were.

    What is measured of each is the square of ``side_px`` in its middle. One that cannot be read is an error, or, where
    ``unreadable`` is given, is told to it and gets NaN, which weighs nothing in the kernel.

    Memory bound: 2 · workers + batch patches of pixels, and what the devices work on.
    """
    todo = [cell for cell in cells if cell not in table]
    batch, workers, progress = execution.batch, execution.workers, execution.progress

    def read(cell: Cell) -> tuple[Cell, NDArray[np.uint8] | None]:
        try:
            return cell, view.read(grid.middle(cell, side_px))
        except InputError:
            if unreadable is None:
                raise
            unreadable(cell)
            return cell, None

    if len(todo) < len(cells):
        progress.note(f"continuing: {len(cells) - len(todo)} of {len(cells)} patches are measured")
    with progress.stage("measure", len(todo), "patches") as advance:
        patches = prefetch(read, todo, workers=workers, ahead=2 * workers + batch)
        for found in execution.engines.run(_measured, batched(patches, batch), progress=progress):
            for cell, stats in found:
                table.write(cell, np.full((2, table.channels), np.nan, np.float32) if stats is None else stats)
            advance(len(found))
    return len(todo)


def _measured(
    engine: Engine, group: list[tuple[Cell, NDArray[np.uint8] | None]]
) -> list[tuple[Cell, NDArray[np.float32] | None]]:
    """The statistics of a batch of patches, None for those that could not be read."""
    readable = [pixels for _, pixels in group if pixels is not None]
    found = iter(engine.measure(readable) if readable else ())
    return [(cell, None if pixels is None else next(found)) for cell, pixels in group]


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of up to ``size`` consecutive items."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


def same_shape(group: list[tuple[Item, NDArray[np.uint8]]]) -> Iterator[list[tuple[Item, NDArray[np.uint8]]]]:
    """A group cut where the pixels' shape changes: a batch needs one shape."""
    for _, run in groupby(group, key=lambda pair: pair[1].shape):
        yield list(run)


# FROM passes.thumbnail: TIN: one set of statistics for the whole slide, taken from a thumbnail (Thumbnail Instance Normalization).


def thumbnail_statistics(view: SlideView, file: Path | None, *, engine: Engine, patch_px: int) -> NDArray[np.float32]:
    """Means and scales of a thumbnail, shape (2, ΣC).

    The thumbnail is the slide scaled to ``patch_px`` on its longer side, its aspect kept, or the given image file as
    it is (reduced to 2048 px where larger). Its sides are reflected up to a multiple of the patch size's granularity.
    """
    if file is None:
        pixels = overview(view, max_side=patch_px)
    else:
        with open_slide(file) as image:
            pixels = overview(open_view(image), max_side=_LARGEST_PX)
    height, width = pixels.shape[:2]
    step = engine.stride
    padding = ((0, -height % step), (0, -width % step), (0, 0))
    stats: NDArray[np.float32] = engine.measure(
        [np.pad(pixels, padding, mode="reflect" if min(height, width) > 1 else "edge")]
    )[0]
    np.divide(1.0, stats[1], out=stats[1], where=stats[1] > 0)
    return stats
