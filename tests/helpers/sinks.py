"""Sinks of finished tiles over a small image, all of which is tissue: 3 × 4 patches of 16 px in tiles of 32 px."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from kin_cli.geometry import Cell, Grid, Pixels, Size
from kin_cli.passes.apply import TileSink, TileStores
from kin_cli.passes.windows import WindowGrid
from kin_cli.pyramid.codec import Codec
from kin_cli.pyramid.levels import PyramidLayout
from kin_cli.slide.tissue import TissueMask, all_tissue
from kin_cli.slide.view import SlideView, open_view
from kin_cli.store.blobs import BlobStore
from tests.helpers.slides import ArraySlide

SIZE = Size(61, 45)
PATCH, TILE = 16, 32
LAYOUT = PyramidLayout(SIZE, TILE, min_side=1024)


class SinkStores:
    """The three stores of a sink in a folder."""

    def __init__(self, folder: Path) -> None:
        capacity = LAYOUT.tile_count
        self._stores = [BlobStore(folder, name, capacity=capacity) for name in ("tiles", "partial", "background")]
        self.stores = TileStores(*self._stores)

    def base(self, sink: TileSink) -> Pixels:
        """The pixels of level 0."""
        pixels = np.zeros((SIZE.height, SIZE.width, 3), np.uint8)
        for tile in sink.windows.tiles:
            box = sink.windows.tiles.clipped(tile)
            stored = sink.codec.decode(self.stores.tiles.get(LAYOUT.key(0, tile)), TILE)
            pixels[box.slices()] = stored[: box.height, : box.width]
        return pixels

    def __enter__(self) -> SinkStores:
        return self

    def __exit__(self, *_: object) -> None:
        for store in self._stores:
            store.close()


def sink_of(
    stores: SinkStores,
    *,
    selected: Iterable[Cell],
    mask: TissueMask | None = None,
    halo_px: int = 0,
    blend_px: int = 0,
) -> TileSink:
    """A lossless sink of the selected patches."""
    chosen = np.zeros((3, 4), bool)
    for cell in selected:
        chosen[cell] = True
    patches = Grid(SIZE, PATCH)
    sizes = {"window_px": PATCH, "block_px": TILE, "halo_px": halo_px, "blend_px": blend_px}
    grid = WindowGrid(patches, LAYOUT.grid(0), chosen, **sizes)
    return TileSink(grid, LAYOUT, Codec("deflate"), stores.stores, mask or all_tissue(SIZE))


def view_of(pixels: Pixels) -> SlideView:
    """A view of all of a picture."""
    return open_view(ArraySlide(pixels))
