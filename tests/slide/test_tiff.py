"""TIFF and OME-TIFF files as slides: levels, pixel sizes, profiles, and damage, against tifffile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from kin_cli.errors import InputError
from kin_cli.geometry import Box, Size
from kin_cli.slide.open import open_slide
from kin_cli.slide.tiff_layout import tiff_file
from tests.helpers.cases_slides import write_huge_tile, write_larger_tile
from tests.helpers.pictures import speckled_ramps
from tests.helpers.slides import assert_opens_as, read_all


def test_jpeg_tiff_equals_tifffile(tmp_path: Path, rgb: NDArray[np.uint8]) -> None:
    path = tmp_path / "jpeg.tif"
    tifffile.imwrite(path, rgb, photometric="rgb", compression="jpeg", rowsperstrip=64, subsampling=(2, 2))
    assert_opens_as(path, tifffile.imread(path))


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
    write_ome(path, rgb, "YXS", levels=3, PhysicalSizeX=250, PhysicalSizeXUnit="nm", PhysicalSizeY=0.2525)
    with open_slide(path) as slide:
        assert slide.format == "ome-tiff"
        assert slide.mpp == pytest.approx((0.25 + 0.2525) / 2)
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
        (np.zeros((5, 90, 80), np.uint8), "CYX", "5 channels of uint8"),
        (np.zeros((3, 90, 80), np.uint16), "CYX", "uint16"),
        (np.zeros((4, 90, 80, 3), np.uint8), "ZYXS", "a stack of 4 pictures"),
        (np.zeros((90, 80), np.float32), "YX", "floating-point numbers of 32 bits"),
        (np.zeros((90, 80), np.int16), "YX", "signed integers of 16 bits"),
    ],
    ids=["five channels", "deep channels", "stack", "float", "signed"],
)
def test_what_is_no_picture_is_refused(tmp_path: Path, data: NDArray[Any], axes: str, seen: str) -> None:
    path = tmp_path / "other.ome.tif"
    write_ome(path, data, axes)
    with pytest.raises(InputError, match=seen) as caught:
        open_slide(path)
    assert "other.ome.tif" in caught.value.message


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


@pytest.mark.parametrize("name", ["BS25_HE_20x.tif", "CMU-1-Small-Region.pyramid.tif"])
def test_levels_of_pyramids_are_read_as_they_are_stored(shared_data: Path, name: str) -> None:
    with open_slide(shared_data / name) as slide, tifffile.TiffFile(shared_data / name) as file:
        stored = file.series[0].levels
        assert [(level.height, level.width) for level in slide.levels] == [page.shape[:2] for page in stored]
        for level in range(2, len(stored)):
            size = slide.levels[level]
            box = Box(size.width // 3, size.height // 5, size.width // 2, size.height // 2)
            np.testing.assert_array_equal(slide.read(level, box), stored[level].asarray()[box.slices()])


@pytest.mark.parametrize(
    ("name", "side", "mpp"),
    [("OS-1-detail", 1101, 0.227), ("OS-2-ndpi", 2202, 0.227), ("OS-2-vsi", 1445, 0.346)],
)
def test_ome_tiff_that_openslide_does_not_open(shared_data: Path, name: str, side: int, mpp: float) -> None:
    path = shared_data / "os_crops" / f"{name}.ome.tif"
    with open_slide(path) as slide:
        assert slide.format == "ome-tiff"
        assert slide.levels == (Size(side, side),)
        assert slide.mpp == pytest.approx(mpp, abs=5e-4)
        box = Box(400, 500, 600, 601)
        np.testing.assert_array_equal(slide.read(0, box), tifffile.imread(path)[box.slices()])


@pytest.mark.parametrize(("tag", "value"), [("TileLength", 0), ("ImageWidth", 0)])
def test_nonsense_in_a_tiffs_fields_is_an_input_error(tmp_path: Path, tag: str, value: int) -> None:
    file = tmp_path / "nonsense.tif"
    tifffile.imwrite(file, np.zeros((64, 64, 3), np.uint8), tile=(32, 32), photometric="rgb", metadata=None)
    with tifffile.TiffFile(file, mode="r+b") as tiff:
        tiff.pages[0].tags[tag].overwrite(value)  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"nonsense\.tif"):
        open_slide(file)


@pytest.mark.parametrize(("old", "new"), [(b"<Pixels", b"<Pixel>"), (b"encoding=", b"encodings"), (b"<OME", b"\0OME")])
def test_damaged_ome_xml_is_an_input_error(tmp_path: Path, old: bytes, new: bytes) -> None:
    file = tmp_path / "damaged.ome.tif"
    tifffile.imwrite(file, np.zeros((64, 64, 3), np.uint8), tile=(32, 32), photometric="rgb", metadata={"axes": "YXS"})
    content = file.read_bytes()
    assert old in content
    file.write_bytes(content.replace(old, new, 1))
    with pytest.raises(InputError, match=r"damaged\.ome\.tif"):
        open_slide(file)


@pytest.mark.parametrize(
    ("unit", "half_um"),
    [
        ("um", 0.5),
        ("\\u00B5m", 0.5),
        (b"\xb5m", 0.5),
        ("micron", 0.5),
        ("nm", 500),
        ("mm", 0.5e-3),
        ("cm", 0.5e-4),
        ("inch", 0.5 / 25400),
        ("pixel", None),
    ],
)
def test_units_of_imagej(tmp_path: Path, rgb: NDArray[np.uint8], unit: str | bytes, half_um: float | None) -> None:
    path = tmp_path / "fiji.tif"
    per_unit = 1 / (half_um or 0.5)
    metadata = {"unit": "?m" if isinstance(unit, bytes) else unit}
    tifffile.imwrite(path, rgb, imagej=True, photometric="rgb", resolution=(per_unit, per_unit), metadata=metadata)
    if isinstance(unit, bytes):
        path.write_bytes(path.read_bytes().replace(b"unit=?m", b"unit=" + unit))
    with open_slide(path) as slide:
        assert slide.mpp == (None if half_um is None else pytest.approx(0.5, rel=1e-3))
        np.testing.assert_array_equal(read_all(slide), rgb)


@pytest.mark.parametrize(
    ("unit", "half_um"), [("nm", 500), ("µm", 0.5), ("mm", 0.5e-3), ("cm", 0.5e-4), ("Å", 5000), ("pixel", None)]
)
def test_units_of_ome(tmp_path: Path, rgb: NDArray[np.uint8], unit: str, half_um: float | None) -> None:
    size = half_um or 0.5
    scale = {"PhysicalSizeX": size, "PhysicalSizeY": size, "PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    write_ome(tmp_path / "a.ome.tif", rgb, "YXS", **scale)
    with open_slide(tmp_path / "a.ome.tif") as slide:
        assert slide.mpp == (None if half_um is None else pytest.approx(0.5))


def test_a_resolution_without_a_unit_is_no_pixel_size(tmp_path: Path, rgb: NDArray[np.uint8]) -> None:
    tifffile.imwrite(tmp_path / "a.tif", rgb, photometric="rgb", resolution=(2, 2), resolutionunit=1, metadata=None)
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.mpp is None


@pytest.mark.parametrize("tile", [None, (64, 64)])
def test_pixels_that_are_not_square_are_refused(
    tmp_path: Path, rgb: NDArray[np.uint8], tile: tuple[int, int] | None
) -> None:
    path = tmp_path / "flat.tif"
    options: dict[str, Any] = {"photometric": "rgb", "tile": tile, "metadata": None, "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, rgb, resolution=(40000, 20000), **options)
    with pytest.raises(InputError, match=r"not square, 0\.25 × 0\.5 µm") as caught:
        open_slide(path)
    assert "--source-mpp" in (caught.value.hint or "")
    with open_slide(path, mpp=0.5) as slide:
        assert slide.mpp == 0.5
    tifffile.imwrite(path, rgb, resolution=(20000, 20180), **options)  # as scanners calibrate
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx((0.5 + 10000 / 20180) / 2)


@pytest.mark.parametrize(("memory", "why"), [(16, "a quarter of the 16.0 GiB"), (1000, r"only \d+ B are stored")])
def test_a_huge_tile_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int, why: str
) -> None:
    monkeypatch.setattr("kin_cli.slide.tiff_layout.memory_limit", lambda: memory << 30)
    with pytest.raises(
        InputError, match=rf"one tile of 65520×65520 pixels takes 12\.9 GB of memory, .*{why}"
    ) as caught:
        open_slide(write_huge_tile(tmp_path / "one_huge_tile.tif"))
    assert "smaller tiles" in (caught.value.hint or "")


def test_a_tile_that_takes_less_memory_than_there_is_is_read(
    tmp_path: Path, rgb: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is that of the machine or of the job, not a number of our own."""
    path, side = tmp_path / "large.tif", 1024
    large = np.tile(rgb, (4, 4, 1))[:side, :side]
    tifffile.imwrite(path, large, tile=(side, side), photometric="rgb", compression="deflate", metadata=None)
    for memory in (4 * large.nbytes, 4 * large.nbytes - 1):
        monkeypatch.setattr("kin_cli.slide.tiff_layout.memory_limit", lambda allowed=memory: allowed)
        if memory == 4 * large.nbytes:
            with open_slide(path) as slide:
                np.testing.assert_array_equal(read_all(slide), large)
        else:
            with pytest.raises(InputError, match="one tile of 1024×1024 pixels"):
                open_slide(path)


