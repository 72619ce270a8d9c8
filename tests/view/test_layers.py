"""Layers: where a translation lies on its source, by record, description, pixel size or shape; real sections."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from kin_cli.errors import InputError, UsageError
from kin_cli.geometry import Box
from kin_cli.view.layers import Layer, ViewChoice, opened_layers
from kin_cli.view.registered import RegisteredSlide
from tests.helpers.processes import succeed
from tests.helpers.slides import ArraySlide, write_slide

REGION = (64, 128, 256, 384)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, tiny_generator: Path) -> tuple[Path, Path]:
    """A slide of 0.5 µm/px and its translation at 1 µm/px of a region."""
    folder = tmp_path_factory.mktemp("pair")
    slide, output = write_slide(folder / "source.tif", width=1040, height=1040), folder / "made.ome.tif"
    region = ",".join(map(str, REGION))
    options = ("--mpp", "1", "--region", region, "--patch-size", "128", "--tissue", "none", "-j", "1")
    succeed("translate", slide, "-m", tiny_generator, "-o", output, *options)
    return slide, output


def plain(path: Path, width: int, height: int, mpp: float | None = None) -> Path:
    pixels = np.full((height, width, 3), 200, np.uint8)
    how = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(64, 64), metadata=None, **how)
    return path


def layer_of(source: Path, translation: Path) -> Layer:
    with opened_layers(ViewChoice(source, (translation,))) as layers:
        return layers[1]


def assert_on_region(layer: Layer) -> None:
    np.testing.assert_allclose([*layer.place, layer.height], [128, 256, 512, 768], atol=1e-6)
    assert layer.placed_by == "as recorded by kin"
    assert layer.patch_px == 128
    assert layer.made_from is not None
    assert layer.made_from.region == Box(*REGION)


def test_a_translation_lies_where_its_record_says(pair: tuple[Path, Path]) -> None:
    assert_on_region(layer_of(*pair))


@pytest.mark.parametrize("name", ["alone.ome.tif", "alone.tif"])
def test_without_its_record_the_file_itself_tells(pair: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    assert_on_region(layer_of(pair[0], Path(shutil.copy(pair[1], tmp_path / name))))


def test_a_record_of_another_slide_is_not_believed(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = plain(tmp_path / "made.ome.tif", 520, 520, 1.0)
    shutil.copy(f"{pair[1]}.json", tmp_path)
    assert layer_of(pair[0], other).place == (0, 0, 1040)


def test_by_size_shape_or_pixel_size(pair: tuple[Path, Path], tmp_path: Path) -> None:
    source = pair[0]
    same = layer_of(source, plain(tmp_path / "same.tif", 1040, 1040))
    assert (same.place, same.made_from is not None) == ((0, 0, 1040), True)
    half = layer_of(source, plain(tmp_path / "half.tif", 519, 520))
    assert (half.place, half.height) == ((0, 0, 1040), 1040)
    corner = layer_of(source, plain(tmp_path / "corner.tif", 400, 200, 1.0))
    assert corner.place == (0, 0, pytest.approx(800))
    assert corner.height == pytest.approx(400)
    assert "upper left corner" in corner.placed_by


def test_what_cannot_be_placed_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"odd\.tif.*where on source\.tif it belongs is not known"):
        layer_of(pair[0], plain(tmp_path / "odd.tif", 400, 200))
    with pytest.raises(InputError, match="not known"):
        layer_of(pair[0], plain(tmp_path / "large.tif", 4000, 300, 1.0))


def test_a_finest_resolution_holds_for_every_slide(pair: tuple[Path, Path]) -> None:
    with opened_layers(ViewChoice(pair[0], (pair[1],), finest_mpp=2.0)) as layers:
        assert layers[0].picture.levels[0].width == 260
        assert layers[1].picture.levels[0].width == 128


def test_real_and_registration_need_each_other(pair: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="need each other"), opened_layers(ViewChoice(pair[0], real=pair[1])):
        pass


def test_names_say_which_is_which(pair: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copy(pair[1], tmp_path)
    with opened_layers(ViewChoice(pair[0], (pair[1], tmp_path / pair[1].name))) as layers:
        assert [layer.name for layer in layers] == ["source.tif", str(pair[1]), str(tmp_path / pair[1].name)]
        json.dumps([layer.as_dict() for layer in layers])


# Real sections


@pytest.fixture(scope="module")
def smooth() -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=(700, 900, 3))
    field = ndimage.gaussian_filter(noise, (6, 6, 0))
    return np.clip(128 + 900 * field, 0, 255).astype(np.uint8)


def test_a_registered_slide_shows_the_real_pixels_in_the_frame_of_the_source(smooth: np.ndarray) -> None:
    angle, scale = np.deg2rad(25), 0.8
    matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shift = np.array([250.0, 40.0])
    source = ArraySlide(np.zeros((500, 600, 3), np.uint8))
    real = ArraySlide(smooth)
    warped = RegisteredSlide(real, source, lambda points: points @ matrix.T + shift)
    found = warped.read(0, Box(50, 30, 400, 300))
    # SciPy's own affine transform, of pixel centres: rows and columns instead of x and y
    rows_first = matrix[::-1, ::-1]
    offset = shift[::-1] + rows_first @ np.array([30.5, 50.5]) - 0.5
    for channel in range(3):
        expected = ndimage.affine_transform(
            smooth[..., channel].astype(float), rows_first, offset, output_shape=(300, 400), order=1, cval=255
        )
        assert np.abs(found[..., channel] - expected)[expected < 255].max() <= 1


def test_a_reduced_registered_slide_takes_a_reduced_level(smooth: np.ndarray) -> None:
    reduced = smooth[: 700 // 4 * 4, : 900 // 4 * 4].reshape(175, 4, 225, 4, 3).mean((1, 3)).astype(np.uint8)
    source = ArraySlide(np.zeros((700, 900, 3), np.uint8), np.zeros((175, 225, 3), np.uint8))
    warped = RegisteredSlide(ArraySlide(smooth, reduced), source, lambda points: points)
    assert np.abs(warped.read(1, Box(0, 0, 225, 175)).astype(int) - reduced).max() <= 1


def test_what_the_real_section_does_not_have_or_know_is_empty(smooth: np.ndarray) -> None:
    source = ArraySlide(np.zeros((500, 600, 3), np.uint8))
    assert (RegisteredSlide(ArraySlide(smooth), source, lambda p: p + 5000).read(0, Box(0, 0, 100, 90)) == 255).all()
    unknown = RegisteredSlide(ArraySlide(smooth), source, lambda p: np.where(p[:, :1] < 300, p, np.nan))
    found = unknown.read(0, Box(0, 0, 600, 500))
    assert np.abs(found[:, :280].astype(int) - smooth[:500, :280]).max() <= 1
    assert (found[:, 320:] == 255).all()
    assert (RegisteredSlide(ArraySlide(smooth), source, lambda p: p * np.nan).read(0, Box(0, 0, 9, 9)) == 255).all()


def test_a_registration_file_of_an_affine_matrix(pair: tuple[Path, Path], tmp_path: Path) -> None:
    file = tmp_path / "registration.json"
    file.write_text('{"affine": [[1, 0, 64], [0, 1, 32]]}')
    with opened_layers(ViewChoice(pair[0], real=pair[0], registration=file)) as layers:
        slide, warped = layers[0].picture.slide, layers[1].picture.slide
        assert layers[1].role == "real"
        np.testing.assert_array_equal(warped.read(0, Box(0, 0, 500, 400)), slide.read(0, Box(64, 32, 500, 400)))


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"affine": [[1, 0], [0, 1]]}', '{"affine": [[NaN, 0, 0], [0, 1, 0]]}']
)
def test_what_is_no_registration_is_told(pair: tuple[Path, Path], tmp_path: Path, content: str) -> None:
    file = tmp_path / "registration.json"
    file.write_text(content)
    choice = ViewChoice(pair[0], real=pair[0], registration=file)
    with (
        pytest.raises(InputError, match=r"registration\.json: (holds no affine matrix|neither)"),
        opened_layers(choice),
    ):
        pass
