"""Pictures of all kinds as masks: they mean what a viewer shows, judged by Pillow and NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from kin_cli.errors import InputError
from kin_cli.geometry import Size
from kin_cli.slide.mask_file import load_mask
from kin_cli.slide.mask_picture import read_picture
from kin_cli.slide.open import open_slide
from kin_cli.slide.tissue import TissueMask
from kin_cli.slide.view import open_view
from tests.helpers.cases_masks import HEIGHT, LEFT, WIDTH, flags, write_scn
from tests.helpers.slides import plain_slide

ONES = flags().astype(np.uint8)


def loaded(path: Path) -> TissueMask:
    return load_mask(path, open_view(plain_slide(WIDTH, HEIGHT)))


def notes(path: Path) -> list[str]:
    return [note.removeprefix(f"{path}: ") for note in loaded(path).notes]


def with_holes(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """NaN where no tissue is."""
    return np.where(flags(), array, np.nan).astype(np.float32)


@pytest.mark.parametrize(
    ("array", "options"),
    [
        (ONES * 255, {}),
        (ONES, {"byteorder": ">"}),
        (ONES, {"bigtiff": True, "tile": (64, 64)}),
        (ONES.astype(np.uint16) * 513, {"compression": "lzw"}),
        (ONES.astype(np.int32) * 70_000, {"compression": "zstd", "predictor": True}),
        (ONES.astype(np.uint64), {}),
        (ONES * np.float64(0.25), {}),
        (with_holes(ONES), {}),
        (np.dstack([0 * ONES, 0 * ONES, ONES * 200]), {"photometric": "rgb"}),
        (np.stack([0 * ONES, 0 * ONES, ONES]), {"photometric": "rgb", "planarconfig": "separate"}),
        (np.dstack([0 * ONES, 0 * ONES, 0 * ONES, ONES]), {"photometric": "rgb", "extrasamples": ["unspecified"]}),
        (255 * (1 - ONES), {"photometric": "miniswhite"}),
        (255 * ONES, {"compression": "jpeg", "tile": (64, 64)}),
        (255 * ONES, {"compression": "jpegxl", "tile": (64, 64)}),
        (ONES * 255, {"compression": "lerc"}),
    ],
)
def test_tiff_of_any_kind(tmp_path: Path, array: np.ndarray[Any, Any], options: dict[str, Any]) -> None:
    tifffile.imwrite(tmp_path / "mask.tif", array, **options)
    np.testing.assert_array_equal(loaded(tmp_path / "mask.tif").mask, flags())
    assert notes(tmp_path / "mask.tif") == []


@pytest.mark.parametrize("compression", ["raw", "group3", "group4", "tiff_lzw"])
def test_bilevel_tiff_shows_what_pillow_shows(tmp_path: Path, compression: str) -> None:
    Image.fromarray(flags()).save(tmp_path / "mask.tif", compression=compression)
    np.testing.assert_array_equal(loaded(tmp_path / "mask.tif").mask, np.asarray(Image.open(tmp_path / "mask.tif")))


def test_arrays_of_bool_as_tifffile_writes_them(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "mask.tif", flags())  # it marks them as 0 is white
    np.testing.assert_array_equal(loaded(tmp_path / "mask.tif").mask, flags())
    assert notes(tmp_path / "mask.tif") == ["bits that are set count as tissue, although the file calls them black"]


@pytest.mark.parametrize("kind", ["subifds", "pages", "unmarked", "thumbnail first"])
def test_the_largest_picture_of_a_pyramid_counts(tmp_path: Path, kind: str) -> None:
    with tifffile.TiffWriter(tmp_path / "mask.tif") as file:
        if kind == "thumbnail first":
            file.write(np.zeros((40, 50, 3), np.uint8), photometric="rgb")
        file.write(ONES, tile=(64, 64), subifds=1 if kind == "subifds" else 0)
        file.write(0 * ONES[::2, ::2], tile=(64, 64), subfiletype=0 if kind == "unmarked" else 1)
    np.testing.assert_array_equal(loaded(tmp_path / "mask.tif").mask, flags())


@pytest.mark.parametrize("imagej", [True, False])
def test_several_pictures_of_one_size_are_refused(tmp_path: Path, imagej: bool) -> None:
    tifffile.imwrite(tmp_path / "mask.tif", np.stack([ONES] * 2), imagej=imagej, photometric="minisblack")
    with pytest.raises(InputError, match="the mask holds 2 pictures of one size"):
        loaded(tmp_path / "mask.tif")


def test_jpeg_counts_from_half(tmp_path: Path) -> None:
    shape = np.roll(ONES, 3, axis=1)  # off the grid of JPEG's blocks
    for quality in (20, 95):
        Image.fromarray(shape * 255).save(tmp_path / "mask.jpg", quality=quality)
        assert np.asarray(Image.open(tmp_path / "mask.jpg"))[shape == 0].any()
        np.testing.assert_array_equal(loaded(tmp_path / "mask.jpg").mask, shape > 0)
        assert notes(tmp_path / "mask.jpg") == []
    labels = np.where(flags(), 200, 0).astype(np.uint8)
    labels[:, 200:] = 100
    Image.fromarray(labels).save(tmp_path / "labels.jpg", quality=95)
    np.testing.assert_array_equal(loaded(tmp_path / "labels.jpg").mask, flags())
    (note,) = notes(tmp_path / "labels.jpg")
    assert "38% of the mask is darker than 128 but not black" in note


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize(
    ("colours", "indices", "noted"),
    [
        ([(0, 0, 0), (0, 9, 0)], ONES, False),
        ([(255, 255, 255), (255, 0, 0)], ONES, True),  # QuPath's labels with a white background
        ([(255, 255, 255), (0, 0, 0)], 1 - ONES, False),  # black and white, quantized
    ],
)
def test_palettes(tmp_path: Path, ending: str, colours: list[Any], indices: Any, noted: bool) -> None:
    path = tmp_path / f"mask.{ending}"
    if ending == "png":
        image = Image.fromarray(indices, mode="P")
        image.putpalette([value for colour in colours for value in colour])
        image.save(path)
    else:
        table = np.ones((3, 256), np.uint16) * 999
        table[:, : len(colours)] = np.array(colours).T * 257
        tifffile.imwrite(path, indices, photometric="palette", colormap=table)
    np.testing.assert_array_equal(loaded(path).mask, flags())
    first = "the first colour of the palette, (255, 255, 255), counts as no tissue"
    assert notes(path) == ([first] if noted else [])


@pytest.mark.parametrize("colour", [0, 255])
def test_a_shape_in_the_opacity_alone(tmp_path: Path, colour: int) -> None:
    plain = np.full_like(ONES, colour)
    Image.fromarray(np.dstack([plain, plain, plain, ONES * 200])).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(loaded(tmp_path / "mask.png").mask, flags())
    assert notes(tmp_path / "mask.png") == ["transparent pixels of the mask count as no tissue"]


def test_proportions_of_another_slide_are_noted(tmp_path: Path) -> None:
    for size, expected in (((320, 128), True), ((32, 26), False), ((5, 4), False), ((320, 250), False)):
        Image.fromarray(ONES).resize(size).save(tmp_path / "mask.png")
        assert (
            any("proportions are not those of the slide" in note for note in notes(tmp_path / "mask.png")) == expected
        )
    Image.fromarray(ONES * 0 + 1).save(tmp_path / "mask.png")
    assert notes(tmp_path / "mask.png") == ["the mask has no background: everything counts as tissue"]


def test_a_picture_is_laid_over_the_whole_slide_with_bounds(tmp_path: Path) -> None:
    Image.fromarray(ONES).resize((400, 300), Image.Resampling.NEAREST).save(tmp_path / "mask.png")
    with open_slide(write_scn(tmp_path / "bounded.scn")) as slide:
        mask = load_mask(tmp_path / "mask.png", open_view(slide))
    assert mask.tissue_fraction == pytest.approx(LEFT / WIDTH, abs=0.01)
    assert "laid over the whole slide, 2048×1536, not only over the part that was scanned" in mask.notes[0]


@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
def test_a_large_picture_is_reduced_by_any(tmp_path: Path, ending: str) -> None:
    large = np.zeros((5003, 700), np.uint8)
    large[4999:, 690:] = 255
    large[1000:1100, 8:16] = 255
    Image.fromarray(large).save(tmp_path / f"mask.{ending}")
    kind = {"png": "PNG", "jpg": "JPEG", "tif": "TIFF"}[ending]
    mask, _ = read_picture(tmp_path / f"mask.{ending}", kind)
    even = np.zeros((5004, 700), np.bool_)
    even[:5003] = large > 0
    np.testing.assert_array_equal(mask, even.reshape(2502, 2, 350, 2).any(axis=(1, 3)))


@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
def test_damaged_pictures(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"mask.{ending}"
    Image.fromarray(ONES * 255).save(path)
    for length in (len(path.read_bytes()) // 2, 9):
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(InputError, match=f"mask.{ending}: the mask is ") as caught:
            loaded(path)
        assert "\n" not in str(caught.value)
    assert Size(WIDTH, HEIGHT).pixels == ONES.size
