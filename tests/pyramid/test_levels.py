"""The levels of a pyramid: their geometry against definitions, and their tiles against Pillow."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kin_cli.errors import OutputError, UsageError
from kin_cli.geometry import Cell, Pixels, Size
from kin_cli.pyramid.codec import Codec
from kin_cli.pyramid.levels import Blocks, PyramidLayout, build_levels, fit_blocks, pad_tile
from kin_cli.store.blobs import BlobStore
from tests.helpers.pictures import smooth_picture
from tests.helpers.pyramids import LOSSLESS, assembled, filled, layout_of, put_base


def noise(width: int, height: int) -> Pixels:
    return np.random.default_rng(width + 7919 * height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def numpy_halves(pixels: Pixels) -> Pixels:
    """2×2 means, halves up, odd rows and columns dropped, single ones repeated."""
    height, width = pixels.shape[:2]
    even = np.pad(pixels, ((0, height == 1), (0, width == 1), (0, 0)), mode="edge").astype(float)
    even = even[: even.shape[0] // 2 * 2, : even.shape[1] // 2 * 2]
    corners: list[np.ndarray[Any, Any]] = [even[y::2, x::2] for y in (0, 1) for x in (0, 1)]
    return np.floor(sum(corners) / 4 + 0.5).astype(np.uint8)


def contents(store: BlobStore) -> list[bytes]:
    return [store.get(key) for key in range(store.capacity)]


@pytest.mark.parametrize(
    ("width", "height", "min_side"),
    [(1, 1, 2), (1, 999, 2), (999, 1, 4), (257, 513, 16), (33, 65, 2), (101, 97, 8), (500, 333, 32), (15, 15, 16)],
)
@pytest.mark.parametrize("workers", [1, 3])
def test_every_level_is_numpys_means_of_the_one_before(
    tmp_path: Path, width: int, height: int, min_side: int, workers: int
) -> None:
    image = noise(width, height)
    layout = layout_of(image, 16, min_side)
    with filled(tmp_path, image, layout, LOSSLESS, workers=workers) as store:
        expected = image
        for level, size in enumerate(layout.sizes):
            found = assembled(store, layout, level, LOSSLESS)
            assert np.array_equal(found[: size.height, : size.width], expected)
            around = np.pad(
                expected,
                ((0, found.shape[0] - size.height), (0, found.shape[1] - size.width), (0, 0)),
                mode="edge",
            )
            assert np.array_equal(found, around)
            expected = numpy_halves(expected)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(2, 64))
def test_any_size(tmp_path_factory: pytest.TempPathFactory, width: int, height: int, min_side: int) -> None:
    image = noise(width, height)
    layout = layout_of(image, 32, min_side)
    with filled(tmp_path_factory.mktemp("any"), image, layout, LOSSLESS) as store:
        expected = image
        for _ in range(layout.top):
            expected = numpy_halves(expected)
        top = layout.sizes[-1]
        assert np.array_equal(assembled(store, layout, layout.top, LOSSLESS)[: top.height, : top.width], expected)


@pytest.mark.parametrize("codec", [Codec(), Codec(subsampling="444")], ids=["420", "444"])
def test_jpeg_losses_do_not_add_up(tmp_path: Path, codec: Codec) -> None:
    """Every level is about as near to the true one as if that had been encoded itself."""
    image = smooth_picture(704, 512)
    layout = layout_of(image, 64, 128)
    with filled(tmp_path, image, layout, codec) as store:
        exact = image.astype(float)
        for level in range(len(layout.sizes)):
            found = assembled(store, layout, level, codec)
            rounded = np.pad(
                np.round(exact).astype(np.uint8), [(0, -side % 64) for side in exact.shape[:2]] + [(0, 0)], "edge"
            )
            once = rounded.copy()
            for cell in layout.grid(level):
                index = layout.grid(level).box(cell).slices()
                once[index] = codec.decode(codec.encode(rounded[index]), 64)
            errors = [abs(pixels[: exact.shape[0], : exact.shape[1]] - exact).mean() for pixels in (found, once)]
            assert errors[0] < 1.1 * errors[1]
            assert abs((found[: exact.shape[0], : exact.shape[1]] - exact).mean()) < 0.2 + level / 8  # halves round up
            exact = exact.reshape(exact.shape[0] // 2, 2, -1, 2, 3).mean((1, 3))


@pytest.mark.parametrize("seed", range(3))
def test_interruptions_and_workers_leave_no_trace(tmp_path: Path, seed: int) -> None:
    image, codec = smooth_picture(530, 410), Codec()
    layout = layout_of(image, 32, 16)
    with filled(tmp_path / "whole", image, layout, codec, workers=1) as store:
        whole = contents(store)
    chance = np.random.default_rng(seed)
    with BlobStore(tmp_path, "tiles", capacity=layout.tile_count) as store:
        put_base(store, image, layout, codec, layout.grid(0))
        for _ in range(5):
            left = [int(chance.integers(1, layout.reduced_count))]

            def stop(tiles: int, left: list[int] = left) -> None:
                left[0] -= tiles
                if left[0] <= 0:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                build_levels(store, layout, codec=codec, workers=int(chance.integers(1, 5)), advance=stop)
        assert len(store) < layout.tile_count
        build_levels(store, layout, codec=codec, workers=4)
        assert contents(store) == whole


def test_finished_subtrees_are_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = smooth_picture(400, 300)
    layout = layout_of(image, 16, 32)
    done: list[int] = []
    with filled(tmp_path, image, layout, LOSSLESS) as store:
        monkeypatch.setattr(Codec, "decode_half", lambda *_: pytest.fail("nothing is to be done"))
        build_levels(store, layout, codec=LOSSLESS, workers=2, advance=done.append)
    assert sum(done) == layout.reduced_count


def test_a_missing_base_tile_is_named(tmp_path: Path) -> None:
    image = smooth_picture(300, 200)
    layout = layout_of(image, 32, 64)
    with BlobStore(tmp_path, "tiles", capacity=layout.tile_count) as store:
        put_base(store, image, layout, LOSSLESS, [cell for cell in layout.grid(0) if cell != (3, 4)])
        with pytest.raises(OutputError, match=r"tile \(3, 4\) \(row, col\) of level 0 is missing"):
            build_levels(store, layout, codec=LOSSLESS, workers=1)


def test_a_damaged_base_tile_stops_all_workers(tmp_path: Path) -> None:
    image = smooth_picture(600, 600)
    layout = layout_of(image, 16, 64)
    with BlobStore(tmp_path, "tiles", capacity=layout.tile_count) as store:
        put_base(store, image, layout, LOSSLESS, layout.grid(0))
        with (tmp_path / "tiles-0.dat").open("r+b") as file:
            file.seek(1000)
            file.write(b"rotten")
        with pytest.raises(OutputError, match="damaged"):
            build_levels(store, layout, codec=LOSSLESS, workers=3)


def test_pad_tile_repeats_the_edge() -> None:
    pixels = noise(3, 2)
    padded = pad_tile(pixels, 16)
    assert np.array_equal(padded[:2, :3], pixels)
    assert np.array_equal(padded[5, 9], pixels[1, 2])
    assert np.array_equal(padded[0, 9], pixels[0, 2])
    assert pad_tile(padded, 16) is padded


def test_memory_stays_within_the_stated_bound(tmp_path: Path) -> None:
    layout, workers = PyramidLayout(Size(3072, 3072), 128, 128), 2
    with BlobStore(tmp_path, "tiles", capacity=layout.tile_count) as store:
        payload = LOSSLESS.encode(noise(128, 128))
        for key in layout.keys(0):
            store.put(key, payload)
        store.commit()
        tracemalloc.start()
        build_levels(store, layout, codec=LOSSLESS, workers=workers)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    tiles = 5 * workers + layout.top + 2 * workers / 4
    assert peak < tiles * 128 * 128 * 3 + 300_000  # of an image of 28 MB


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
