"""PNG and JPEG: the pixels that Pillow stored against those that are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kin_cli.slide.open import open_slide
from tests.helpers.pictures import over_white
from tests.helpers.slides import assert_opens_as, read_all


def test_alpha_of_png_is_composited_on_white(tmp_path: Path, rgb: NDArray[np.uint8]) -> None:
    alpha = np.random.default_rng(5).integers(0, 256, rgb.shape[:2], dtype=np.uint8)
    Image.fromarray(np.dstack([rgb, alpha])).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png") as slide:
        np.testing.assert_allclose(read_all(slide), over_white(rgb, alpha), atol=0.51)


def test_png_and_jpeg(tmp_path: Path, rgb: NDArray[np.uint8]) -> None:
    Image.fromarray(rgb).save(tmp_path / "a.png")
    assert_opens_as(tmp_path / "a.png", rgb)
    Image.fromarray(rgb).save(tmp_path / "misnamed.tif", "jpeg", quality=90)
    with Image.open(tmp_path / "misnamed.tif") as image, open_slide(tmp_path / "misnamed.tif") as slide:
        assert (slide.format, slide.mpp, slide.expects_background) == ("jpeg", None, False)
        # another JPEG decoder, one that smooths colours differently
        np.testing.assert_allclose(read_all(slide).astype(int), np.asarray(image), atol=3)


def test_grey_deep_and_palette_png(tmp_path: Path, rgb: NDArray[np.uint8]) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(rgb[..., 1]).save(path)
    assert_opens_as(path, np.repeat(rgb[..., 1:2], 3, axis=-1))
    deep = np.random.default_rng(0).integers(0, 65536, rgb.shape[:2], dtype=np.uint16)
    Image.fromarray(deep).save(path)
    assert_opens_as(path, np.repeat(np.rint(deep / 257).astype(np.uint8)[..., None], 3, axis=-1))
    indexed = Image.fromarray(rgb).quantize(16)
    indexed.save(path)
    assert_opens_as(path, np.asarray(indexed.convert("RGB")))


def test_exif_orientation_is_applied(tmp_path: Path, rgb: NDArray[np.uint8]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(rgb).save(tmp_path / "turned.png", exif=exif)
    assert_opens_as(tmp_path / "turned.png", np.rot90(rgb, -1))


def test_cmyk_jpeg(tmp_path: Path) -> None:
    colours = np.zeros((64, 64, 3), np.uint8)
    colours[:, :32], colours[:, 32:] = (240, 240, 240), (30, 30, 30)
    Image.fromarray(colours).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    with open_slide(tmp_path / "cmyk.jpg") as slide:
        pixels = read_all(slide)
        assert slide.icc is None
    assert pixels[:, :24].min() > 200
    assert pixels[:, 40:].max() < 90
