"""Pass 2: what the sink keeps of finished tiles, and a slide cut into windows and put together again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kin_cli.geometry import Cell, Grid
from kin_cli.norm.lookup import Lookup
from kin_cli.norm.table import UniformStatistics
from kin_cli.passes.apply import apply_slide, unpack_partial
from kin_cli.passes.engine import EnginePool, Execution
from kin_cli.slide.tissue import TissueMask
from tests.helpers.pictures import random_pixels
from tests.helpers.progress import Watcher
from tests.helpers.sinks import LAYOUT, PATCH, SIZE, TILE, SinkStores, sink_of, view_of

EVERY = list(Grid(SIZE, PATCH))


def test_whole_tiles_are_encoded_and_partial_ones_kept_as_they_are(stores: SinkStores) -> None:
    sink = sink_of(stores, selected=[cell for cell in EVERY if cell.col < 3])
    pixels = random_pixels(SIZE.height, SIZE.width)
    left, right = Cell(0, 0), Cell(0, 1)
    for tile in (left, right):
        assert not sink.done(tile)
        sink.keep((tile, pixels[sink.windows.tiles.clipped(tile).slices()]))
        assert sink.done(tile)
    decoded = sink.codec.decode(stores.stores.tiles.get(LAYOUT.key(0, left)), TILE)
    np.testing.assert_array_equal(decoded, pixels[:32, :32])
    assert LAYOUT.key(0, right) not in stores.stores.tiles
    kept = unpack_partial(stores.stores.partial_tiles.get(1), sink.windows.tiles.clipped(right))
    np.testing.assert_array_equal(kept, pixels[:32, 32:])
    kept[:] = 0  # it is writable


def test_the_sum_of_the_background_counts_translated_background_only(stores: SinkStores) -> None:
    tissue = np.zeros((SIZE.height, SIZE.width), bool)
    tissue[:, :5] = True
    mask = TissueMask(tissue, SIZE)
    sink = sink_of(stores, selected=[cell for cell in EVERY if cell.col < 3], mask=mask)
    pixels = random_pixels(SIZE.height, SIZE.width)
    for tile in (Cell(0, 0), Cell(0, 1)):
        box = sink.windows.tiles.clipped(tile)
        sink.keep((tile, pixels[box.slices()]))
        chosen = mask.background(box)
        if tile.col == 1:
            chosen[:, 48 - 32 :] = False  # the fourth column of patches was not translated
        *colour, count, _flags = np.frombuffer(stores.stores.background.get(tile.col), "<f8")
        assert count == chosen.sum() > 0
        np.testing.assert_array_equal(colour, pixels[box.slices()][chosen].sum(axis=0, dtype=int))


class Inverting:
    """An engine that inverts what lies within the halo."""

    channels, stride, device = 3, 4, torch.device("cpu")

    def apply_checked(self, images: list[Any], stats: Any, lookup: Lookup) -> tuple[list[Any], Any]:
        assert stats.shape[0] == len(images)
        halo = lookup.halo_px
        made = [255 - image[halo : image.shape[0] - halo, halo : image.shape[1] - halo] for image in images]
        patches = [side // lookup.patch_px for side in made[0].shape[:2]]
        return made, np.ones((len(made), *patches), bool)


def execution(watcher: Watcher) -> Execution:
    return Execution(EnginePool([Inverting()]), 2, 2, watcher)  # type: ignore[list-item]


@pytest.mark.parametrize("halo", [0, 8])
def test_windows_are_put_together_without_gaps(stores: SinkStores, halo: int) -> None:
    sink, pixels = sink_of(stores, selected=EVERY, halo_px=halo), random_pixels(SIZE.height, SIZE.width)
    statistics = UniformStatistics(np.ones((2, 3), np.float32))
    run = {"lookup": Lookup(PATCH, halo, "nearest")}
    assert apply_slide(view_of(pixels), statistics, sink, execution=execution(Watcher()), **run) == 4
    np.testing.assert_array_equal(stores.base(sink), 255 - pixels)


def test_only_what_is_missing_is_translated(stores: SinkStores) -> None:
    sink, pixels = sink_of(stores, selected=EVERY), random_pixels(SIZE.height, SIZE.width)
    sink.keep((Cell(1, 0), np.full((SIZE.height - 32, 32, 3), 7, np.uint8)))
    watcher, statistics = Watcher(), UniformStatistics(np.ones((2, 3), np.float32))
    run = {"lookup": Lookup(PATCH, 0, "nearest"), "execution": execution(watcher)}
    assert apply_slide(view_of(pixels), statistics, sink, **run) == 3
    assert watcher.notes == ["continuing: 1 of 4 tiles are translated"]
    expected = 255 - pixels
    expected[32:, :32] = 7
    np.testing.assert_array_equal(stores.base(sink), expected)
