"""The meaning of stored samples against Pillow and NumPy, the same in tiles and in strips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from kin_cli.errors import InputError
from kin_cli.slide.open import open_slide
from kin_cli.slide.tiff_colours import unpacked_ycbcr
from tests.helpers.cases_slides import CHANNELS, PICTURE, STORED
from tests.helpers.slides import read_all

BOTH = pytest.mark.parametrize("stored", STORED)
GREY = np.repeat(CHANNELS[0][..., None], 3, axis=-1)


def write(path: Path, data: NDArray[Any], stored: str, **options: Any) -> Path:
    tifffile.imwrite(path, data, **STORED[stored], **options)
    return path


def shown(path: Path) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    with open_slide(path) as slide:
        return read_all(slide), slide.notes


@BOTH
def test_what_is_no_picture_of_8_or_16_bits_is_refused(tmp_path: Path, stored: str) -> None:
    five = np.stack([plane.astype(np.uint16) * 257 for plane in CHANNELS], -1)
    for data, options, reason in (
        (five, {"photometric": "minisblack", "planarconfig": "contig"}, "5 channels per pixel"),
        (np.stack(CHANNELS, -1), {"photometric": "rgb", "extrasamples": [0, 0]}, "5 channels per pixel"),
        (PICTURE, {"photometric": "minisblack", "planarconfig": "contig"}, "3 channels per pixel"),
        (PICTURE[..., :2].copy(), {"photometric": "minisblack", "planarconfig": "contig"}, "2 channels per pixel"),
        (CHANNELS[0].astype(np.float32) / 255, {"photometric": "minisblack"}, "floating-point numbers of 32 bits"),
        (PICTURE.astype(np.float16), {"photometric": "rgb"}, "floating-point numbers of 16 bits"),
        (PICTURE.astype(np.int16), {"photometric": "rgb"}, "signed integers of 16 bits"),
        (PICTURE.astype(np.uint32), {"photometric": "rgb"}, "32 bits"),
        (CHANNELS[0].astype(np.complex64), {"photometric": "minisblack"}, "complex numbers"),
        (PICTURE, {"photometric": "cielab"}, "colour space CIELAB"),
    ):
        path = write(tmp_path / "other.tif", data, stored, **options)
        with pytest.raises(InputError, match=reason) as caught:
            open_slide(path)
        assert "damaged" not in str(caught.value)


@BOTH
def test_a_fourth_sample_that_is_not_alpha_is_left_out(tmp_path: Path, stored: str) -> None:
    data = np.stack(CHANNELS[:4], -1)
    pixels, notes = shown(write(tmp_path / "nir.tif", data, stored, photometric="rgb", extrasamples=[0]))
    np.testing.assert_array_equal(pixels, PICTURE)
    assert pixels[100, 100].tolist() == [125, 104, 185]
    assert "fourth sample" in notes[0]


@BOTH
@pytest.mark.parametrize("bits", [10, 12, 14])
def test_fewer_bits_than_the_file_states_are_scaled_and_told(tmp_path: Path, stored: str, bits: int) -> None:
    deep = PICTURE.astype(np.uint16) << (bits - 8)
    expected = np.rint(deep * (255 / (2**bits - 1))).astype(np.uint8)
    pixels, notes = shown(write(tmp_path / "deep.tif", deep, stored, photometric="rgb"))
    np.testing.assert_array_equal(pixels, expected)
    assert f"{bits} bits" in notes[0]
    largest = (281, "H", 3, (2**bits - 1,) * 3, True)
    pixels, notes = shown(write(tmp_path / "told.tif", deep, stored, photometric="rgb", extratags=[largest]))
    np.testing.assert_array_equal(pixels, expected)
    assert notes == ()


def test_significant_bits_of_ome(tmp_path: Path) -> None:
    deep = PICTURE.astype(np.uint16) * 16
    tifffile.imwrite(tmp_path / "a.ome.tif", deep, ome=True, photometric="rgb", metadata={"SignificantBits": 12})
    pixels, notes = shown(tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(pixels, np.rint(deep * (255 / 4095)).astype(np.uint8))
    assert notes == ()
    # a statement that the samples contradict
    bright = PICTURE.astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "b.ome.tif", bright, ome=True, photometric="rgb", metadata={"SignificantBits": 12})
    pixels, notes = shown(tmp_path / "b.ome.tif")
    np.testing.assert_array_equal(pixels, PICTURE)
    assert "not 12" in notes[0]


@BOTH
def test_sixteen_bits_stay_sixteen_bits(tmp_path: Path, stored: str) -> None:
    pixels, notes = shown(write(tmp_path / "full.tif", PICTURE.astype(np.uint16) * 257, stored, photometric="rgb"))
    np.testing.assert_array_equal(pixels, PICTURE)
    assert notes == ()


@BOTH
def test_other_colours(tmp_path: Path, stored: str) -> None:
    path = tmp_path / "a.tif"
    np.testing.assert_array_equal(shown(write(path, CHANNELS[0], stored, photometric="miniswhite"))[0], 255 - GREY)
    cmyk = np.asarray(Image.fromarray(PICTURE).convert("CMYK"))
    np.testing.assert_array_equal(shown(write(path, cmyk, stored, photometric="separated"))[0], PICTURE)
    planes = np.ascontiguousarray(np.moveaxis(PICTURE, -1, 0))
    separate = write(path, planes, stored, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(shown(separate)[0], PICTURE)
    ycbcr = np.asarray(Image.fromarray(PICTURE).convert("YCbCr"))
    pixels = shown(write(path, ycbcr, stored, photometric="ycbcr", subsampling=(1, 1)))[0]
    np.testing.assert_allclose(pixels.astype(int), np.asarray(Image.open(path).convert("RGB")), atol=1)


@BOTH
def test_the_orientation_tag_is_told(tmp_path: Path, stored: str) -> None:
    tag = (274, "H", 1, 6, True)
    pixels, notes = shown(write(tmp_path / "turned.tif", PICTURE, stored, photometric="rgb", extratags=[tag]))
    np.testing.assert_array_equal(pixels, PICTURE)
    assert "orientation tag (6) is not applied" in notes[0]


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt", "packbits", "tiff_lzw", None])
@pytest.mark.parametrize("inverted", [False, True])
def test_bilevel_is_black_and_white(tmp_path: Path, compression: str | None, inverted: bool) -> None:
    path = tmp_path / "fax.tif"
    page = Image.fromarray((np.indices((256, 320)).sum(0) // 32 % 2 * 255).astype(np.uint8)).convert("1")
    options: dict[str, Any] = {"tiffinfo": {262: 0}} if inverted else {}
    page.save(path, compression=compression, **options)
    pixels, _ = shown(path)
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(path).convert("RGB")))
    assert set(np.unique(pixels)) == {0, 255}


def test_palette_of_16_colours(tmp_path: Path) -> None:
    Image.fromarray(CHANNELS[0]).quantize(16).save(tmp_path / "p4.tif")
    expected = np.asarray(Image.open(tmp_path / "p4.tif").convert("RGB")).astype(int)
    np.testing.assert_allclose(shown(tmp_path / "p4.tif")[0], expected, atol=1)  # Pillow rounds the palette down


def test_subsampled_colours_are_unpacked() -> None:
    luma = np.arange(16, dtype=np.uint8).reshape(4, 4)
    chroma = np.array([[[100, 101], [102, 103]], [[104, 105], [106, 107]]], np.uint8)
    units = b"".join(
        luma[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].tobytes() + chroma[y, x].tobytes() for y in (0, 1) for x in (0, 1)
    )
    found = unpacked_ycbcr(units, (3, 4), (2, 2))
    np.testing.assert_array_equal(found[..., 0], luma[:3])
    np.testing.assert_array_equal(found[..., 1:], chroma.repeat(2, 0).repeat(2, 1)[:3])
    with pytest.raises(ValueError, match="buffer"):
        unpacked_ycbcr(units[:-1], (3, 4), (2, 2))
