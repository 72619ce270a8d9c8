from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kin_cli.errors import UsageError
from kin_cli.geometry import Cell, Size
from kin_cli.pyramid.layout import Blocks, PyramidLayout, fit_blocks

sides = st.integers(1, 1500)


@pytest.mark.parametrize(
    ("window", "block", "tile"),
    [
        (512, 512, 512),
        (128, 512, 512),
        (1024, 1024, 512),
        (2048, 2048, 512),
        (500, 2000, 400),
        (508, 2032, 2032),
        (96, 480, 480),
        (4, 512, 512),
    ],
)
def test_blocks_of_known_windows(window: int, block: int, tile: int) -> None:
    assert fit_blocks(window) == Blocks(window, block, tile)


@given(st.integers(1, 1024).map(lambda quarter: 4 * quarter))
def test_blocks_are_whole_windows_and_whole_tiles(window: int) -> None:
    blocks = fit_blocks(window)
    assert blocks.block % blocks.tile == 0
    assert blocks.block % window == 0
    assert blocks.tile % 16 == 0
    assert blocks.tile >= 128
    assert blocks.block <= max(512, 4 * window)


@pytest.mark.parametrize("window", [0, -4, 3, 510])
def test_windows_that_are_no_multiple_of_4(window: int) -> None:
    with pytest.raises(UsageError, match="multiple of 4"):
        fit_blocks(window)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (Size(1, 1), [(1, 1)]),
        (Size(1023, 700), [(1023, 700)]),
        (Size(1024, 3), [(1024, 3), (512, 1)]),
        (Size(1, 4099), [(1, 4099), (1, 2049), (1, 1024), (1, 512)]),
        (Size(4499, 2049), [(4499, 2049), (2249, 1024), (1124, 512), (562, 256)]),
    ],
)
def test_levels_halve_downwards(size: Size, expected: list[tuple[int, int]]) -> None:
    assert [(level.width, level.height) for level in PyramidLayout(size, 512).sizes] == expected


@settings(deadline=None)
@given(sides, sides, st.sampled_from([16, 48, 256]), st.integers(2, 600))
def test_keys_number_all_tiles_in_order(width: int, height: int, tile: int, min_side: int) -> None:
    layout = PyramidLayout(Size(width, height), tile * 4, min_side)
    keys = [layout.key(level, cell) for level in range(len(layout.sizes)) for cell in layout.grid(level)]
    assert keys == list(range(layout.tile_count))
    assert layout.reduced_count == layout.tile_count - len(layout.grid(0))
    for key in keys[:: max(1, len(keys) // 20)]:
        level, cell = layout.place(key)
        assert layout.key(level, cell) == key
        assert key in layout.keys(level)


@settings(deadline=None)
@given(sides, sides, st.sampled_from([16, 48]), st.integers(2, 600))
def test_every_tile_has_one_tile_above_it(width: int, height: int, tile: int, min_side: int) -> None:
    layout = PyramidLayout(Size(width, height), tile, min_side)
    for level in range(1, len(layout.sizes)):
        children = [child for cell in layout.grid(level) for child in layout.children(level, cell)]
        assert sorted(children) == list(layout.grid(level - 1))
        for cell in layout.grid(level):
            below = set(layout.children(level, cell))
            pixels = layout.grid(level).clipped(cell)
            needed = {
                Cell(y * 2 // tile, x * 2 // tile)
                for y in (pixels.y, pixels.bottom - 1)
                for x in (pixels.x, pixels.right - 1)
            }
            assert needed <= below


@pytest.mark.parametrize("tile", [0, 8, 100])
def test_tiles_are_multiples_of_16(tile: int) -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        PyramidLayout(Size(10, 10), tile)
