"""Opening slides: real files against other readers, and files that cannot be used."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from numpy.typing import NDArray

from kin_cli.errors import InputError, UsageError
from kin_cli.geometry import Box, Size
from kin_cli.slide.base import Slide, credible_mpp
from kin_cli.slide.open import open_slide

CMU = Size(2220, 2967)


@pytest.fixture
def svs(shared_data: Path) -> Iterator[Slide]:
    with open_slide(shared_data / "CMU-1-Small-Region.svs") as slide:
        yield slide


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2)))


def test_svs_facts(svs: Slide) -> None:
    assert (svs.format, svs.levels, svs.downsamples) == ("aperio", (CMU,), (1.0,))
    assert (svs.mpp, svs.objective, svs.background) == (0.499, 20.0, (255, 255, 255))
    assert svs.expects_background


def test_svs_equals_openslide(svs: Slide, shared_data: Path) -> None:
    box = Box(1001, 777, 640, 481)
    with openslide.OpenSlide(str(shared_data / "CMU-1-Small-Region.svs")) as reference:
        expected = np.asarray(reference.read_region((box.x, box.y), 0, (box.width, box.height)).convert("RGB"))
    pixels = svs.read(0, box)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, expected)


def test_dicom_and_pyramid_twins_agree(svs: Slide, shared_data: Path) -> None:
    box = Box(900, 1200, 700, 600)
    with (
        open_slide(shared_data / "CMU-1-Small-Region-dicom" / "level0.dcm") as dicom,
        open_slide(shared_data / "CMU-1-Small-Region.pyramid.tif") as tiff,
    ):
        assert dicom.format == "dicom"
        assert dicom.levels == tiff.levels
        assert dicom.levels[0] == CMU
        assert dicom.mpp == pytest.approx(0.499)
        assert tiff.mpp == pytest.approx(0.499)
        assert dicom.icc is not None
        assert psnr(dicom.read(0, box), tiff.read(0, box)) > 40
        assert psnr(tiff.read(0, box), svs.read(0, box)) > 28


@pytest.mark.parametrize("name", ["BS25_HE_20x.tif", "CMU-1-Small-Region.pyramid.tif"])
def test_levels_of_pyramids_are_read_as_they_are_stored(shared_data: Path, name: str) -> None:
    with open_slide(shared_data / name) as slide, tifffile.TiffFile(shared_data / name) as file:
        stored = file.series[0].levels
        assert [(level.height, level.width) for level in slide.levels] == [page.shape[:2] for page in stored]
        for level in range(2, len(stored)):
            size = slide.levels[level]
            box = Box(size.width // 3, size.height // 5, size.width // 2, size.height // 2)
            np.testing.assert_array_equal(slide.read(level, box), stored[level].asarray()[box.slices()])


def test_pixels_of_a_level_do_not_depend_on_the_box(shared_data: Path) -> None:
    # 1483 is not half of 2967: OpenSlide itself interpolates, differently in every region
    path = shared_data / "CMU-1-Small-Region-dicom" / "level0.dcm"
    with open_slide(path) as slide, openslide.OpenSlide(str(path)) as reference:
        level = slide.read(1, Box(0, 0, 1110, 1483))
        assert psnr(level, np.asarray(reference.read_region((0, 0), 1, (1110, 1483)).convert("RGB"))) > 30
        for box in (Box(301, 407, 200, 300), Box(512, 512, 512, 512), Box(1109, 1482, 1, 1)):
            np.testing.assert_array_equal(slide.read(1, box), level[box.slices()])


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


def test_many_threads_read_the_same(svs: Slide) -> None:
    boxes = [Box(x, y, 300, 250) for x in range(0, 1900, 380) for y in range(0, 2600, 520)]
    expected = [svs.read(0, box) for box in boxes]
    with ThreadPoolExecutor(6) as pool:
        for pixels, one_by_one in zip(pool.map(lambda box: svs.read(0, box), boxes), expected, strict=True):
            np.testing.assert_array_equal(pixels, one_by_one)


@pytest.mark.parametrize("box", [Box(-1, 0, 5, 5), Box(2216, 0, 5, 5), Box(0, 2966, 1, 2)])
def test_boxes_beyond_the_level_are_refused(svs: Slide, box: Box) -> None:
    with pytest.raises(ValueError, match="beyond level 0"):
        svs.read(0, box)


def test_levels_beyond_the_slide_are_refused(svs: Slide) -> None:
    with pytest.raises(ValueError, match="levels 0 to 0, not 1"):
        svs.read(1, Box(0, 0, 1, 1))


def test_an_empty_box_has_no_pixels(svs: Slide) -> None:
    assert svs.read(0, Box(7, 8, 0, 5)).shape == (5, 0, 3)


def test_pixel_size_can_be_overridden(shared_data: Path) -> None:
    path = shared_data / "CMU-1-Small-Region.svs"
    with open_slide(path, mpp=0.25) as slide:
        assert slide.mpp == 0.25
    for nonsense in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="positive number"):
            open_slide(path, mpp=nonsense)


@pytest.mark.parametrize(
    ("x", "y", "mpp"),
    [(0.25, 0.27, 0.26), (0.25, None, 0.25), (None, None, None), (352.8, 352.8, None), (1000.0, 0.5, 0.5)],
)
def test_credible_pixel_sizes(x: float | None, y: float | None, mpp: float | None) -> None:
    assert credible_mpp(x, y) == (mpp if mpp is None else pytest.approx(mpp))


class TestDamagedTile:
    """An SVS whose tile at (1200, 1440) is overwritten."""

    GOOD, BAD = Box(0, 0, 240, 240), Box(1210, 1450, 100, 100)

    @pytest.fixture
    def damaged(self, shared_data: Path, tmp_path: Path) -> Iterator[Slide]:
        path = tmp_path / "damaged.svs"
        shutil.copyfile(shared_data / "CMU-1-Small-Region.svs", path)
        path.chmod(0o644)
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            across = -(-page.imagewidth // page.tilewidth)
            number = 1440 // page.tilelength * across + 1200 // page.tilewidth
            offset, count = page.dataoffsets[number], page.databytecounts[number]
        with path.open("r+b") as stream:
            stream.seek(offset)
            stream.write(bytes(count))
        with open_slide(path) as slide:
            yield slide

    def test_names_file_level_and_box_and_goes_on(self, damaged: Slide) -> None:
        before = damaged.read(0, self.GOOD)
        for _ in range(2):
            with pytest.raises(InputError, match=r"damaged\.svs: level 0 cannot be read at Box\(x=1210, y=1450"):
                damaged.read(0, self.BAD)
        np.testing.assert_array_equal(damaged.read(0, self.GOOD), before)

    def test_other_threads_do_not_suffer(self, damaged: Slide) -> None:
        expected = damaged.read(0, self.GOOD)

        def read(number: int) -> NDArray[np.uint8] | None:
            try:
                return damaged.read(0, self.BAD if number % 4 == 0 else self.GOOD)
            except InputError:
                return None

        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(read, range(64)))
        assert [result is None for result in results] == [number % 4 == 0 for number in range(64)]
        for result in results:
            assert result is None or np.array_equal(result, expected)


def refused(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        open_slide(path)
    error = caught.value
    assert str(path) in error.message
    assert "\n" not in str(error)
    assert error.hint
    return error


def test_missing_file(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "none.svs").message


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.svs"
    path.touch()
    assert "is empty" in refused(path).message


def test_text_named_svs(tmp_path: Path) -> None:
    path = tmp_path / "text.svs"
    path.write_text("no slide at all\n" * 100)
    assert "known format" in refused(path).message


def test_folders(tmp_path: Path, shared_data: Path) -> None:
    assert "folder" in refused(tmp_path).message
    assert "level0.dcm" in (refused(shared_data / "CMU-1-Small-Region-dicom").hint or "")
    (tmp_path / "a").mkdir()
    (tmp_path / "a.mrxs").touch()
    assert "a.mrxs" in (refused(tmp_path / "a").hint or "")


@pytest.mark.parametrize(
    "name",
    [
        "CMU-1-Small-Region.svs",
        "CMU-1-Small-Region.pyramid.tif",
        "os_crops/OS-1-detail.ome.tif",
        "BS25_SYN_20x.tif",
    ],
)
def test_truncated_to_half(shared_data: Path, tmp_path: Path, name: str) -> None:
    content = (shared_data / name).read_bytes()
    path = tmp_path / Path(name).name
    path.write_bytes(content[: len(content) // 2])
    refused(path)


def test_truncated_dicom_fails_where_it_ends(shared_data: Path, tmp_path: Path) -> None:
    content = (shared_data / "CMU-1-Small-Region-dicom" / "level0.dcm").read_bytes()
    path = tmp_path / "half.dcm"
    path.write_bytes(content[: len(content) // 2])
    with open_slide(path) as slide:
        assert slide.read(0, Box(0, 0, 100, 100)).std() > 0
        with pytest.raises(InputError, match=r"half\.dcm: level 0 cannot be read at"):
            slide.read(0, Box(2000, 2800, 100, 100))


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
