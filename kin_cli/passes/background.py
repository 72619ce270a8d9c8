"""Fill the untranslated background so that no edge is visible between it and translated background."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from kin_cli.concurrency import prefetch
from kin_cli.geometry import Box, Cell, Floats, Grid, Pixels
from kin_cli.norm.lookup import Lookup
from kin_cli.passes.apply import TileSink, unpack_partial
from kin_cli.progress import Progress
from kin_cli.pyramid.levels import pad_tile
from kin_cli.slide.view import SlideView
from kin_cli.store.blobs import BlobStore

BackgroundMode = Literal["fill", "keep", "white"]

_SIGMA_TILES = 1.0  # standard deviation of the colour smoothing; beyond its reach the slide's mean colour is used
_PRIOR = 1e-3  # weight of the slide's mean colour, relative to 1 for a tile full of background
_MIN_BACKGROUND_FRACTION = 0.001  # least background fraction of a tile whose colour is used
_FLAT = 1 / 64  # grey levels: less difference in a tile is one colour
_BELOW_ONE = 0.999  # whole levels must not reach the next one


@dataclass(frozen=True)
class BackgroundColour:
    """The colour that the generator gives to background: a smooth field over the tile grid, (rows, cols, 3) float32.

    Near translated tiles it is the colour of their background, far away the mean of all. Between the centres of tiles
    it is interpolated, so that filled tiles show no edges among themselves.
    """

    grid: Grid
    field: Floats

    @classmethod
    def measured(cls, grid: Grid, store: BlobStore) -> BackgroundColour | None:
        """The field made of the sums in ``TileStores.background``; None if no translated tile has background."""
        total = np.zeros((grid.rows, grid.cols, 3), np.float32)
        weight = np.zeros((grid.rows, grid.cols, 1), np.float32)
        for tile in grid:
            if grid.index(tile) in store:
                *colour, count, _flags = np.frombuffer(store.get(grid.index(tile)), "<f8")
                fraction = count / grid.step**2
                if fraction > _MIN_BACKGROUND_FRACTION:
                    weight[tile] = min(1.0, 20 * fraction)
                    total[tile] = weight[tile] * np.array(colour) / count
        if not weight.any():
            return None
        mean = total.sum(axis=(0, 1)) / weight.sum()
        sigma = (_SIGMA_TILES, _SIGMA_TILES, 0)
        total = ndimage.gaussian_filter(total, sigma, mode="nearest", truncate=4)
        weight = ndimage.gaussian_filter(weight, sigma, mode="nearest", truncate=4)
        return cls(grid, (total + _PRIOR * mean) / (weight + _PRIOR))

    def fill(self, tile: Cell) -> Floats:
        """The fill of one tile, clipped to the image: grey levels (height, width, 3), not yet rounded."""
        lookup = Lookup(self.grid.step, 0, "bilinear")
        around = np.arange(lookup.span(1).start, lookup.span(1).stop)
        rows = np.clip(tile.row + around, 0, self.grid.rows - 1)
        cols = np.clip(tile.col + around, 0, self.grid.cols - 1)
        ramp = lookup.weights(self.grid.step, 1)
        box = self.grid.clipped(tile)
        corners = np.einsum("hr,rcd->hcd", ramp[: box.height], self.field[np.ix_(rows, cols)])
        field: Floats = (ramp[: box.width] @ corners).astype(np.float32)
        return field


def fill_background(view: SlideView, sink: TileSink, *, mode: BackgroundMode, workers: int, progress: Progress) -> int:
    """Finish the empty and partial tiles of level 0; return the number of empty ones.

    The mode ``keep`` shows the source in place of what was not translated, ``white`` white, ``fill`` the colour that
    the generator gives to background; if it saw none, white, with a note. Into that colour translated background
    passes gradually, within ``windows.blend_px``; tissue never does. Memory bound: 2 · workers tiles.
    """
    windows, stores, layout = sink.windows, sink.stores, sink.layout
    colour = BackgroundColour.measured(windows.tiles, stores.background) if mode == "fill" else None
    todo = [tile for tile in windows.tiles if layout.key(0, tile) not in stores.tiles]
    if mode == "fill" and colour is None and todo:
        progress.note("no translated patch shows background: what is not translated is filled with white")

    def finish(tile: Cell) -> None:
        box = windows.tiles.clipped(tile)
        translated = None if windows.is_empty(tile) else _translated(sink, tile)
        if colour is not None:
            fill = colour.fill(tile)
            pixels = _rounded(fill if translated is None else _blended(sink, box, translated, fill), box)
        else:
            pixels = view.read(box) if mode == "keep" else np.full((box.height, box.width, 3), 255, np.uint8)
            if translated is not None:
                pixels = np.where(windows.selected_pixels(box)[..., None], translated, pixels)
        stores.tiles.put(layout.key(0, tile), sink.codec.encode(pad_tile(pixels, windows.tiles.step)))

    with progress.stage("background", len(todo), "tiles") as advance:
        for _ in prefetch(finish, todo, workers=workers, ahead=2 * workers):
            advance(1)
    return sum(windows.is_empty(tile) for tile in windows.tiles)


def _translated(sink: TileSink, tile: Cell) -> Pixels:
    """The pixels of a partial tile, arbitrary where it is not translated."""
    grid = sink.windows.tiles
    return unpack_partial(sink.stores.partial_tiles.get(grid.index(tile)), grid.clipped(tile))


def _blended(sink: TileSink, box: Box, translated: Pixels, fill: Floats) -> Floats:
    """Grey levels (h, w, 3) of a box: translated where it is, the fill elsewhere, and between them in background."""
    share = sink.windows.selected_pixels(box).astype(np.float32)
    if sink.windows.blend_px:
        share = np.where(sink.mask.background(box), sink.windows.share_of_translation(box), share)
    levels: Floats = share[..., None] * translated + (1 - share[..., None]) * fill
    return levels


def _rounded(levels: Floats, box: Box) -> Pixels:
    """Grey levels (h, w, 3) as bytes, without the contours that rounding draws into a gradient.

    A pixel becomes the next higher level with the probability of its fraction, by a fixed pattern over the slide
    (interleaved gradient noise, Jimenez 2014), so that nothing shows where tiles meet. Whole levels stay as they are,
    and what has one colour keeps one.
    """
    if np.ptp(levels, axis=(0, 1)).max() < _FLAT:
        flat: Pixels = np.clip(levels + 0.5, 0, 255).astype(np.uint8)
        return flat
    slanted = (0.06711056 * np.arange(box.x, box.right) + 0.00583715 * np.arange(box.y, box.bottom)[:, None]) % 1
    noise = ((52.9829189 * slanted) % 1).clip(0, _BELOW_ONE).astype(np.float32)
    pixels: Pixels = np.clip(levels + noise[..., None], 0, 255).astype(np.uint8)
    return pixels
