"""Annotations as QuPath, ImageScope and ASAP write them, and what cannot be meant by them."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage.draw import polygon2mask

from kin_cli.errors import InputError
from kin_cli.slide import mask_file
from kin_cli.slide.annotations import read_annotations
from kin_cli.slide.mask_file import load_mask
from kin_cli.slide.open import open_slide
from kin_cli.slide.tissue import TissueMask
from kin_cli.slide.view import open_view
from tests.helpers.cases_masks import (
    HEIGHT,
    IGNORED,
    LEFT,
    LEFT_PART,
    RIGHT_PART,
    WHOLE,
    WIDTH,
    box,
    feature,
    flags,
    polygon,
    write_json,
    write_scn,
)
from tests.helpers.slides import plain_slide

POINT = {"type": "Point", "coordinates": [5, 5]}
LINE = {"type": "LineString", "coordinates": [[0, 0], [9, 9]]}


def loaded(path: Path) -> TissueMask:
    return load_mask(path, open_view(plain_slide(WIDTH, HEIGHT)))


def notes(path: Path) -> list[str]:
    return [note.removeprefix(f"{path}: ") for note in loaded(path).notes]


@pytest.mark.parametrize(
    ("beside", "note"),
    [
        ([feature(POINT)], "left out, since they cover no area: 1 point"),
        ([feature(None)], "left out, since they cover no area: 1 object without geometry"),
        ([{"type": "Feature", "properties": {}}], "left out, since they cover no area: 1 object without geometry"),
        ([None, feature(polygon())], "left out, since they cover no area: 2 objects without geometry"),
        ([feature(LINE), feature(POINT), LINE], "left out, since they cover no area: 2 lines and 1 point"),
        ([feature(WHOLE) | {"isMissing": True}], "left out, since they cover no area: 1 missing core"),
        ([feature(polygon(box(900, 9, 990, 99)))], "polygons outside the slide are left out: 1"),
    ],
)
def test_what_covers_no_area_is_left_out_and_counted(tmp_path: Path, beside: list[object], note: str) -> None:
    content = {"type": "FeatureCollection", "features": [feature(LEFT_PART), *beside]}
    path = write_json(tmp_path / "mask.geojson", content)
    np.testing.assert_array_equal(loaded(path).mask, flags())
    assert notes(path) == [note]


@pytest.mark.parametrize(
    "kind",
    [
        IGNORED,
        {"names": ["Ignore*", "Positive"]},
        {"names": ["Tumor", "Ignore*"]},
        {"name": "Tumor", "names": ["Tumor", "Positive", "ignore*"]},
        {"name": "ignore*: Positive", "colorRGB": -4079167},
        {"name": "Tumor: Ignore*"},
        "Ignore*",
        "Tumor: Ignore*",
        ["Tumor", "Ignore*"],
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_the_class_ignore_is_cut_out(tmp_path: Path, kind: object, first: bool) -> None:
    features = [feature(WHOLE, {"name": "Tumor"}), feature(RIGHT_PART, kind)]
    path = write_json(tmp_path / "mask.geojson", features[::-1] if first else features)
    np.testing.assert_array_equal(loaded(path).mask, flags())
    assert notes(path) == ["1 polygon to be ignored is cut out of the tissue"]


def test_an_island_in_an_ignored_area_remains_and_no_outline_does(tmp_path: Path) -> None:
    island, same = box(200, 40, 240, 80), polygon(box(140, 10.5, 180.25, 30))
    parts = [feature(WHOLE), feature(same), feature(polygon(box(LEFT, 0, WIDTH, HEIGHT), island), IGNORED)]
    mask = loaded(write_json(tmp_path / "island.geojson", parts)).mask
    expected = flags()
    expected[40:80, 200:240] = True
    np.testing.assert_array_equal(mask, expected)
    only = [feature(LEFT_PART), feature(same), feature(same, IGNORED)]
    np.testing.assert_array_equal(loaded(write_json(tmp_path / "only.geojson", only)).mask, flags())


@given(st.lists(st.tuples(st.floats(-20, 80), st.floats(-20, 60)), min_size=3, max_size=9, unique=True))
def test_pixels_are_cut_out_by_their_centres(corners: list[tuple[float, float]]) -> None:
    ring = np.array(corners) + 1e-6 * np.random.default_rng(0).random((len(corners), 2))
    inside = np.zeros((40, 60), np.bool_)
    mask_file._fill(inside, [ring])
    np.testing.assert_array_equal(inside, polygon2mask((40, 60), ring[:, ::-1] - 0.5))


def test_other_classes_with_an_asterisk_are_tissue(tmp_path: Path) -> None:
    for kind in ({"name": "Region*"}, {"names": ["Tumor", "Not ignored"]}, {"name": "Tumor: Region*"}, ["Tumor"], 3):
        path = write_json(tmp_path / "mask.geojson", [feature(LEFT_PART, kind)])
        np.testing.assert_array_equal(loaded(path).mask, flags())
        assert notes(path) == []


def test_coordinates_count_from_the_corner_of_what_was_scanned(tmp_path: Path) -> None:
    path = write_json(tmp_path / "mask.geojson", [feature(polygon(box(40, 40, 280, 216)))])
    with open_slide(write_scn(tmp_path / "bounded.scn")) as slide:
        assert (slide.bounds_origin, str(slide.levels[0])) == ((1408, 1024), "2048×1536")
        mask = load_mask(path, open_view(slide))
    rows, cols = np.nonzero(mask.mask)
    assert abs(cols.min() - 1448) <= 1
    assert abs(rows.min() - 1064) <= 1
    assert abs(mask.mask.sum() - 240 * 176) <= 2 * (240 + 176)
    assert mask.notes == (
        f"{path}: coordinates count from the corner of the part that was scanned, (1408, 1024), as QuPath does",
    )


def test_coordinates_on_a_turned_photograph_are_noted(tmp_path: Path) -> None:
    path = write_json(tmp_path / "mask.geojson", [feature(LEFT_PART)])
    exif = Image.Exif()
    for turn in (1, 6):
        exif[0x112] = turn
        shape = (HEIGHT, WIDTH, 3) if turn == 1 else (WIDTH, HEIGHT, 3)
        Image.fromarray(np.full(shape, 200, np.uint8)).save(tmp_path / "photo.jpg", exif=exif)
        with open_slide(tmp_path / "photo.jpg") as slide:
            mask = load_mask(path, open_view(slide))
        np.testing.assert_array_equal(mask.mask, flags())
        assert [note for note in mask.notes if "EXIF orientation (6) turns it, not as it is stored" in note] == list(
            mask.notes
        )
        assert len(mask.notes) == (0 if turn == 1 else 1)


def test_annotations_of_other_programs_are_not_laid_on_a_slide_with_bounds(tmp_path: Path) -> None:
    path = tmp_path / "mask.xml"
    path.write_text(imagescope(region(box(40, 40, 280, 216))))
    with (
        open_slide(write_scn(tmp_path / "bounded.scn")) as slide,
        pytest.raises(InputError, match="not known which corner"),
    ):
        load_mask(path, open_view(slide))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1"])
def test_texts_of_all_encodings(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "mask.json"
    path.write_bytes(json.dumps(feature(LEFT_PART, {"name": "Drüse"}), ensure_ascii=False).encode(encoding))
    np.testing.assert_array_equal(loaded(path).mask, flags())


def test_packed_files(tmp_path: Path) -> None:
    text = json.dumps(feature(LEFT_PART)).encode()
    (tmp_path / "mask.geojson.gz").write_bytes(gzip.compress(text[:20]) + gzip.compress(text[20:]))
    with zipfile.ZipFile(tmp_path / "mask.zip", "w") as archive:
        archive.writestr("mask.geojson", text)
    for name in ("mask.geojson.gz", "mask.zip"):
        np.testing.assert_array_equal(loaded(tmp_path / name).mask, flags())
    (tmp_path / "short.gz").write_bytes(gzip.compress(text)[:-12])
    with pytest.raises(InputError, match="the packed data end too early"):
        loaded(tmp_path / "short.gz")


def region(points: list[list[float]], **attributes: object) -> str:
    given = " ".join(f'{name}="{value}"' for name, value in attributes.items())
    vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in points)
    return f"<Region {given}><Vertices>{vertices}</Vertices></Region>"


def imagescope(*regions: str) -> str:
    return f'<Annotations><Annotation Id="1"><Regions>{"".join(regions)}</Regions></Annotation></Annotations>'


def test_imagescope(tmp_path: Path) -> None:
    path = tmp_path / "mask.xml"
    arrow, negative = region([[0, 0], [9, 9]], Type=3), region(box(LEFT, 0, WIDTH, HEIGHT), Type=0, NegativeROA=1)
    path.write_text(imagescope(region(box(0, 0, WIDTH, HEIGHT)[:4], Type=1), negative, arrow))
    np.testing.assert_array_equal(loaded(path).mask, flags())
    assert notes(path)[0] == "left out, since they cover no area: 1 point or line"
    path.write_text(imagescope(region([[100, 50], [200, 150]], Type=2)))
    assert loaded(path).mask.sum() == pytest.approx(np.pi * 50**2, rel=0.03)


@pytest.mark.parametrize("corners", [[[0, 0], [LEFT, HEIGHT]], [[LEFT, 0], [0, HEIGHT]], [[LEFT, HEIGHT], [0, 0]]])
def test_rectangles_of_two_corners(tmp_path: Path, corners: list[list[float]]) -> None:
    path = tmp_path / "mask.xml"
    points = "".join(f'<Coordinate Order="{number}" X="{x}" Y="{y}"/>' for number, (x, y) in enumerate(corners))
    annotation = f'<Annotation Type="Rectangle"><Coordinates>{points}</Coordinates></Annotation>'
    asap = f"<ASAP_Annotations><Annotations>{annotation}</Annotations></ASAP_Annotations>"
    for text in (imagescope(region(corners, Type=1)), asap):
        path.write_text(text)
        np.testing.assert_array_equal(loaded(path).mask, flags())
        assert notes(path) == []
    path.write_text(imagescope(region(corners, Type=0), region(box(0, 0, LEFT, HEIGHT), Type=0)))  # no rectangle
    assert notes(path) == ["left out, since they cover no area: 1 point or line"]


def test_asap(tmp_path: Path) -> None:
    def annotation(points: list[list[float]], group: str) -> str:
        corners = [f'<Coordinate Order="{number}" X="{x}" Y="{y}"/>' for number, (x, y) in enumerate(points)]
        listed = "".join(reversed(corners))
        return f'<Annotation Type="Polygon" PartOfGroup="{group}"><Coordinates>{listed}</Coordinates></Annotation>'

    path = tmp_path / "mask.xml"
    for hole in ("Exclusion", "_2", "ignore"):
        both = annotation(box(0, 0, WIDTH, HEIGHT)[:4], "_0") + annotation(box(LEFT, 0, WIDTH, HEIGHT)[:4], hole)
        path.write_text(f"<ASAP_Annotations><Annotations>{both}</Annotations></ASAP_Annotations>")
        np.testing.assert_array_equal(loaded(path).mask, flags())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(polygon([[str(x), str(y)] for x, y in box(0, 0, 9, 9)])), "a coordinate is not a number"),
        (json.dumps(polygon([[True, False]] * 4)), "a coordinate is not a number"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [NaN, 1], [1, 2]]]}', "three points of finite numbers"),
        (json.dumps(polygon(box(0, 0, 10**400, 9))), "too large"),
        (json.dumps(polygon(box(0, 0, 1e12, 9))), "a coordinate of 1e\\+12, far beyond the slide"),
        (json.dumps(polygon(box(0, 0, 1, 1))), "lie within one pixel"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"type": "Feature", "properties": {}}', "no polygon of tissue .*1 object without geometry"),
        ('{"type": "Topology"}', 'holds an object of type "Topology" where'),
        ("{}", "holds an empty object, {}, where a polygon belongs"),
        ('{"images": [], "annotations": [], "categories": []}', "annotations of another format, COCO"),
        ('{"shapes": [{"points": []}], "imagePath": "x.png"}', "annotations of another format, LabelMe"),
        ('{"a": 1, "b": 2}', "an object without type .its keys: a, b. where"),
        (json.dumps(LEFT_PART | {"type": "polygon"}), 'type "polygon" where'),
        ("\x1e" + json.dumps(feature(LEFT_PART)), "one JSON object a line"),
        ("[3]", "holds 3 where a polygon"),
        ('{"type": ["a"]}', "where a polygon"),
        (2 * (json.dumps(feature(LEFT_PART)) + "\n"), "one JSON object a line"),
        (2 * ("\x1e" + json.dumps(feature(LEFT_PART)) + "\n"), "one JSON object a line"),
        (json.dumps(feature(WHOLE, IGNORED)), "no polygon of tissue"),
        (json.dumps([feature(POINT)]), "no polygon of tissue .*1 point"),
        ("<annotations><ndpviewstate/></annotations>", "Hamamatsu NDPA"),
        ("<svg/>", "another program: <svg>"),
        ("<a><b></a>", "not valid XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><Annotations/>', "defines entities"),
        (imagescope(region([["a", "b"]] * 3)), "a point without two numbers"),  # type: ignore[list-item]
        (imagescope(), "no polygon of tissue"),
        ("version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        ("BM and more", "a BMP picture"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mask"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        loaded(path)
    assert str(path) in caught.value.message
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_an_archive_of_several_files_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.geojson", "{}")
        archive.writestr("b.geojson", "{}")
    with pytest.raises(InputError, match="the archive holds 2 files"):
        read_annotations(tmp_path / "two.zip")
