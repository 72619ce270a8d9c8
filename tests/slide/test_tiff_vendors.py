"""Aperio-like and plain tiled TIFF files that OpenSlide misreads or refuses, against the pixels that were written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
import tifffile
from numpy.typing import NDArray

from kin_cli.errors import InputError
from kin_cli.slide.open import open_slide
from kin_cli.slide.tiff import check_for_openslide
from tests.helpers.pictures import speckled_ramps
from tests.helpers.slides import read_all

_APERIO = "Aperio Image Library v12.0.1\n400x300 (128x128) JPEG/RGB Q=70|AppMag = 20|MPP = 0.5000"
_PICTURE = speckled_ramps(400, 300)


def write_aperio(path: Path, *pictures: NDArray[Any], **options: Any) -> Path:
    with tifffile.TiffWriter(path) as writer:
        for picture in pictures:
            chosen = {"tile": (128, 128), "photometric": "rgb", **options}
            writer.write(picture, description=_APERIO, metadata=None, **chosen)
    return path


@pytest.mark.parametrize("description", [None, _APERIO], ids=["plain", "aperio"])
@pytest.mark.parametrize("tile", [240, 80, 128])
def test_uncompressed_tiles_of_any_size(tmp_path: Path, tile: int, description: str | None) -> None:
    path = tmp_path / "tiles.svs"
    tifffile.imwrite(path, _PICTURE, tile=(tile, tile), photometric="rgb", metadata=None, description=description or "")
    with open_slide(path) as slide:
        np.testing.assert_array_equal(read_all(slide), _PICTURE)
        assert (slide.mpp, slide.objective) == ((0.5, 20.0) if description else (None, None))


def test_uncompressed_tiles_of_libvips(tmp_path: Path) -> None:
    path = tmp_path / "tiles.tif"
    pyvips.Image.new_from_array(_PICTURE).tiffsave(str(path), tile=True, tile_width=240, tile_height=240, pyramid=True)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(read_all(slide), _PICTURE)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "webp", "compressionargs": {"lossless": True}},
        {"compression": "jpegxl"},
        {"compression": "lzma"},
        {"compression": "zstd"},
        {"compression": "jpeg2000", "compressionargs": {"level": 0}},
        {"tile": None},
        {"extratags": [(274, "H", 1, 6, True)]},
    ],
    ids=["webp", "jpegxl", "lzma", "zstd", "jpeg2000", "strips", "turned"],
)
def test_aperio_slides_keep_pixels_and_pixel_size(tmp_path: Path, options: dict[str, Any]) -> None:
    with open_slide(write_aperio(tmp_path / "a.svs", _PICTURE, **options)) as slide:
        np.testing.assert_array_equal(read_all(slide), _PICTURE)
        assert (slide.format, slide.mpp, slide.objective) == ("aperio", 0.5, 20.0)
        assert any("orientation tag (6)" in note for note in slide.notes) == ("extratags" in options)


def test_aperio_with_a_fourth_channel_and_with_alpha(tmp_path: Path) -> None:
    fourth = np.dstack([_PICTURE, _PICTURE[..., 0] // 3])
    with open_slide(write_aperio(tmp_path / "a.svs", fourth, extrasamples=["unspecified"])) as slide:
        np.testing.assert_array_equal(read_all(slide), _PICTURE)
        assert any("fourth sample" in note for note in slide.notes)
    opaque = np.dstack([_PICTURE, np.full_like(_PICTURE[..., 0], 255)])
    with open_slide(write_aperio(tmp_path / "b.svs", opaque, extrasamples=["unassalpha"])) as slide:
        np.testing.assert_array_equal(read_all(slide), _PICTURE)


def test_aperio_with_12_bits_in_16(tmp_path: Path) -> None:
    deep = (_PICTURE.astype(np.uint32) * 4095 // 255).astype(np.uint16)
    with open_slide(write_aperio(tmp_path / "a.svs", deep)) as slide:
        assert np.abs(read_all(slide).astype(int) - _PICTURE).max() <= 1
        assert any("12 bits" in note for note in slide.notes)


@pytest.mark.parametrize("samples", ["rgb", "minisblack"])
def test_aperio_pictures_of_one_size_are_no_levels(tmp_path: Path, samples: str) -> None:
    planes = [_PICTURE, 255 - _PICTURE, _PICTURE // 2]
    planes = planes if samples == "rgb" else [plane[..., 0] for plane in planes]
    with pytest.raises(InputError, match="3 pictures of 400×300"):
        open_slide(write_aperio(tmp_path / "a.svs", *planes, photometric=samples))


def test_aperio_with_a_smaller_level_first(tmp_path: Path) -> None:
    small, thumbnail = _PICTURE[::4, ::4], _PICTURE[::8, ::8]
    path = write_aperio(tmp_path / "a.svs", small, thumbnail, _PICTURE)
    with open_slide(path) as slide:
        assert slide.mpp == 0.5
        np.testing.assert_array_equal(read_all(slide), _PICTURE)


@pytest.mark.parametrize("stored", ["tiles", "strips"])
@pytest.mark.parametrize(("space", "tag"), [("YCBCR", 2), ("RGB", 6)])
def test_jpeg_colours_that_contradict_the_tag(tmp_path: Path, space: str, tag: int, stored: str) -> None:
    import imagecodecs

    picture = np.full((128, 128, 3), (200, 80, 150), np.uint8)
    data = imagecodecs.jpeg8_encode(picture, level=98, colorspace="RGB", outcolorspace=space, subsampling="444")
    where: dict[str, Any] = {"tile": (128, 128)} if stored == "tiles" else {"rowsperstrip": 128}
    path = tmp_path / "jpeg.tif"
    options: dict[str, Any] = {"photometric": "rgb", "compression": "jpeg", "metadata": None, **where}
    tifffile.imwrite(path, iter([data]), shape=picture.shape, dtype=np.uint8, **options)
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages.first.tags["PhotometricInterpretation"].overwrite(tag)
    with open_slide(path) as slide:
        assert np.abs(read_all(slide).astype(int) - picture).max() <= 3


def test_a_tile_at_offset_0_is_no_header(tmp_path: Path) -> None:
    path = tmp_path / "tiles.tif"
    tifffile.imwrite(path, _PICTURE, tile=(128, 128), photometric="rgb", metadata=None)
    with tifffile.TiffFile(path, mode="r+b") as file:
        offsets = file.pages.first.tags["TileOffsets"]
        offsets.overwrite([0 if number == 5 else at for number, at in enumerate(offsets.value)])
    with open_slide(path) as slide, pytest.raises(InputError, match="offset 0"):
        read_all(slide)


def damage(path: Path, number: int, how: str) -> None:
    """Damage tile or strip ``number``: shorten its byte count, or overwrite its second half with zeros."""
    with tifffile.TiffFile(path, mode="r+b") as file:
        page = file.pages.first
        counts = page.tags["TileByteCounts" if page.is_tiled else "StripByteCounts"]
        start, count = page.dataoffsets[number], page.databytecounts[number]
        if how == "cut":
            counts.overwrite([count // 2 if at == number else one for at, one in enumerate(page.databytecounts)])
        else:
            file.filehandle.seek(start + count // 2)
            file.filehandle.write(bytes(count - count // 2))


@pytest.mark.parametrize("how", ["cut", "zeros"])
@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000"])
@pytest.mark.parametrize("where", [{"tile": (128, 128)}, {"rowsperstrip": 64}], ids=["tiles", "strips"])
@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif"])
def test_damaged_tiles_are_refused(
    tmp_path: Path, name: str, where: dict[str, Any], compression: str, how: str
) -> None:
    path = tmp_path / name
    options: dict[str, Any] = {"photometric": "rgb", "compression": compression, **where}
    tifffile.imwrite(path, _PICTURE, metadata={"axes": "YXS"} if "ome" in name else None, **options)
    with open_slide(path) as slide:
        assert np.abs(read_all(slide).astype(int) - tifffile.imread(path)).max() <= 2
    damage(path, 3, how)
    with open_slide(path) as slide, pytest.raises(InputError, match="damaged"):
        read_all(slide)


@pytest.mark.parametrize("factor", [1, 257])
@pytest.mark.parametrize("where", [{"tile": (128, 128)}, {}], ids=["tiles", "strips"])
def test_palettes_of_8_bits(tmp_path: Path, factor: int, where: dict[str, Any]) -> None:
    path, numbers = tmp_path / "palette.tif", _PICTURE[..., 0] // 16
    colours = np.zeros((3, 256), np.uint16)
    colours[:, :16] = np.arange(16) * 16
    tifffile.imwrite(path, numbers, photometric="palette", colormap=colours * factor, metadata=None, **where)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(read_all(slide), np.repeat(numbers[..., None] * 16, 3, axis=2))


def test_the_largest_sample_is_no_depth(tmp_path: Path) -> None:
    path, deep = tmp_path / "deep.tif", _PICTURE.astype(np.uint16) * 109
    tags = [(281, "H", 3, (28000,) * 3, True)]
    tifffile.imwrite(path, deep, photometric="rgb", metadata=None, extratags=tags)
    with open_slide(path) as slide:
        assert np.abs(read_all(slide) - deep / 257).max() <= 0.51


@pytest.mark.parametrize("kind", ["miniswhite", "separated"])
def test_pale_pictures_whose_0_is_white(tmp_path: Path, kind: str) -> None:
    path, ink = tmp_path / "pale.tif", (255 - _PICTURE).astype(np.uint16) * 60
    stored = ink[..., 1] if kind == "miniswhite" else np.dstack([ink, np.zeros_like(ink[..., 0])])
    tifffile.imwrite(path, stored, photometric=kind, metadata=None)
    expected = 255 - (ink[..., 1:2].repeat(3, 2) if kind == "miniswhite" else ink) / 257
    with open_slide(path) as slide:
        assert np.abs(read_all(slide) - expected).max() <= 1.01
        assert any("0 is white" in note for note in slide.notes)


def test_samples_that_openslide_misreads_in_other_formats(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    options: dict[str, Any] = {"tile": (128, 128), "photometric": "rgb", "metadata": None}
    tifffile.imwrite(path, _PICTURE, **options, extratags=[(274, "H", 1, 6, True)])
    right, notes = check_for_openslide(path, "leica")
    assert right
    assert "orientation tag (6)" in notes[0]
    tifffile.imwrite(path, _PICTURE.astype(np.uint16) * 16, **options)
    with pytest.raises(InputError, match="leica with 3 samples of 16 bits"):
        check_for_openslide(path, "leica")
