"""Stored tiles as JPEG files: any decoder shows the pixels that the reader shows, and odd or damaged ones stay back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from kin_cli.geometry import Box, Size
from kin_cli.pyramid.codec import Codec
from kin_cli.slide.base import Slide
from kin_cli.slide.jpeg import JpegTiles
from kin_cli.slide.open import open_slide
from kin_cli.slide.tiff import TiffSlide

TILE = 256
KINDS: dict[str, dict[str, Any]] = {
    "YCbCr, subsampled": {"photometric": "ycbcr", "subsampling": (2, 2)},
    "YCbCr": {"photometric": "ycbcr", "subsampling": (1, 1)},
    "RGB": {"photometric": "rgb"},
    "grey": {"photometric": "minisblack"},
}


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (75, 90, 3), np.uint8)
    return np.repeat(np.repeat(noise, 8, 0), 8, 1)


def write(path: Path, pixels: np.ndarray, **how: Any) -> Path:
    shown = pixels[..., 0] if how["photometric"] == "minisblack" else pixels
    tifffile.imwrite(path, shown, tile=(TILE, TILE), compression="jpeg", compressionargs={"level": 85}, **how)
    return path


def tiles(slide: Slide, level: int = 0) -> Iterator[tuple[int, int, Box]]:
    side, size = slide.tile_size(level), slide.levels[level]
    assert side is not None
    for row in range(-(-size.height // side.height)):
        for col in range(-(-size.width // side.width)):
            box = Box(col * side.width, row * side.height, side.width, side.height)
            yield col, row, box.clipped(size)


def assert_as_read(slide: Slide, level: int = 0) -> None:
    """Every tile, decoded by Pillow, shows what the reader shows."""
    for col, row, box in tiles(slide, level):
        file = slide.jpeg_tile(level, col, row)
        assert file is not None
        assert slide.jpeg_tile(level, col, row) == file
        found = np.asarray(Image.open(BytesIO(file)).convert("RGB"), int)[: box.height, : box.width]
        assert np.abs(found - slide.read(level, box)).max() <= 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("opened", [open_slide, TiffSlide])
def test_any_decoder_shows_the_pixels(
    tmp_path: Path, pixels: np.ndarray, kind: str, opened: Callable[[Path], Slide]
) -> None:
    with opened(write(tmp_path / "slide.tif", pixels, **KINDS[kind])) as slide:
        assert_as_read(slide)
        for col, row in ((3, 0), (0, 3), (-1, 0), (10**9, 10**9)):
            assert slide.jpeg_tile(0, col, row) is None


@pytest.mark.data
@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "CMU-1-Small-Region.pyramid.tif"])
def test_real_slides(shared_data: Path, name: str) -> None:
    with open_slide(shared_data / name) as slide:
        for level in range(len(slide.levels)):
            assert_as_read(slide, level)


@pytest.mark.data
def test_tiles_that_are_no_jpeg_of_a_tiff_file(shared_data: Path) -> None:
    with open_slide(shared_data / "CMU-1-Small-Region-dicom" / "level0.dcm") as slide:
        assert slide.tile_size(0) is not None
        assert slide.jpeg_tile(0, 0, 0) is None


@pytest.mark.parametrize("how", [{"compression": "deflate"}, {"planarconfig": "separate"}, {"compression": None}])
def test_other_tiles_stay_back(tmp_path: Path, pixels: np.ndarray, how: dict[str, Any]) -> None:
    how = {"compression": "jpeg", "photometric": "rgb", **how}
    shown = np.moveaxis(pixels, -1, 0) if "planarconfig" in how else pixels
    tifffile.imwrite(tmp_path / "slide.tif", shown, tile=(TILE, TILE), **how)
    with open_slide(tmp_path / "slide.tif") as slide:
        assert slide.jpeg_tile(0, 0, 0) is None


def test_strips_have_no_tiles(tmp_path: Path, pixels: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "slide.tif", pixels, photometric="rgb", rowsperstrip=64, compression="jpeg")
    with open_slide(tmp_path / "slide.tif") as slide:
        assert slide.tile_size(0) is None
        assert slide.jpeg_tile(0, 0, 0) is None


def test_a_damaged_tile_and_one_that_is_not_stored_stay_back(tmp_path: Path, pixels: np.ndarray) -> None:
    path = write(tmp_path / "slide.tif", pixels, **KINDS["YCbCr"])
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        offsets, counts, where = page.dataoffsets, page.databytecounts, page.tags["TileByteCounts"].valueoffset
    content = bytearray(path.read_bytes())
    content[offsets[1] + counts[1] // 2 : offsets[1] + counts[1]] = bytes(counts[1] - counts[1] // 2)
    entry = 4 if page.tags["TileByteCounts"].dtype == 4 else 2
    content[where + 2 * entry : where + 3 * entry] = bytes(entry)
    path.write_bytes(content)
    with TiffSlide(path) as slide:
        assert [slide.jpeg_tile(0, col, 0) is None for col in range(3)] == [False, True, True]
        assert (slide.read(0, Box(512, 0, 8, 8)) == 255).all()


def test_a_tile_whose_colours_are_in_doubt_stays_back() -> None:
    flat = np.full((TILE, TILE, 3), (200, 100, 150), np.uint8)
    jfif = Codec("jpeg", 90, "444").encode(flat)  # YCbCr
    ours = jfif[:2] + jfif[20:]
    side, app14 = Size(TILE, TILE), b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
    adobe_rgb = ours[:2] + app14 + b"\x00" + ours[2:]
    assert JpegTiles(side, None, 6).file(adobe_rgb) is None
    assert JpegTiles(side, None, 2).file(adobe_rgb) is not None
    assert JpegTiles(side, None, 6).file(jfif) is not None
    assert JpegTiles(side, None, 2).file(jfif) is None
    assert JpegTiles(Size(128, TILE), None, 6).file(ours) is None
    assert JpegTiles(side, None, None).file(ours) is None
    for cut in (b"", ours[:1], ours[:2], ours[:50], ours[:-100], b"\xff\xd8\xff", bytes(100), b"\xff" * 100):
        assert JpegTiles(side, None, 6).file(cut) is None


def test_what_a_tile_says_beside_its_pixels_is_left_out() -> None:
    flat = np.full((TILE, TILE, 3), (200, 100, 150), np.uint8)
    stream = BytesIO()
    Image.fromarray(flat).save(stream, "JPEG", quality=90, icc_profile=bytes(500), comment=b"a name", exif=bytes(40))
    file = JpegTiles(Size(TILE, TILE), None, 6).file(stream.getvalue())
    assert file is not None
    assert b"a name" not in file
    found = Image.open(BytesIO(file))
    assert "icc_profile" not in found.info
    assert np.abs(np.asarray(found, int) - flat).max() <= 2
