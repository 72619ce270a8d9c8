"""The fill of untranslated background: its colour, its smoothness, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kin_cli.geometry import Box, Cell, Grid, Size
from kin_cli.passes.background import BackgroundColour, _rounded, fill_background
from kin_cli.slide.tissue import TissueMask
from kin_cli.store.blobs import BlobStore
from tests.helpers.pictures import random_pixels
from tests.helpers.progress import Watcher
from tests.helpers.sinks import SIZE, SinkStores, sink_of, view_of

GRID = Grid(Size(200, 150), 32)


def colour_of(found: dict[Cell, tuple[tuple[float, ...], int]], folder: Path) -> BackgroundColour | None:
    """The field of some tiles' mean background colours, with their numbers of background pixels."""
    with BlobStore(folder, "background", capacity=len(GRID)) as store:
        for tile, (colour, count) in found.items():
            store.put(GRID.index(tile), np.array([*(count * part for part in colour), count, 0], "<f8").tobytes())
        return BackgroundColour.measured(GRID, store)


def test_one_colour_fills_everything(tmp_path: Path) -> None:
    colour = colour_of({Cell(0, 0): ((231, 200, 17), 1024), Cell(4, 6): ((231, 200, 17), 30)}, tmp_path)
    assert colour is not None
    for tile in GRID:
        pixels, box = colour.fill(tile), GRID.clipped(tile)
        assert pixels.shape == (box.height, box.width, 3)
        np.testing.assert_allclose(pixels, np.broadcast_to((231, 200, 17), pixels.shape), rtol=1e-5)


def test_near_tiles_have_the_colour_of_their_neighbours_and_far_ones_the_mean(tmp_path: Path) -> None:
    wide = Grid(Size(32 * 60, 32), 32)
    with BlobStore(tmp_path, "background", capacity=len(wide)) as store:
        for col, grey in ((0, 100.0), (59, 200.0)):
            store.put(col, np.array([*(1024 * grey,) * 3, 1024, 0], "<f8").tobytes())
        colour = BackgroundColour.measured(wide, store)
    assert colour is not None
    means = [colour.fill(Cell(0, col)).mean() for col in range(60)]
    assert means[0] == pytest.approx(100, abs=2)
    assert means[59] == pytest.approx(200, abs=2)
    assert means[30] == pytest.approx(150, abs=1)
    assert means == sorted(means)


@given(st.integers(0, 999))
def test_there_are_no_edges_between_filled_tiles(seed: int) -> None:
    field = np.random.default_rng(seed).uniform(0, 255, (GRID.rows, GRID.cols, 3)).astype(np.float32)
    colour = BackgroundColour(GRID, field)
    whole = np.zeros((150, 200, 3))
    for tile in GRID:
        whole[GRID.clipped(tile).slices()] = colour.fill(tile)
    steepest = max(np.abs(np.diff(field, axis=axis)).max() for axis in (0, 1)) / 32
    for axis in (0, 1):
        assert np.abs(np.diff(whole, axis=axis)).max() <= steepest * (1 + 1e-4)


def test_nothing_to_go_by_is_told(tmp_path: Path) -> None:
    assert colour_of({}, tmp_path) is None
    assert colour_of({Cell(0, 0): ((9, 9, 9), 1)}, tmp_path) is None, "one pixel of a tile says nothing"


@pytest.mark.parametrize("mode", ["fill", "keep", "white"])
def test_translated_pixels_stay_and_all_others_are_filled(stores: SinkStores, mode: str) -> None:
    sink = sink_of(stores, selected=[Cell(0, 0), Cell(1, 1)])  # of 3 × 4 patches, in tiles of 2 × 2
    source, translated = random_pixels(SIZE.height, SIZE.width), random_pixels(SIZE.height, SIZE.width, seed=1)
    for tile in sink.windows.tiles:
        if not sink.windows.is_empty(tile):
            sink.keep((tile, translated[sink.windows.tiles.clipped(tile).slices()]))
    watcher = Watcher()
    empty = fill_background(view_of(source), sink, mode=mode, workers=2, progress=watcher)  # type: ignore[arg-type]
    assert empty == 3
    selected = np.zeros(source.shape[:2], bool)
    selected[:16, :16] = selected[16:32, 16:32] = True
    expected = np.where(selected[..., None], translated, source if mode == "keep" else 255)
    np.testing.assert_array_equal(stores.base(sink), expected)
    assert [("filled with white" in note) for note in watcher.notes] == ([True] if mode == "fill" else [])


def test_background_passes_into_the_fill_and_tissue_does_not(stores: SinkStores) -> None:
    tissue = np.zeros((SIZE.height, SIZE.width), bool)
    tissue[:, :4] = True
    selected = [Cell(row, col) for row in range(3) for col in range(2)]  # the left 32 of 61 columns
    sink = sink_of(stores, selected=selected, mask=TissueMask(tissue, SIZE), blend_px=16)
    translated = random_pixels(SIZE.height, SIZE.width) // 16 + 200
    for tile in sink.windows.tiles:
        if not sink.windows.is_empty(tile):
            sink.keep((tile, translated[sink.windows.tiles.clipped(tile).slices()]))
    fill_background(view_of(translated), sink, mode="fill", workers=2, progress=Watcher())
    pixels = stores.base(sink)
    np.testing.assert_array_equal(pixels[:, :16], translated[:, :16])  # 16 px and more from what is filled
    mean = translated[sink.mask.background(Box(0, 0, *vars(SIZE).values()))].mean()
    assert pixels[:, 32:].mean() == pytest.approx(mean, abs=1)
    assert np.ptp(pixels[:, 31].astype(int)) <= 2, "the last translated line has the colour of the fill"
    spread = [pixels[:, col].std() for col in range(16, 32, 4)]
    assert spread == sorted(spread, reverse=True)


def test_tissue_beside_the_fill_stays(stores: SinkStores) -> None:
    tissue = np.zeros((SIZE.height, SIZE.width), bool)
    tissue[16:32] = True
    sink = sink_of(stores, selected=[Cell(1, 1)], mask=TissueMask(tissue, SIZE), blend_px=16)
    translated = random_pixels(SIZE.height, SIZE.width)
    for tile in sink.windows.tiles:
        if not sink.windows.is_empty(tile):
            sink.keep((tile, translated[sink.windows.tiles.clipped(tile).slices()]))
    fill_background(view_of(translated), sink, mode="fill", workers=2, progress=Watcher())
    np.testing.assert_array_equal(stores.base(sink)[16:32, 16:32], translated[16:32, 16:32])


def test_a_gradient_has_no_contours(stores: SinkStores) -> None:
    ramp = np.broadcast_to(np.linspace(240, 242, 256, dtype=np.float32)[None, :, None], (256, 256, 3))
    whole = _rounded(ramp, Box(0, 0, 256, 256))
    parts = [_rounded(ramp[:, x : x + 64], Box(x, 0, 64, 256)) for x in range(0, 256, 64)]
    np.testing.assert_array_equal(whole, np.concatenate(parts, axis=1))
    columns = whole[..., 0].reshape(256, 16, 16).mean(axis=(0, 2))
    np.testing.assert_allclose(columns, ramp[0, :, 0].reshape(16, 16).mean(axis=1), atol=0.05)
