"""Pictures: their tiles are the slide's pixels at every level, whatever the file's levels are; and the cache."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import Image
from skimage.transform import downscale_local_mean

from kin_cli.geometry import Box, Size
from kin_cli.slide.open import open_slide
from kin_cli.view.pictures import TILE_PX, Picture, TileCache, encoded
from tests.helpers.slides import ArraySlide, read_all, write_tiled


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (1664, 2304, 3), np.uint8)


def joined(picture: Picture, level: int) -> np.ndarray:
    """A level put together from its tiles."""
    size = picture.levels[level]
    whole = np.zeros((size.height, size.width, 3), np.uint8)
    (cols, rows), side = picture.grid(level), picture.tiles[level]
    for row in range(rows):
        for col in range(cols):
            box, tile = picture.box(level, col, row), picture.tile(level, col, row)
            assert tile.shape == (box.height, box.width, 3)
            assert (box.x, box.y) == (col * side.width, row * side.height)
            whole[box.slices()] = tile
    return whole


def test_a_flat_slide_gets_halves_that_are_means(pixels: np.ndarray) -> None:
    picture = Picture.whole(ArraySlide(pixels))
    assert picture.levels == (Size(2304, 1664), Size(1152, 832), Size(576, 416), Size(288, 208))
    np.testing.assert_array_equal(joined(picture, 0), pixels)
    for level in (1, 2, 3):
        means = downscale_local_mean(pixels, (2**level, 2**level, 1))
        assert np.abs(joined(picture, level) - means).max() <= 0.5 + 1e-3


def test_stored_levels_are_shown_as_they_are_and_gaps_are_filled(pixels: np.ndarray) -> None:
    small = 255 - pixels[::8, ::8]
    picture = Picture.whole(ArraySlide(pixels, small))
    assert picture.levels == (Size(2304, 1664), Size(1152, 832), Size(576, 416), Size(288, 208))
    np.testing.assert_array_equal(joined(picture, 3), small)
    assert np.abs(joined(picture, 2) - downscale_local_mean(pixels, (4, 4, 1))).max() <= 0.5 + 1e-3


def test_a_pyramid_whose_sides_were_rounded(tmp_path: Path) -> None:
    array = np.random.default_rng(1).integers(0, 256, (1501, 2003, 3), np.uint8)
    file = tmp_path / "pyramid.tif"
    pyvips.Image.new_from_array(array).tiffsave(str(file), tile=True, tile_width=256, tile_height=256, pyramid=True)
    with open_slide(file) as slide:
        picture = Picture.whole(slide)
        assert picture.levels[: len(slide.levels)] == slide.levels[: len(picture.levels)]
        for level in range(len(picture.levels)):
            np.testing.assert_array_equal(joined(picture, level), read_all(slide, level))


@pytest.mark.parametrize(("stored", "shown"), [(64, 192), (240, 240), (512, 512), (1024, 1024), (2048, TILE_PX)])
def test_the_tiles_of_a_file_are_those_that_are_shown(tmp_path: Path, stored: int, shown: int) -> None:
    array = np.random.default_rng(1).integers(0, 256, (1501, 2003, 3), np.uint8)
    with open_slide(write_tiled(tmp_path / "tiled.tif", array, tile=stored)) as slide:
        picture = Picture.whole(slide)
        assert picture.tiles[0] == Size(shown, shown)
        assert picture.tiles[-1] == Size(TILE_PX, TILE_PX)
        np.testing.assert_array_equal(joined(picture, 0), array)
        assert picture.jpeg(0, 0, 0) is None


def test_jpeg_tiles_are_sent_as_they_are_stored(tmp_path: Path, pixels: np.ndarray) -> None:
    smooth = np.repeat(np.repeat(pixels[:180, :250], 8, 0), 8, 1)
    with open_slide(write_tiled(tmp_path / "tiled.tif", smooth, tile=256, quality=80)) as slide:
        picture = Picture.whole(slide)
        cols, rows = picture.grid(0)
        for col, row in ((0, 0), (cols - 1, 1), (2, rows - 1)):
            box, stored = picture.box(0, col, row), picture.jpeg(0, col, row)
            assert stored is not None
            found = np.asarray(Image.open(BytesIO(stored)))
            assert found.shape == (256, 256, 3)
            difference = found[: box.height, : box.width].astype(int) - slide.read(0, box)
            assert np.abs(difference).max() <= 1
        assert picture.jpeg(0, cols, 0) is None
        assert picture.jpeg(1, 0, 0) is None  # between the levels of the file


def test_the_finest_levels_can_be_left_out(pixels: np.ndarray) -> None:
    assert Picture.whole(ArraySlide(pixels), finest=2).levels[0] == Size(1152, 832)
    assert Picture.whole(ArraySlide(pixels), finest=16).levels == (Size(144, 104),)


def test_a_part_shows_its_own_pixels_or_means(pixels: np.ndarray) -> None:
    cut = Picture.cut(ArraySlide(pixels), (301.0, 200.0, 800.0, 640.0), Size(800, 640))
    inside = pixels[200:840, 301:1101]
    np.testing.assert_array_equal(joined(cut, 0), inside)
    assert np.abs(joined(cut, 1) - downscale_local_mean(inside, (2, 2, 1))).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("tile", [(4, 0, 0), (-1, 0, 0), (0, 5, 0), (0, 0, 4), (0, -1, 0), (10**6, 0, 0)])
def test_there_are_no_other_tiles(pixels: np.ndarray, tile: tuple[int, int, int]) -> None:
    with pytest.raises(LookupError):
        Picture.whole(ArraySlide(pixels)).tile(*tile)


def test_a_damaged_place_is_hatched_and_the_rest_is_shown(pixels: np.ndarray) -> None:
    picture = Picture.whole(ArraySlide(pixels, bad=[Box(10, 10, 20, 20)]))
    colours = np.unique(picture.tile(0, 0, 0).reshape(-1, 3), axis=0)
    assert colours.tolist() == [[213, 94, 0], [255, 255, 255]]
    np.testing.assert_array_equal(picture.tile(0, 2, 2), pixels[picture.box(0, 2, 2).slices()])


def test_tiles_are_encoded_as_any_reader_knows_them(pixels: np.ndarray) -> None:
    smooth = np.repeat(np.repeat(pixels[:32, :32], 16, 0), 16, 1)
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(encoded(smooth, ".png")))), smooth)
    found = np.asarray(Image.open(BytesIO(encoded(smooth, ".jpg"))), float)
    assert np.abs(found - smooth).mean() < 2


def test_a_large_slide_is_read_in_small_parts() -> None:
    slide = ArraySlide(np.broadcast_to(np.uint8(200), (40000, 40000, 3)))
    picture = Picture.whole(slide)
    assert picture.tile(4, 1, 1).mean() == 200
    assert slide.largest_read <= 512 * 512


def test_the_cache_makes_each_tile_once_however_many_ask() -> None:
    cache, made, gate = TileCache(), [], threading.Event()

    def make() -> bytes:
        gate.wait(5)
        made.append(1)
        return b"tile"

    with ThreadPoolExecutor(20) as pool:
        futures = [pool.submit(cache.get, "key", make) for _ in range(20)]
        gate.set()
        assert {future.result() for future in futures} == {b"tile"}
    assert len(made) == 1


def test_the_cache_is_bounded_and_forgets_the_oldest_and_failures() -> None:
    cache = TileCache(capacity_bytes=1000)
    for number in range(50):
        cache.get(number, lambda: bytes(100))
        cache.get(0, lambda: bytes(100))
    made = []
    cache.get(0, lambda: made.append(0) or b"")
    cache.get(49, lambda: made.append(49) or b"")
    cache.get(30, lambda: made.append(30) or bytes(100))
    assert made == [30]
    assert cache._held <= 1000
    with pytest.raises(ZeroDivisionError):
        cache.get("bad", lambda: bytes(1 // 0))
    assert cache.get("bad", lambda: b"good") == b"good"
