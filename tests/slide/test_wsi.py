"""Slides that OpenSlide reads: real files against OpenSlide itself, threads, and damaged tiles."""

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

from kin_cli.errors import InputError
from kin_cli.geometry import Box, Size
from kin_cli.slide.base import Slide
from kin_cli.slide.open import open_slide

CMU = Size(2220, 2967)


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2)))


def test_svs_facts(svs: Slide) -> None:
    assert (svs.format, svs.levels, svs.downsamples) == ("aperio", (CMU,), (1.0,))
    assert (svs.mpp, svs.objective, svs.fill_colour) == (0.499, 20.0, (255, 255, 255))
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


def test_pixels_of_a_level_do_not_depend_on_the_box(shared_data: Path) -> None:
    # 1483 is not half of 2967: OpenSlide itself interpolates, differently in every region
    path = shared_data / "CMU-1-Small-Region-dicom" / "level0.dcm"
    with open_slide(path) as slide, openslide.OpenSlide(str(path)) as reference:
        level = slide.read(1, Box(0, 0, 1110, 1483))
        assert psnr(level, np.asarray(reference.read_region((0, 0), 1, (1110, 1483)).convert("RGB"))) > 30
        for box in (Box(301, 407, 200, 300), Box(512, 512, 512, 512), Box(1109, 1482, 1, 1)):
            np.testing.assert_array_equal(slide.read(1, box), level[box.slices()])


def test_many_threads_read_the_same(svs: Slide) -> None:
    boxes = [Box(x, y, 300, 250) for x in range(0, 1900, 380) for y in range(0, 2600, 520)]
    expected = [svs.read(0, box) for box in boxes]
    with ThreadPoolExecutor(6) as pool:
        for pixels, one_by_one in zip(pool.map(lambda box: svs.read(0, box), boxes), expected, strict=True):
            np.testing.assert_array_equal(pixels, one_by_one)


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


def test_truncated_dicom_fails_where_it_ends(shared_data: Path, tmp_path: Path) -> None:
    content = (shared_data / "CMU-1-Small-Region-dicom" / "level0.dcm").read_bytes()
    path = tmp_path / "half.dcm"
    path.write_bytes(content[: len(content) // 2])
    with open_slide(path) as slide:
        assert slide.read(0, Box(0, 0, 100, 100)).std() > 0
        with pytest.raises(InputError, match=r"half\.dcm: level 0 cannot be read at"):
            slide.read(0, Box(2000, 2800, 100, 100))
