"""TIFF, OME-TIFF, PNG and JPEG: what they store against what is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from kin_cli.errors import InputError
from kin_cli.geometry import Box, Size
from kin_cli.slide.base import Slide
from kin_cli.slide.open import open_slide

SHAPE = (333, 401)


@pytest.fixture(scope="module")
def rgb() -> NDArray[np.uint8]:
    y, x = np.mgrid[0 : SHAPE[0], 0 : SHAPE[1]]
    noise = np.random.default_rng(3).integers(0, 40, (*SHAPE, 3))
    return (np.stack([x % 200, y % 180, (x + y) % 150], axis=-1) + noise).astype(np.uint8)


def read_all(slide: Slide, level: int = 0) -> NDArray[np.uint8]:
    size = slide.levels[level]
    return slide.read(level, Box(0, 0, size.width, size.height))


def assert_opens_as(path: Path, expected: NDArray[np.uint8]) -> None:
    with open_slide(path) as slide:
        assert slide.levels[0] == Size(expected.shape[1], expected.shape[0])
        np.testing.assert_array_equal(read_all(slide), expected)
        box = Box(101, 57, 230, 201)
        np.testing.assert_array_equal(slide.read(0, box), expected[box.slices()])


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


def test_jpeg_tiff_equals_tifffile(tmp_path: Path, rgb: NDArray[np.uint8]) -> None:
    path = tmp_path / "jpeg.tif"
    tifffile.imwrite(path, rgb, photometric="rgb", compression="jpeg", rowsperstrip=64, subsampling=(2, 2))
    assert_opens_as(path, tifffile.imread(path))


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_sixteen_bits_are_divided_by_257(tmp_path: Path, byteorder: str) -> None:
    path = tmp_path / "deep.tif"
    deep = np.random.default_rng(0).integers(0, 65536, (*SHAPE, 3), dtype=np.uint16)
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


def over_white(rgb: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.float64]:
    opacity = alpha[..., None] / 255
    return rgb * opacity + 255 * (1 - opacity)


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize("tile", [None, (64, 64)])
def test_alpha_of_tiff_is_composited_on_white(
    tmp_path: Path, rgb: NDArray[np.uint8], kind: str, tile: tuple[int, int] | None
) -> None:
    path = tmp_path / "rgba.tif"
    alpha = np.tile(np.arange(SHAPE[1], dtype=np.uint16) % 256, (SHAPE[0], 1)).astype(np.uint8)
    stored = rgb if kind == "unassalpha" else np.rint(rgb * (alpha[..., None] / 255)).astype(np.uint8)
    tifffile.imwrite(path, np.dstack([stored, alpha]), photometric="rgb", extrasamples=[kind], tile=tile)
    with open_slide(path) as slide:
        # a premultiplied colour was rounded before it was stored; OpenSlide (tiles) rounds once more
        np.testing.assert_allclose(
            read_all(slide), over_white(rgb, alpha), atol=0.5 if kind == "unassalpha" and not tile else 2
        )


def test_alpha_of_png_is_composited_on_white(tmp_path: Path, rgb: NDArray[np.uint8]) -> None:
    alpha = np.random.default_rng(5).integers(0, 256, SHAPE, dtype=np.uint8)
    Image.fromarray(np.dstack([rgb, alpha])).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png") as slide:
        np.testing.assert_allclose(read_all(slide), over_white(rgb, alpha), atol=0.51)


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


def write_ome(path: Path, data: NDArray[Any], axes: str, levels: int = 1, **metadata: object) -> None:
    options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb" if axes.endswith("S") else "minisblack"}
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(data, subifds=levels - 1, metadata={"axes": axes, **metadata}, **options)
        for level in range(1, levels):
            step = 2**level
            reduced = data[::step, ::step] if axes.startswith("Y") else data[..., ::step, ::step]
            writer.write(np.ascontiguousarray(reduced), subfiletype=1, **options)


def test_ome_levels_in_subifds(tmp_path: Path, rgb: NDArray[np.uint8]) -> None:
    path = tmp_path / "levels.ome.tif"
    write_ome(path, rgb, "YXS", levels=3, PhysicalSizeX=250, PhysicalSizeXUnit="nm", PhysicalSizeY=0.26)
    with open_slide(path) as slide:
        assert slide.format == "ome-tiff"
        assert slide.mpp == pytest.approx((0.25 + 0.26) / 2)
        assert [level.width for level in slide.levels] == [401, 201, 101]
        assert slide.downsamples == pytest.approx((1, 2, 4), rel=0.01)
        for level in range(3):
            np.testing.assert_array_equal(read_all(slide, level), rgb[:: 2**level, :: 2**level])


def test_ome_with_colours_in_pages(tmp_path: Path, rgb: NDArray[np.uint8]) -> None:
    path = tmp_path / "channels.ome.tif"
    write_ome(path, np.ascontiguousarray(np.moveaxis(rgb, -1, 0)), "CYX", levels=2)
    with open_slide(path) as slide:
        assert slide.mpp is None
        np.testing.assert_array_equal(read_all(slide), rgb)
        np.testing.assert_array_equal(read_all(slide, 1), rgb[::2, ::2])


@pytest.mark.parametrize(
    ("data", "axes", "seen"),
    [
        (np.zeros((5, 90, 80), np.uint8), "CYX", "5×90×80"),
        (np.zeros((3, 90, 80), np.uint16), "CYX", "uint16"),
        (np.zeros((4, 90, 80, 3), np.uint8), "ZYXS", "4×90×80×3"),
        (np.zeros((90, 80), np.float32), "YX", "float32"),
        (np.zeros((90, 80), np.int16), "YX", "int16"),
    ],
    ids=["five channels", "deep channels", "stack", "float", "signed"],
)
def test_what_is_no_picture_is_refused(tmp_path: Path, data: NDArray[Any], axes: str, seen: str) -> None:
    path = tmp_path / "other.ome.tif"
    write_ome(path, data, axes)
    with pytest.raises(InputError, match=seen) as caught:
        open_slide(path)
    assert "other.ome.tif" in caught.value.message


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


def test_icc_profiles_are_kept(tmp_path: Path, rgb: NDArray[np.uint8]) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name in ("a.png", "a.jpg", "a.tif"):
        Image.fromarray(rgb).save(tmp_path / name, icc_profile=profile)
        with open_slide(tmp_path / name) as slide:
            assert slide.icc == profile
    Image.fromarray(rgb).save(tmp_path / "none.png")
    with open_slide(tmp_path / "none.png") as slide:
        assert slide.icc is None


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
    deep = np.random.default_rng(0).integers(0, 65536, SHAPE, dtype=np.uint16)
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


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "strips.tif", "raw.tif"])
def test_truncated_pictures(tmp_path: Path, rgb: NDArray[np.uint8], name: str) -> None:
    path = tmp_path / name
    if name.endswith(".tif"):
        compression = "lzw" if name == "strips.tif" else None
        tifffile.imwrite(path, rgb, photometric="rgb", compression=compression, rowsperstrip=16)
    else:
        Image.fromarray(rgb).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    with pytest.raises(InputError, match=name):
        open_slide(path)


def test_garbled_tile_is_told(tmp_path: Path, rgb: NDArray[np.uint8]) -> None:
    path = tmp_path / "garbled.tif"
    tifffile.imwrite(path, rgb, photometric="rgb", compression="adobe_deflate", rowsperstrip=16)
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[0].dataoffsets[3], file.pages[0].databytecounts[3]
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(bytes(count))
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read(0, Box(0, 0, 401, 48)), rgb[:48])
        with pytest.raises(InputError, match=r"garbled\.tif: level 0 cannot be read at Box\(x=0, y=48"):
            slide.read(0, Box(5, 50, 2, 2))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_thin_pictures(tmp_path: Path, size: tuple[int, int], name: str) -> None:
    picture = np.full((size[1], size[0], 3), 77, np.uint8)
    Image.fromarray(picture).save(tmp_path / name)
    with open_slide(tmp_path / name) as slide:
        assert slide.levels == (Size(*size),)
        np.testing.assert_array_equal(read_all(slide), picture)


def test_only_the_rows_asked_are_read_of_an_uncompressed_picture(tmp_path: Path) -> None:
    path = tmp_path / "sparse.tif"
    # 3.6 GB that take no room on disk: a hole between the first and the last row
    width, height = 30_000, 40_000
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(shape=(height, width, 3), dtype=np.uint8, photometric="rgb", data=None)
    with tifffile.TiffFile(path) as file:
        start = file.pages[0].dataoffsets[0]
    with path.open("r+b") as stream:
        stream.truncate(start + width * height * 3)
        stream.seek(start + (39_990 * width + 29_000) * 3)
        stream.write(bytes(range(30)))
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read(0, Box(29_000, 39_990, 10, 1)).ravel(), np.arange(30))
