"""Pass 2: translate every window with the smoothed statistics (Eq. 7, the paper's inference phase), store tiles."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import chain

import numpy as np

from kin_cli.concurrency import WorkQueue, prefetch
from kin_cli.geometry import Box, Cell, Floats, Mask, Pixels
from kin_cli.norm.lookup import Lookup
from kin_cli.norm.table import Statistics
from kin_cli.passes.engine import Engine, Execution
from kin_cli.passes.measure import batched, same_shape
from kin_cli.passes.quality import NOT_FINITE, SOUND, contrast_of
from kin_cli.passes.windows import Block, Window, WindowGrid
from kin_cli.pyramid.codec import Codec
from kin_cli.pyramid.levels import PyramidLayout, pad_tile
from kin_cli.slide.tissue import TissueMask
from kin_cli.slide.view import SlideView
from kin_cli.store.blobs import BlobStore

ReadWindow = tuple[tuple[Window, Floats], Pixels]
"""A window, its statistics (r, c, 2, ΣC) and its pixels, halo included."""
Translated = tuple[Window, Pixels, Mask]
"""A window, its translated pixels, and which of its patches were finite numbers before they became bytes."""


@dataclass(frozen=True)
class TileStores:
    """The stores of pass 2.

    ``tiles``: encoded tiles of all levels. ``partial_tiles``: raw pixels of partial tiles, whose background is filled
    later. ``background``: for each translated tile the sum of its background pixels (R, G, B), their number, and the
    tile's flags (see ``quality``), as five float64.
    """

    tiles: BlobStore
    partial_tiles: BlobStore
    background: BlobStore


@dataclass(frozen=True)
class TileSink:
    """Encodes finished tiles of level 0 and puts them into the stores."""

    windows: WindowGrid
    layout: PyramidLayout
    codec: Codec
    stores: TileStores
    mask: TissueMask
    block_rows: range | None = None  # rows of blocks that this job translates; None: all

    def done(self, tile: Cell) -> bool:
        """Whether the tile's translated pixels and the sum of its background are in the stores."""
        index = self.windows.tiles.index(tile)
        if index not in self.stores.background:
            return False
        return index in self.stores.partial_tiles or self.layout.key(0, tile) in self.stores.tiles

    def keep(
        self, finished: tuple[Cell, Pixels], *, finite: bool = True, source: Callable[[], Pixels] | None = None
    ) -> None:
        """Store the sum of a tile's background and its flags, then the tile; its pixels are those inside the image.

        ``finite`` is False if the network's output was not finite somewhere in it; ``source`` reads the slide's pixels.
        """
        tile, pixels = finished
        box = self.windows.tiles.clipped(tile)
        index = self.windows.tiles.index(tile)
        background = self.mask.background(box)
        tissue = ~background
        if not self.windows.is_whole(tile):
            selected = self.windows.selected_pixels(box)
            background &= selected
            tissue &= selected
        flags = NOT_FINITE * (not finite) + (SOUND if source is None else contrast_of(pixels, tissue, source))
        total = [*pixels[background].sum(axis=0, dtype=np.float64), float(background.sum()), float(flags)]
        self.stores.background.put(index, np.array(total, "<f8").tobytes())
        if self.windows.is_whole(tile):
            padded = pad_tile(pixels, self.windows.tiles.step)
            self.stores.tiles.put(self.layout.key(0, tile), self.codec.encode(padded))
        else:
            self.stores.partial_tiles.put(index, zlib.compress(pixels.tobytes(), 1))


