"""Pictures of all kinds as masks: they mean what a viewer shows, judged by Pillow and NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from kin_cli.errors import InputError
from kin_cli.geometry import Box, Size
from kin_cli.slide.mask_file import load_mask
from kin_cli.slide.mask_picture import read_picture
from kin_cli.slide.open import open_slide
from kin_cli.slide.tissue import TissueMask
from kin_cli.slide.view import open_view
from tests.helpers.cases_masks import HEIGHT, LEFT, WIDTH, flags, write_scn
from tests.helpers.slides import plain_slide

ONES = flags().astype(np.uint8)
CORNER = ONES * 0
CORNER[:, :80] = 1  # a class at the border, less than half of it
INNER = ONES * 0
INNER[40:90, 10:60] = 1  # a second class within the first
RED, WHITE = (200, 0, 0), (255, 255, 255)
FIRST = "the first colour of the palette, (255, 255, 255), counts as no tissue"


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


@pytest.mark.parametrize(
    ("height", "width", "reduced"),
    [(200, 300, True), (200, 300, False), (HEIGHT, WIDTH, True), (2 * HEIGHT, 2 * WIDTH, True)],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_colour_preview_is_not_the_mask(tmp_path: Path, height: int, width: int, reduced: bool, first: bool) -> None:
    preview = np.full((height, width, 3), 255, np.uint8)
    with tifffile.TiffWriter(tmp_path / "mask.tif") as file:
        for what in ("preview", "mask") if first else ("mask", "preview"):
            if what == "mask":
                file.write(ONES, photometric="minisblack", metadata=None)
            else:
                file.write(preview, photometric="rgb", subfiletype=int(reduced), metadata=None)
    np.testing.assert_array_equal(loaded(tmp_path / "mask.tif").mask, flags())
    assert notes(tmp_path / "mask.tif") == []


def test_a_colour_picture_of_the_same_size_is_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "mask.tif") as file:
        file.write(ONES, photometric="minisblack", metadata=None)
        file.write(np.dstack([ONES] * 3), photometric="rgb", metadata=None)
    with pytest.raises(InputError, match="the mask holds 2 pictures of one size"):
        loaded(tmp_path / "mask.tif")


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
    ("colours", "indices", "note"),
    [
        ([(0, 0, 0), (0, 9, 0)], ONES, ""),
        ([(0, 0, 0), (255, 255, 255)], ONES, ""),
        ([WHITE, RED], ONES, FIRST),  # QuPath's labels with a white background
        ([WHITE, (0, 0, 0)], 1 - ONES, ""),  # black and white, quantized
        ([WHITE, (0, 0, 0)], CORNER, f"{FIRST}, and black as tissue"),  # QuPath's labels with a black class
        ([WHITE, RED, (0, 0, 0)], CORNER + INNER, f"{FIRST}, and black as tissue"),
        ([WHITE, (0, 0, 0), RED], CORNER + INNER, f"{FIRST}, and black as tissue"),
        ([RED, WHITE], 1 - CORNER, "white in the mask counts as no tissue"),
        ([RED, WHITE, (0, 0, 0)], 1 - CORNER + 2 * INNER, "white in the mask counts as no tissue, and black as tissue"),
        ([RED, WHITE, (0, 0, 0)], 2 - CORNER - INNER, ""),  # quantized, black background, a white and a red class
        ([RED, (0, 0, 0)], 1 - CORNER, ""),
        ([(128, 128, 128), RED, (0, 200, 0)], CORNER + INNER, FIRST.replace("255", "128")),
        ([(128, 128, 128), WHITE], CORNER, FIRST.replace("255", "128")),
    ],
)
@pytest.mark.parametrize("depth", [8, 16])
def test_palettes(tmp_path: Path, ending: str, colours: list[Any], indices: Any, note: str, depth: int) -> None:
    path = tmp_path / f"mask.{ending}"
    if ending == "png":
        image = Image.fromarray(indices, mode="P")
        image.putpalette([value for colour in colours for value in colour])
        image.save(path)
    else:
        table = np.ones((3, 256), np.uint16) * (999 if depth == 16 else 3)
        table[:, : len(colours)] = np.array(colours).T * (257 if depth == 16 else 1)
        tifffile.imwrite(path, indices, photometric="palette", colormap=table)
    left = flags() if indices.mean() in (ONES.mean(), 1 - ONES.mean()) else CORNER > 0
    np.testing.assert_array_equal(loaded(path).mask, left)
    assert notes(path) == ([note] if note else [])


def test_a_palette_of_one_colour(tmp_path: Path) -> None:
    grey = Image.fromarray(255 * np.ones_like(ONES), mode="P")
    grey.putpalette([value for value in range(256) for _ in range(3)])
    grey.save(tmp_path / "mask.png")
    assert notes(tmp_path / "mask.png") == ["the mask has no background: everything counts as tissue"]


def test_values_of_a_lossy_picture_below_half_are_told(tmp_path: Path) -> None:
    for array, largest in ((ONES, 1), (ONES * 0, 0)):
        Image.fromarray(array).save(tmp_path / "mask.jpg", quality=95)
        assert not loaded(tmp_path / "mask.jpg").mask.any()
        (note,) = notes(tmp_path / "mask.jpg")
        assert f"tissue is 128 or more, is {largest}: save labels such as 0 and 1 as PNG" in note


def test_a_cmyk_picture_is_noted(tmp_path: Path) -> None:
    Image.fromarray(255 * ONES).convert("CMYK").save(tmp_path / "mask.jpg", quality=95)
    np.testing.assert_array_equal(loaded(tmp_path / "mask.jpg").mask, flags())
    told = "the mask is a CMYK picture, and is judged by the colours that a screen shows"
    assert notes(tmp_path / "mask.jpg")[0] == told  # the darkest colour of its inks is not quite black


@pytest.mark.parametrize("options", [{}, {"tile": (64, 64)}, {"rowsperstrip": 7, "compression": "deflate"}])
@pytest.mark.parametrize("colour", ["alone", "with"])
def test_opacity_in_a_plane_of_its_own(tmp_path: Path, options: dict[str, Any], colour: str) -> None:
    opacity = ONES.copy() if colour == "alone" else CORNER
    planes = [0 * ONES, 0 * ONES, 0 * ONES if colour == "alone" else ONES, opacity]
    how = {"photometric": "rgb", "planarconfig": "separate", "extrasamples": ["unassalpha"], **options}
    tifffile.imwrite(tmp_path / "mask.tif", np.stack(planes) * 200, **how)
    np.testing.assert_array_equal(loaded(tmp_path / "mask.tif").mask, opacity > 0)
    assert notes(tmp_path / "mask.tif") == ["transparent pixels of the mask count as no tissue"]


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


@pytest.mark.parametrize(
    ("size", "scanned"),
    [((400, 300), False), ((WIDTH, HEIGHT), True), ((80, 64), True), ((1280, 1024), True), ((300, 300), False)],
)
def test_a_picture_covers_the_slide_or_its_bounds_by_its_proportions(
    tmp_path: Path, size: tuple[int, int], scanned: bool
) -> None:
    Image.fromarray(ONES).resize(size, Image.Resampling.NEAREST).save(tmp_path / "mask.png")
    with open_slide(write_scn(tmp_path / "bounded.scn")) as slide:
        assert slide.bounds_size == Size(WIDTH, HEIGHT)
        mask = load_mask(tmp_path / "mask.png", open_view(slide))
        part = load_mask(tmp_path / "mask.png", open_view(slide, region=Box(1400, 1000, 300, 200)))
    expected = np.zeros((1536, 2048), np.bool_)
    if scanned:
        expected[1024 : 1024 + HEIGHT, 1408 : 1408 + LEFT] = True
        assert (
            "the proportions of the part that was scanned, 320×256 at (1408, 1024), and is laid over" in mask.notes[0]
        )
    else:
        expected[:, : 2048 * LEFT // WIDTH] = True
        assert "laid over the whole slide, 2048×1536, not only over the part that was scanned" in mask.notes[-1]
    assert (mask.mask ^ expected).mean() < 0.003
    np.testing.assert_array_equal(part.mask, mask.mask[1000:1200, 1400:1700])
    if scanned:
        np.testing.assert_array_equal(mask.mask, expected)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_a_picture_is_turned_as_its_slide_is(tmp_path: Path, turn: int, ending: str) -> None:
    exif = Image.Exif()
    exif[0x112] = turn
    shape = 255 * ONES
    shape[:80, :200] = 255
    path = tmp_path / f"mask.{ending}"
    Image.fromarray(shape).save(path, exif=exif)
    Image.fromarray(np.dstack([255 - shape // 2] * 3)).save(tmp_path / "photo.png", exif=exif)
    with Image.open(tmp_path / "photo.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))[..., 0] < 200
    with open_slide(tmp_path / "photo.png") as slide:
        mask = load_mask(path, open_view(slide))
    np.testing.assert_array_equal(mask.mask, expected)
    turned = f"{path}: the mask is turned as its EXIF orientation ({turn}) says"
    assert mask.notes == (() if turn == 1 else (turned,))


def test_the_orientation_of_a_tiff_is_noted_but_not_applied(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "mask.tif", ONES, extratags=[(274, "H", 1, 3, True)])
    np.testing.assert_array_equal(loaded(tmp_path / "mask.tif").mask, flags())
    assert notes(tmp_path / "mask.tif") == ["the mask's orientation tag (3) is not applied, as in slide viewers"]


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
