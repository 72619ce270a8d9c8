"""How TIFF files store pixels: tiles, strips, planes, bits and alpha, as tifffile writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from kin_cli.slide.open import open_slide
from tests.helpers.pictures import over_white
from tests.helpers.slides import assert_opens_as, read_all


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"byteorder": ">"},
        {"bigtiff": True},
        {"rowsperstrip": 7},
        {"rowsperstrip": 50, "compression": "lzw", "predictor": True},
        {"tile": (64, 128)},
        {"tile": (64, 64), "compression": "adobe_deflate"},
        {"planarconfig": "separate"},
        {"planarconfig": "separate", "compression": "adobe_deflate", "rowsperstrip": 40},
        {"planarconfig": "separate", "tile": (64, 64), "compression": "zstd"},
        {"tile": (64, 64), "compression": "jpeg2000", "compressionargs": {"reversible": True}},
    ],
    ids=lambda options: "-".join(f"{key}={value}" for key, value in options.items()) or "default",
)
def test_lossless_rgb_tiff(tmp_path: Path, rgb: NDArray[np.uint8], options: dict[str, Any]) -> None:
    path = tmp_path / "rgb.tif"
    header = {key: options[key] for key in ("byteorder", "bigtiff") if key in options}
    layout = {key: value for key, value in options.items() if key not in header}
    data = np.moveaxis(rgb, -1, 0) if layout.get("planarconfig") == "separate" else rgb
    tifffile.imwrite(path, data, photometric="rgb", **header, **layout)
    assert_opens_as(path, rgb)


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_sixteen_bits_are_divided_by_257(tmp_path: Path, byteorder: str) -> None:
    path = tmp_path / "deep.tif"
    deep = np.random.default_rng(0).integers(0, 65536, (333, 401, 3), dtype=np.uint16)
    deep[0, :3, 0] = (0, 65535, 128)
    tifffile.imwrite(path, deep, photometric="rgb", byteorder=byteorder)
    assert_opens_as(path, np.rint(deep / 257).astype(np.uint8))


def test_grey_inverted_grey_bilevel_and_palette(tmp_path: Path, rgb: NDArray[np.uint8]) -> None:
    grey = rgb[..., 0]
    as_rgb = np.repeat(grey[..., None], 3, axis=-1)
    path = tmp_path / "grey.tif"
    tifffile.imwrite(path, grey, photometric="minisblack")
    assert_opens_as(path, as_rgb)
    tifffile.imwrite(path, grey, photometric="miniswhite", compression="lzw")
    assert_opens_as(path, 255 - as_rgb)
    Image.fromarray(grey > 100).save(path, compression="tiff_lzw")
    assert_opens_as(path, np.where(as_rgb > 100, 255, 0).astype(np.uint8))
    colours = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
    tifffile.imwrite(path, grey, photometric="palette", colormap=(colours.T.astype(np.uint16) * 257))
    assert_opens_as(path, colours[grey])


def test_cmyk_tiff(tmp_path: Path, rgb: NDArray[np.uint8]) -> None:
    path = tmp_path / "cmyk.tif"
    Image.fromarray(rgb).convert("CMYK").save(path)
    with open_slide(path) as slide:
        np.testing.assert_allclose(read_all(slide).astype(int), rgb, atol=1)


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize("tile", [None, (64, 64)])
def test_alpha_of_tiff_is_composited_on_white(
    tmp_path: Path, rgb: NDArray[np.uint8], kind: str, tile: tuple[int, int] | None
) -> None:
    path = tmp_path / "rgba.tif"
    alpha = np.tile(np.arange(rgb.shape[1], dtype=np.uint16) % 256, (rgb.shape[0], 1)).astype(np.uint8)
    stored = rgb if kind == "unassalpha" else np.rint(rgb * (alpha[..., None] / 255)).astype(np.uint8)
    tifffile.imwrite(path, np.dstack([stored, alpha]), photometric="rgb", extrasamples=[kind], tile=tile)
    with open_slide(path) as slide:
        # a premultiplied colour was rounded before it was stored; OpenSlide (tiles) rounds once more
        np.testing.assert_allclose(
            read_all(slide), over_white(rgb, alpha), atol=0.5 if kind == "unassalpha" and not tile else 2
        )


def test_missing_tiles_are_background(tmp_path: Path, rgb: NDArray[np.uint8]) -> None:
    path = tmp_path / "sparse.ome.tif"
    encoded = [imagecodecs.zlib_encode(np.ascontiguousarray(rgb[:64, :64])) if n == 0 else b"" for n in range(42)]
    tifffile.imwrite(
        path,
        iter(encoded),
        shape=rgb.shape,
        dtype=np.uint8,
        tile=(64, 64),
        photometric="rgb",
        compression="adobe_deflate",
    )
    with open_slide(path) as slide:
        pixels = read_all(slide)
    np.testing.assert_array_equal(pixels[:64, :64], rgb[:64, :64])
    assert (pixels[64:] == 255).all()
    assert (pixels[:, 64:] == 255).all()


@pytest.mark.parametrize(
    ("resolution", "unit", "mpp"),
    [
        ((20000, 20000), "CENTIMETER", 0.5),
        ((50800, 50800), "INCH", 0.5),
        ((72, 72), "INCH", None),
        ((300, 300), "INCH", None),
        ((10, 10), "CENTIMETER", None),
        ((20000, 20000), "NONE", None),
    ],
)
def test_resolution_tags(
    tmp_path: Path, rgb: NDArray[np.uint8], resolution: tuple[int, int], unit: str, mpp: float | None
) -> None:
    path = tmp_path / "resolution.tif"
    tifffile.imwrite(path, rgb, photometric="rgb", resolution=resolution, resolutionunit=unit)
    with open_slide(path) as slide:
        assert slide.mpp == (None if mpp is None else pytest.approx(mpp))