def test_a_tile_that_stores_more_than_its_part_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "larger.tif"
    expected = write_larger_tile(path)
    with open_slide(path) as slide:
        np.testing.assert_allclose(read_all(slide).astype(int), expected, atol=2)


def test_an_unknown_compression_is_not_called_damaged(tmp_path: Path, rgb: NDArray[np.uint8]) -> None:
    for tile in (None, (64, 64)):
        path = tmp_path / "odd.tif"
        tifffile.imwrite(path, rgb, photometric="rgb", compression="deflate", tile=tile, metadata=None)
        with tifffile.TiffFile(path, mode="r+b") as tiff:
            tiff.pages[0].tags["Compression"].overwrite(61234)  # type: ignore[union-attr]
        with pytest.raises(InputError, match="compression, number 61234") as caught:
            open_slide(path)
        assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("kind", range(4))
def test_mutated_files_are_read_or_refused(tmp_path: Path, kind: int) -> None:
    """Bytes flipped, overwritten, removed and cut off: pixels or one line, never another error."""
    draws = np.random.default_rng(kind)
    small = speckled_ramps(90, 70)
    seeds = []
    for name, options in (
        ("a.tif", {"tile": (32, 32), "compression": "deflate"}),
        ("b.tif", {"rowsperstrip": 16, "compression": "lzw"}),
        ("c.ome.tif", {"tile": (32, 32)}),
        ("d.tif", {}),
    ):
        tifffile.imwrite(tmp_path / name, small, photometric="rgb", **options)  # type: ignore[arg-type]
    for name in ("e.png", "f.jpg"):
        Image.fromarray(small).save(tmp_path / name)
    seeds = sorted(tmp_path.iterdir())
    for number in range(90):
        seed = seeds[number % len(seeds)]
        content = bytearray(seed.read_bytes())
        at, head = int(draws.integers(len(content))), int(draws.integers(min(400, len(content))))
        if kind == 0:
            content[head] = int(draws.integers(256))
        elif kind == 1:
            content[at : at + 20] = draws.bytes(min(20, len(content) - at))
        elif kind == 2:
            del content[at : at + int(draws.integers(1, 100))]
        else:
            del content[at:]
        path = tmp_path / f"mutated-{seed.name}"
        path.write_bytes(content)
        error = failure(path)
        if error is not None:
            assert str(path) in error.message
            assert "\n" not in str(error)
            assert error.hint


