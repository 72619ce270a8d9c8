"""Pass 2: every window is translated with the smoothed statistics and cut into tiles (Eq. 7, the inference phase)."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from kin_cli.concurrency import Sink, prefetch
from kin_cli.geometry import Box, Cell
from kin_cli.norm.lookup import Lookup
from kin_cli.norm.table import Statistics
from kin_cli.passes.engine import Engine, Fleet
from kin_cli.passes.measure import batched, same_shape
from kin_cli.passes.windows import Block, Window, WindowPlan
from kin_cli.progress import Reporter
from kin_cli.pyramid.codec import Codec
from kin_cli.pyramid.layout import PyramidLayout
from kin_cli.pyramid.levels import pad_tile
from kin_cli.slide.tissue import TissueMask
from kin_cli.slide.view import SlideView
from kin_cli.store.blobs import BlobStore

Pixels = NDArray[np.uint8]
Read = tuple[tuple[Window, NDArray[np.float32]], Pixels]


@dataclass(frozen=True)
class TileStores:
    """Where finished tiles go.

    ``tiles`` holds encoded tiles of all levels; ``mixed`` the raw pixels of tiles whose glass still has to be filled;
    ``glass`` for each translated tile the sum of its glass pixels (R, G, B) and their number, four float64.
    """

    tiles: BlobStore
    mixed: BlobStore
    glass: BlobStore


@dataclass(frozen=True)
class Painter:
    """Turns finished pixels of level 0 into what the stores keep."""

    plan: WindowPlan
    layout: PyramidLayout
    codec: Codec
    stores: TileStores
    mask: TissueMask
    block_rows: range | None = None  # of one job among several; None: all

    def done(self, tile: Cell) -> bool:
        """The tile's translated pixels and the colour of its glass are in the stores."""
        index = self.plan.tiles.index(tile)
        if index not in self.stores.glass:
            return False
        return index in self.stores.mixed or self.layout.key(0, tile) in self.stores.tiles

    def keep(self, finished: tuple[Cell, Pixels]) -> None:
        """Store one tile (its part inside the image), after what its glass looks like."""
        tile, pixels = finished
        box = self.plan.tiles.clipped(tile)
        index = self.plan.tiles.index(tile)
        glass = self.mask.glass(box)
        if not self.plan.is_whole(tile):
            glass &= self.plan.selected_pixels(box)
        total = [*pixels[glass].sum(axis=0, dtype=np.float64), float(glass.sum())]
        self.stores.glass.put(index, np.array(total, "<f8").tobytes())
        if self.plan.is_whole(tile):
            padded = pad_tile(pixels, self.plan.tiles.step)
            self.stores.tiles.put(self.layout.key(0, tile), self.codec.encode(padded))
        else:
            self.stores.mixed.put(index, zlib.compress(pixels.tobytes(), 1))


def apply_slide(
    view: SlideView,
    table: Statistics,
    painter: Painter,
    *,
    fleet: Fleet,
    lookup: Lookup,
    batch: int,
    workers: int,
    reporter: Reporter,
) -> int:
    """Translate every tile that is not yet in the stores; returns how many that were.

    Memory bound: 2·``workers`` + ``batch`` windows of pixels with the cells they read, one block, 2·``workers``
    blocks of tiles waiting to be encoded, and what the fleet's devices work on.
    """
    plan = painter.plan
    todo = list(plan.blocks(painter.done, rows=painter.block_rows))
    remaining = sum(len(block.tiles) for block in todo)
    if painter.block_rows is None and remaining < plan.translated_tiles:
        reporter.note(
            f"continuing: {plan.translated_tiles - remaining} of {plan.translated_tiles} tiles are translated"
        )

    def read(window: Window) -> Read:
        return (window, _cells(table, window, lookup)), view.read(window.read)

    with (
        reporter.stage("apply", remaining) as advance,
        Sink(painter.keep, workers=workers, limit=2 * workers) as sink,
    ):
        windows = (window for block in todo for window in block.windows)
        read_ahead = prefetch(read, windows, workers=workers, ahead=2 * workers + batch)
        runs = (run for group in batched(read_ahead, batch) for run in same_shape(group))

        def translate(engine: Engine, run: list[Read]) -> list[tuple[Window, Pixels]]:
            cells = np.stack([cells for (_, cells), _ in run])
            outputs = engine.apply([pixels for _, pixels in run], cells, lookup)
            return [(window, pixels) for ((window, _), _), pixels in zip(run, outputs, strict=True)]

        results = chain.from_iterable(fleet.run(translate, runs, reporter=reporter))
        for block in todo:
            for tile, pixels in _tiles_of(block, results, plan):
                sink.submit((tile, pixels))
            advance(len(block.tiles))
    return remaining


def _cells(table: Statistics, window: Window, lookup: Lookup) -> NDArray[np.float32]:
    rows, cols = lookup.span(window.rows), lookup.span(window.cols)
    first = window.first
    return table.block(
        range(first.row + rows.start, first.row + rows.stop), range(first.col + cols.start, first.col + cols.stop)
    )


def _tiles_of(
    block: Block, results: Iterator[tuple[Window, Pixels]], plan: WindowPlan
) -> Iterator[tuple[Cell, Pixels]]:
    """Put the block's windows together and cut them into its tiles, each clipped to the image."""
    inside = block.box.clipped(plan.patches.size)
    canvas = np.zeros((inside.height, inside.width, 3), np.uint8)
    for _ in block.windows:
        window, pixels = next(results)
        part = window.core.clipped(plan.patches.size)
        canvas[part.slices(inside)] = pixels[part.slices(window.core)]
    for tile in block.tiles:
        yield tile, canvas[plan.tiles.clipped(tile).slices(inside)]


def unpack_mixed(payload: bytes, box: Box) -> Pixels:
    """The pixels that ``Painter.keep`` stored for a mixed tile, writable, shape (box.height, box.width, 3)."""
    flat = np.frombuffer(bytearray(zlib.decompress(payload)), np.uint8)
    return flat.reshape(box.height, box.width, 3)
