"""Windows, property-tested: every translated pixel once, windows on the patch grid, nothing superfluous."""

from __future__ import annotations

from typing import Literal

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from kin_cli.geometry import Box, Grid, Size
from kin_cli.passes.windows import WindowGrid
from kin_cli.pyramid.levels import fit_blocks


@st.composite
def window_grids(draw: st.DrawFn) -> WindowGrid:
    patch = draw(st.sampled_from([4, 20, 64, 100, 128]))
    window = patch * draw(st.integers(1, 3))
    size = Size(draw(st.integers(1, 900)), draw(st.integers(1, 900)))
    blocks, patches = fit_blocks(window), Grid(size, patch)
    seed = draw(st.integers(0, 99))
    selected = np.random.default_rng(seed).random((patches.rows, patches.cols)) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    return WindowGrid(
        patches,
        Grid(size, blocks.tile),
        selected,
        window_px=window,
        block_px=blocks.block,
        halo_px=8,
        shape=draw(st.sampled_from(["clipped", "tight", "whole"])),
    )


@given(window_grids())
@settings(max_examples=60, deadline=None)
def test_windows_show_every_translated_pixel_exactly_once(windows: WindowGrid) -> None:
    size = windows.patches.size
    shown = np.zeros((size.height, size.width), int)
    for block in windows.blocks(lambda _: False):
        for window in block.windows:
            part = window.core.clipped(size)
            shown[part.slices()] += 1
            assert part == part.intersection(block.box), "a window stays in its block"
            assert window.core.x % windows.patches.step == window.core.y % windows.patches.step == 0
    translated = windows.selected_pixels(Box(0, 0, size.width, size.height))
    assert shown.max(initial=0) <= 1
    assert (shown[translated] == 1).all()


@given(window_grids())
@settings(max_examples=60, deadline=None)
def test_tiles_are_whole_partial_or_empty_as_their_pixels_say(windows: WindowGrid) -> None:
    made = [tile for block in windows.blocks(lambda _: False) for tile in block.tiles]
    assert len(made) == len(set(made)) == windows.translated_tiles
    for tile in windows.tiles:
        pixels = windows.selected_pixels(windows.tiles.clipped(tile))
        assert windows.is_whole(tile) == pixels.all()
        assert windows.is_empty(tile) == (not pixels.any())
        assert (tile in made) == pixels.any()


@given(window_grids(), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_finished_tiles_are_not_made_again(windows: WindowGrid, seed: int) -> None:
    everything = [tile for block in windows.blocks(lambda _: False) for tile in block.tiles]
    done = {tile for tile in everything if (tile.row * 7 + tile.col * 13 + seed) % 3}
    again = [tile for block in windows.blocks(done.__contains__) for tile in block.tiles]
    assert sorted(again) == sorted(set(everything) - done)
    whole = {window for block in windows.blocks(lambda _: False) for window in block.windows}
    assert {window for block in windows.blocks(done.__contains__) for window in block.windows} <= whole


def test_tight_windows_end_where_the_tissue_does() -> None:
    size = Size(40, 40)
    selected = np.zeros((4, 4), bool)
    selected[[0, 2, 3, 3], [1, 2, 2, 3]] = True  # one cell of its window; three of another's four

    def cores(shape: Literal["clipped", "tight"]) -> list[Box]:
        windows = WindowGrid(
            Grid(size, 10), Grid(size, 20), selected, window_px=20, block_px=20, halo_px=8, shape=shape
        )
        return [window.core for block in windows.blocks(lambda _: False) for window in block.windows]

    assert cores("tight") == [Box(10, 0, 10, 10), Box(20, 20, 20, 20)]
    assert cores("clipped") == [Box(0, 0, 20, 20), Box(20, 20, 20, 20)]


@given(st.integers(1, 90), st.integers(1, 90))
def test_whole_windows_have_one_shape(width: int, height: int) -> None:
    patches = Grid(Size(width, height), 10)
    selected = np.ones((patches.rows, patches.cols), bool)
    tiles = Grid(patches.size, 20)
    windows = WindowGrid(patches, tiles, selected, window_px=20, block_px=20, halo_px=8, shape="whole")
    found = [window for block in windows.blocks(lambda _: False) for window in block.windows]
    assert len({(window.rows, window.cols, window.core.width, window.core.height) for window in found}) == 1


@given(selected=arrays(np.bool_, (4, 5)), blend_px=st.integers(1, 16))
def test_the_share_of_translation_follows_the_distance(selected: np.ndarray, blend_px: int) -> None:
    patches, tiles = Grid(Size(75, 58), 16), Grid(Size(75, 58), 32)
    windows = WindowGrid(patches, tiles, selected, window_px=16, block_px=32, halo_px=0, blend_px=blend_px)
    pixels = windows.selected_pixels(Box(0, 0, 75, 58))
    distance = ndimage.distance_transform_edt(pixels) if not pixels.all() else np.full(pixels.shape, 1e9)
    for tile in tiles:
        box = tiles.clipped(tile)
        share, apart = windows.share_of_translation(box), distance[box.slices()]
        # SciPy measures from the centre of the nearest pixel, half a pixel to 0.71 px inside the patch
        assert (share * blend_px <= np.minimum(apart - 0.2, blend_px).clip(0) + 1e-4).all()
        assert (share * blend_px >= np.minimum(apart - 0.71, blend_px).clip(0) - 1e-4).all()
        assert windows.is_whole(tile) == bool((share == 1).all() and pixels[box.slices()].all())
