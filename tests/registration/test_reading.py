"""A registration beside the slides at hand: parts of the source, pixel sizes that a file lacks, and foreign maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kin_cli.errors import InputError
from kin_cli.geometry import Size
from kin_cli.pyramid.provenance import Provenance
from kin_cli.registration.elastic import Bend
from kin_cli.registration.reading import registration_of_slides, registration_of_translation
from kin_cli.registration.transform import Piece, Registration, Side, contents
from kin_cli.slide.view import SlideView, open_view
from tests.helpers.slides import ArraySlide

HE, REAL = Side(Path("he.tif"), Size(800, 600), 0.5), Side(Path("real.tif"), Size(700, 640), 0.25)
MATRIX = np.array([[0.0, -1.0, 250.0], [1.0, 0.0, 10.0]])


def slide(name: str, size: Size, mpp: float | None, inked: tuple[slice, slice] | None = None) -> ArraySlide:
    pixels = np.full((size.height, size.width, 3), 245, np.uint8)
    if inked is not None:
        texture = np.random.default_rng(0).integers(-25, 25, pixels[inked].shape)
        pixels[inked] = np.clip(np.array([170, 90, 150]) + texture, 0, 255)
    made = ArraySlide(pixels, mpp=mpp)
    made.path = Path(name)
    return made


@pytest.fixture(scope="module")
def whole() -> Registration:
    bend = Bend((20.0, 10.0), np.random.default_rng(0).normal(0, 9, (2, 9, 12)).astype(np.float32))
    labels = np.zeros((75, 100), np.uint8)
    labels[10:60, 5:45], labels[10:60, 55:95] = 1, 2
    pieces = Piece(MATRIX, bend), Piece(MATRIX[:, [1, 0, 2]], None, False)
    return Registration(HE, REAL, pieces, labels, {"median": 9.0, "p90": 20.0, "windows": 40})


@pytest.fixture
def file(whole: Registration, tmp_path: Path) -> Path:
    for path, content in contents(whole, tmp_path / "pair.json").items():
        path.write_bytes(content)
    return tmp_path / "pair.json"


def part(box: list[int], *, level: int = 0, mpp: float | None = 0.5) -> tuple[SlideView, Provenance]:
    """A translation of a region of he.tif, in pixels of a level."""
    view = open_view(slide("part.tif", Size(box[2], box[3]), mpp))
    settings = {"slide": "he.tif", "region": json.dumps(box), "level": json.dumps(level)}
    return view, Provenance(Path("part.tif"), "kin", settings, None)


@pytest.mark.parametrize("mpp", [0.5, None])
def test_a_part_of_the_source_lies_where_the_whole_puts_it(file: Path, whole: Registration, mpp: float | None) -> None:
    view, made = part([200, 150, 400, 300], mpp=mpp)
    found, notes = registration_of_translation(file, view, made, slide("real.tif", REAL.size, 0.25), None)
    points = np.random.default_rng(1).uniform(0, 300, (500, 2))
    assert found.to_real(points) == pytest.approx(whole.to_real(points + (200, 150)))
    um = points * 0.5
    assert (found.known(um) == whole.known(um + (100, 75))).all()
    assert (found.owner(um) == whole.owner(um + (100, 75))).all()
    assert "region 200,150,400,300" in notes[0]


def test_a_part_in_a_coarser_resolution(file: Path, whole: Registration) -> None:
    view, made = part([50, 40, 100, 80], level=1, mpp=1.0)
    found, _ = registration_of_translation(file, view, made, slide("real.tif", REAL.size, 0.25), None)
    points = np.random.default_rng(1).uniform(0, 80, (500, 2))
    assert found.to_real(points) == pytest.approx(whole.to_real((points + (50, 40)) * 2))


def test_a_part_beyond_the_registered_slide_is_of_another(file: Path) -> None:
    view, made = part([600, 150, 400, 300])
    with pytest.raises(InputError, match="covers 400 × 300 µm"):
        registration_of_translation(file, view, made, slide("real.tif", REAL.size, 0.25), None)


def test_a_pixel_size_that_no_file_states_is_that_of_the_registration(file: Path, whole: Registration) -> None:
    sizes = slide("he.tif", HE.size, None), slide("real.tif", REAL.size, None)
    found, _ = registration_of_slides(file, *sizes)
    points = np.random.default_rng(1).uniform(0, 500, (50, 2))
    assert (found.source.mpp, found.real.mpp) == (0.5, 0.25)
    assert found.to_real(points) == pytest.approx(whole.to_real(points))


def test_maps_of_other_programs_are_looked_at_wherever_they_are_read(tmp_path: Path) -> None:
    source = slide("he.tif", HE.size, None, np.s_[100:300, 60:200])
    real = slide("real.tif", REAL.size, None, np.s_[160:360, 300:440])
    right, wrong = tmp_path / "right.txt", tmp_path / "wrong.txt"
    right.write_text("1 0 240\n0 1 60")
    wrong.write_text("1 0 -240\n0 1 -60")
    found, notes = registration_of_slides(right, source, real)
    assert found.to_real(np.array([[10.0, 20.0]])) == pytest.approx(np.array([[250.0, 80.0]]))
    assert not notes
    with pytest.raises(InputError, match="it maps the other way"):
        registration_of_slides(wrong, source, real)
    view, made = part([50, 50, 200, 200])
    with pytest.raises(InputError, match="--source"):
        registration_of_translation(right, view, made, real, None)
    moved, _ = registration_of_translation(right, view, made, real, source)
    assert moved.to_real(np.array([[10.0, 20.0]])) == pytest.approx(np.array([[300.0, 130.0]]))
