"""Pass 1: measure the statistics of every patch with tissue (Eq. 3-4, the paper's caching phase) or of a thumbnail."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import groupby, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from kin_cli.concurrency import prefetch
from kin_cli.errors import InputError
from kin_cli.geometry import Cell, Floats, Grid, Pixels
from kin_cli.norm.table import StatTable
from kin_cli.passes.engine import Engine, Execution
from kin_cli.passes.quality import overflow
from kin_cli.slide.open import open_slide
from kin_cli.slide.view import SlideView, open_view, overview

Item = TypeVar("Item")
_THUMBNAIL_MAX_PX = 2048
_NARROW_STRIDE = 16  # up to this one generators are residual networks, which reflect their smallest maps by 1 px


def measure_slide(
    view: SlideView,
    grid: Grid,
    cells: Sequence[Cell],
    table: StatTable,
    *,
    side_px: int,
    execution: Execution,
    unreadable: Callable[[Cell], None] | None = None,
    not_finite: Callable[[Cell], None] = lambda _cell: None,
) -> int:
    """Measure the ``cells`` that are not yet in the table; return their number.

    The square of ``side_px`` in the middle of each patch is measured. If a patch cannot be read, raise ``InputError``;
    with ``unreadable``, call unreadable(cell) instead and store NaN, which has weight 0 in the kernel. Statistics that
    are not finite are stored as they are and have weight 0, too; not_finite(cell) is called for each such patch.

    Memory bound: the pixels of 2 · workers + batch patches, and the batches on the devices.
    """
    todo = [cell for cell in cells if cell not in table]
    batch, workers, progress = execution.batch, execution.workers, execution.progress

    def read(cell: Cell) -> tuple[Cell, Pixels | None]:
        try:
            return cell, view.read(grid.middle(cell, side_px))
        except InputError:
            if unreadable is None:
                raise
            unreadable(cell)
            return cell, None

    if len(todo) < len(cells):
        progress.note(f"continuing: {len(cells) - len(todo)} of {len(cells)} patches are measured")
    # closed at the end, also after a failure: no thread may read a slide that is closed
    with (
        progress.stage("measure", len(todo), "patches") as advance,
        closing(prefetch(read, todo, workers=workers, ahead=2 * workers + batch)) as patches,
        closing(execution.engines.run(_measured, batched(patches, batch), progress=progress)) as results,
    ):
        for found in results:
            for cell, stats in found:
                if stats is not None and not np.isfinite(stats).all():
                    not_finite(cell)
                table.write(cell, np.full((2, table.channels), np.nan, np.float32) if stats is None else stats)
            advance(len(found))
    return len(todo)


def _measured(engine: Engine, group: list[tuple[Cell, Pixels | None]]) -> list[tuple[Cell, Floats | None]]:
    """The statistics (2, ΣC) of each patch of a batch; None for a patch that could not be read."""
    readable = [pixels for _, pixels in group if pixels is not None]
    found = iter(engine.measure(readable) if readable else ())
    return [(cell, None if pixels is None else next(found)) for cell, pixels in group]


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of up to ``size`` consecutive items."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


def same_shape(group: list[tuple[Item, Pixels]]) -> Iterator[list[tuple[Item, Pixels]]]:
    """Split a group where the shape of the pixels changes: all images of a batch have one shape."""
    for _, run in groupby(group, key=lambda pair: pair[1].shape):
        yield list(run)


def thumbnail_statistics(
    view: SlideView, file: Path | None, *, engine: Engine, patch_px: int, squash: bool = False
) -> Floats:
    """Means and scales of a thumbnail, shape (2, ΣC): the whole slide's in TIN (thumbnail instance normalization).

    The thumbnail is the slide scaled to ``patch_px`` on its longer side, or the given image file, reduced to 2048 px if
    larger; the aspect ratio is kept. Reflection pads both sides to multiples of the generator's stride, and very narrow
    pictures to two of them, since the network itself reflects its smallest maps. ``squash`` makes the slide's thumbnail
    a square of ``patch_px`` instead.
    """
    if squash:
        pixels = _squashed(view, patch_px)
    else:
        pixels = overview(view, max_side=patch_px) if file is None else thumbnail_of(file)
    height, width = pixels.shape[:2]
    step = engine.stride
    least = 2 * step if step <= _NARROW_STRIDE else step
    padding = (*((0, max(least, -(-side // step) * step) - side) for side in (height, width)), (0, 0))
    stats: Floats = engine.measure(
        [np.pad(pixels, padding, mode="reflect" if min(height, width) > 1 else "edge")], alone=True
    )[0]
    if not np.isfinite(stats).all():
        raise overflow(f"its features of the thumbnail of {view.slide.path if file is None else file}")
    np.divide(1.0, stats[1], out=stats[1], where=stats[1] > 0)
    return stats


def _squashed(view: SlideView, side: int) -> Pixels:
    """The whole view as a square of ``side`` px, by area averaging; at most ``_THUMBNAIL_MAX_PX`` are read for it."""
    aspect = max(view.size.width, view.size.height) / min(view.size.width, view.size.height)
    image = Image.fromarray(overview(view, max_side=max(side, min(_THUMBNAIL_MAX_PX, math.ceil(side * aspect)))))
    return np.asarray(image.resize((side, side), Image.Resampling.BOX))


def thumbnail_of(file: Path) -> Pixels:
    """The picture in a file, at most 2048 px on its longer side. ``InputError`` if it cannot be read."""
    with open_slide(file) as image:
        return overview(open_view(image), max_side=_THUMBNAIL_MAX_PX)