def apply_slide(
    view: SlideView,
    statistics: Statistics,
    sink: TileSink,
    *,
    lookup: Lookup,
    execution: Execution,
) -> int:
    """Translate the tiles that are not yet in the stores; return their number.

    Memory bound: 2 · workers + batch windows of pixels with their statistics, one block, 2 · workers blocks of tiles
    waiting to be encoded, and the batches on the devices.
    """
    grid, batch, workers, progress = sink.windows, execution.batch, execution.workers, execution.progress
    todo = list(grid.blocks(sink.done, rows=sink.block_rows))
    remaining = sum(len(block.tiles) for block in todo)
    if sink.block_rows is None and remaining < grid.translated_tiles:
        progress.note(
            f"continuing: {grid.translated_tiles - remaining} of {grid.translated_tiles} tiles are translated"
        )

    def keep(finished: tuple[Cell, Pixels, bool]) -> None:
        tile, pixels, finite = finished
        box = grid.tiles.clipped(tile)
        sink.keep((tile, pixels), finite=finite, source=lambda: view.read(box))

    def read(window: Window) -> ReadWindow:
        return (window, statistics_of(statistics, window, lookup)), view.read(window.read)

    with (
        progress.stage("apply", remaining, "tiles") as advance,
        WorkQueue(keep, workers=workers, limit=2 * workers) as queue,
        ExitStack() as ahead,
    ):
        windows = (window for block in todo for window in block.windows)
        # closed at the end, also after a failure: no thread may read a slide that is closed
        read_ahead = ahead.enter_context(closing(prefetch(read, windows, workers=workers, ahead=2 * workers + batch)))
        runs = (run for group in batched(read_ahead, batch) for run in same_shape(group))

        def translate(engine: Engine, run: list[ReadWindow]) -> list[Translated]:
            stats = np.stack([stats for (_, stats), _ in run])
            outputs, finite = engine.apply_checked([pixels for _, pixels in run], stats, lookup)
            return [(window, *made) for ((window, _), _), *made in zip(run, outputs, finite, strict=True)]

        translated = ahead.enter_context(closing(execution.engines.run(translate, runs, progress=progress)))
        results = chain.from_iterable(translated)
        for block in todo:
            for finished in _tiles_of(block, results, grid):
                queue.submit(finished)
            advance(len(block.tiles))
    return remaining


def statistics_of(statistics: Statistics, window: Window, lookup: Lookup) -> Floats:
    """Means and scales of the cells around a window, (r, c, 2, ΣC)."""
    rows, cols = lookup.span(window.rows), lookup.span(window.cols)
    first = window.first
    return statistics.block(
        range(first.row + rows.start, first.row + rows.stop), range(first.col + cols.start, first.col + cols.stop)
    )


def _tiles_of(block: Block, results: Iterator[Translated], grid: WindowGrid) -> Iterator[tuple[Cell, Pixels, bool]]:
    """Join a block's windows, without their halos, and cut them into its tiles, clipped to the image.

    The third value tells whether all translated pixels of the tile were finite numbers.
    """
    inside = block.box.clipped(grid.patches.size)
    canvas = np.zeros((inside.height, inside.width, 3), np.uint8)
    rows, cols = grid.cells_of(inside)
    broken = np.zeros((rows.stop - rows.start, cols.stop - cols.start), np.bool_)
    for _ in block.windows:
        window, pixels, finite = next(results)
        part = window.core.clipped(grid.patches.size)
        canvas[part.slices(inside)] = pixels[part.slices(window.core)]
        here = grid.cells_of(part)
        height, width = here[0].stop - here[0].start, here[1].stop - here[1].start
        top, left = here[0].start - rows.start, here[1].start - cols.start
        broken[top : top + height, left : left + width] = ~finite[:height, :width]
    broken &= grid.selected[rows, cols]
    for tile in block.tiles:
        box = grid.tiles.clipped(tile)
        down, across = grid.cells_of(box)
        patch_rows = slice(down.start - rows.start, down.stop - rows.start)
        patch_cols = slice(across.start - cols.start, across.stop - cols.start)
        yield tile, canvas[box.slices(inside)], not broken[patch_rows, patch_cols].any()


def unpack_partial(payload: bytes, box: Box) -> Pixels:
    """The pixels of a partial tile stored by ``TileSink.keep``: (box.height, box.width, 3), writable."""
    flat = np.frombuffer(bytearray(zlib.decompress(payload)), np.uint8)
    return flat.reshape(box.height, box.width, 3)