def failure(path: Path) -> InputError | None:
    """The refusal of a file, or of one of its levels; None if all of it is read."""
    try:
        with open_slide(path) as slide:
            for level, size in enumerate(slide.levels):
                slide.read(level, Box(0, 0, min(size.width, 500), min(size.height, 500)))
    except InputError as error:
        return error
    return None


def test_a_tile_that_claims_a_gigantic_picture_is_refused(tmp_path: Path, rgb: NDArray[np.uint8]) -> None:
    path = tmp_path / "bomb.ome.tif"
    tifffile.imwrite(path, rgb, photometric="rgb", compression="jpeg2000", tile=(512, 512), ome=True)
    content = path.read_bytes()
    at = content.find(b"\xff\x4f\xff\x51") + 8
    path.write_bytes(content[:at] + (60_000).to_bytes(4, "big") * 2 + content[at + 8 :])
    with open_slide(path) as slide, pytest.raises(InputError, match=r"a picture of 60000×60000 pixels"):
        slide.read(0, Box(0, 0, 10, 10))


def test_a_chain_of_pages_that_leads_back_is_cut(tmp_path: Path) -> None:
    """tifffile follows such a chain for ever, unless it is asked for the number of pages first."""
    file = tmp_path / "loop.tif"
    with tifffile.TiffWriter(file) as tiff:
        for _ in range(3):
            tiff.write(np.zeros((64, 64, 3), np.uint8), photometric="rgb", tile=(64, 64), metadata=None)
    with tifffile.TiffFile(file) as tiff:
        last = tiff.pages[2].offset
    content = bytearray(file.read_bytes())
    entries = int.from_bytes(content[last : last + 2], "little")
    content[last + 2 + 12 * entries : last + 6 + 12 * entries] = last.to_bytes(4, "little")
    file.write_bytes(content)
    with tiff_file(file) as tiff:
        assert sum(1 for _ in tiff.pages) == 3
