"""Tissue masks from files: GeoJSON and PNG, as people draw them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.draw import polygon2mask

from kin_cli.errors import InputError
from kin_cli.geometry import Box, Grid, Size
from kin_cli.slide.mask_file import load_mask
from kin_cli.slide.view import open_view
from tests.helpers.slides import ArraySlide, plain_slide


def save_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def ring(*points: tuple[float, float]) -> list[list[float]]:
    return [list(point) for point in (*points, points[0])]


SQUARE = ring((100, 100), (300, 100), (300, 300), (100, 300))
HOLE = ring((150, 150), (250, 150), (250, 250), (150, 250))
TRIANGLE = ring((350.5, 20.25), (390, 200), (310, 220))


@pytest.fixture
def plain() -> ArraySlide:
    return plain_slide(400, 320)


def expected_mask(*outlines: list[list[float]], holes: list[list[list[float]]] | None = None) -> NDArray[np.bool_]:
    mask = np.zeros((320, 400), bool)
    for outline in outlines:
        mask |= polygon2mask((320, 400), np.array(outline)[:, ::-1] - 0.5)
    for hole in holes or []:
        mask &= ~polygon2mask((320, 400), np.array(hole)[:, ::-1] - 0.5)
    return mask


@pytest.mark.parametrize("wrapping", ["geometry", "feature", "collection", "list", "nested"])
def test_geojson_in_all_its_wrappings(tmp_path: Path, plain: ArraySlide, wrapping: str) -> None:
    geometry: Any = {"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE], [TRIANGLE]]}
    feature = {"type": "Feature", "geometry": geometry, "properties": {"objectType": "annotation"}}
    content = {
        "geometry": geometry,
        "feature": feature,
        "collection": {"type": "FeatureCollection", "features": [feature]},
        "list": [feature],
        "nested": {"type": "GeometryCollection", "geometries": [geometry]},
    }[wrapping]
    mask = load_mask(save_json(tmp_path / "mask.geojson", content), open_view(plain))
    assert mask.size == Size(400, 320)
    # another rasteriser may judge the pixels under an outline differently
    different = mask.mask ^ expected_mask(SQUARE, TRIANGLE, holes=[HOLE])
    outline = mask.mask ^ ndimage.binary_erosion(mask.mask)
    assert not (different & ~ndimage.binary_dilation(outline, iterations=2)).any()
    assert different.mean() < 0.02
    assert mask.mask[100:300, 100:300].mean() == pytest.approx(0.75, abs=0.02)


def test_a_hole_of_one_polygon_does_not_cut_another(tmp_path: Path, plain: ArraySlide) -> None:
    polygons = [{"type": "Polygon", "coordinates": rings} for rings in ([HOLE], [SQUARE, HOLE])]
    mask = load_mask(
        save_json(tmp_path / "a.json", {"type": "GeometryCollection", "geometries": polygons}), open_view(plain)
    )
    assert mask.mask[105:295, 105:295].all()


@pytest.mark.parametrize("clockwise", [True, False])
def test_polygons_on_whole_pixels_are_exact(tmp_path: Path, plain: ArraySlide, clockwise: bool) -> None:
    steps = ring((100, 20), (300, 20), (300, 120), (220, 120), (220, 60), (180, 60), (180, 120), (100, 120))
    way = 1 if clockwise else -1
    polygons = [[SQUARE[::way], HOLE[::way]], [steps[::way]], [ring((350, 20), (360, 20), (360, 300), (350, 300))[:4]]]
    content = {"type": "MultiPolygon", "coordinates": polygons}
    mask = load_mask(save_json(tmp_path / "mask.geojson", content), open_view(plain)).mask
    expected = np.zeros((320, 400), np.bool_)
    expected[100:300, 100:300] = True
    expected[150:250, 150:250] = False
    expected[20:60, 100:300] = expected[60:120, 100:180] = expected[60:120, 220:300] = True
    expected[20:300, 350:360] = True
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(
    "corners", [[(7.5, 9.5)] * 3, [(7, 9), (7.4, 9), (7, 9.4)], [(7, 9), (8, 9), (8, 10), (7, 10)]]
)
def test_no_polygon_is_too_small(tmp_path: Path, plain: ArraySlide, corners: list[tuple[float, float]]) -> None:
    content = {"type": "MultiPolygon", "coordinates": [[ring(*corners)]]}
    mask = load_mask(save_json(tmp_path / "mask.geojson", content), open_view(plain)).mask
    assert np.argwhere(mask).tolist() == [[9, 7]]


@pytest.mark.parametrize("region", [None, Box(120, 90, 200, 150)])
def test_geojson_and_png_agree(tmp_path: Path, plain: ArraySlide, region: Box | None) -> None:
    view = open_view(plain, region=region)
    Image.fromarray(expected_mask(SQUARE)).save(tmp_path / "mask.png")
    by_png = load_mask(tmp_path / "mask.png", view)
    by_json = load_mask(save_json(tmp_path / "m.json", {"type": "Polygon", "coordinates": [SQUARE]}), view)
    assert by_png.size == by_json.size == view.size
    assert (by_png.mask ^ by_json.mask).mean() < 0.02
    expected = expected_mask(SQUARE)[view.region.slices()]
    np.testing.assert_array_equal(by_png.mask, expected)


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "RGB", "RGBA"])
def test_png_of_any_kind_is_stretched_over_the_slide(tmp_path: Path, plain: ArraySlide, mode: str) -> None:
    small = np.zeros((32, 40), np.uint8)
    small[5:20, 10:30] = 1
    image = {
        "1": Image.fromarray(small > 0),
        "L": Image.fromarray(small),
        "I;16": Image.fromarray(small.astype(np.uint16) * 3),
        "RGB": Image.fromarray(np.dstack([0 * small, 0 * small, small])),
        "RGBA": Image.fromarray(np.dstack([small, 0 * small, small, 255 + 0 * small])),
    }[mode]
    image.save(tmp_path / "mask.png")
    mask = load_mask(tmp_path / "mask.png", open_view(plain))
    fraction = mask.fraction(Grid(Size(400, 320), 10))
    np.testing.assert_array_equal(fraction, small)


def test_a_large_png_is_shrunk_without_loss_of_tissue(tmp_path: Path) -> None:
    large = np.zeros((60, 20_000), np.uint8)
    large[30, 12_345] = 1
    Image.fromarray(large).save(tmp_path / "mask.png")
    mask = load_mask(tmp_path / "mask.png", open_view(plain_slide(20_000, 60)))
    assert mask.mask.shape[1] <= 4096
    fraction = mask.fraction(Grid(mask.size, 60))
    assert fraction[0, 12_345 // 60] > 0
    assert np.count_nonzero(fraction) <= 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.txt", b"no mask"),
        ("broken.json", b'{"type": "Polygon", "coordi'),
        ("number.json", b"42"),
        ("line.json", b'{"type": "LineString", "coordinates": [[0, 0], [5, 5]]}'),
        ("nothing.json", b'{"type": "Polygon"}'),
        ("flat.json", b'{"type": "Polygon", "coordinates": [0, 1, 2]}'),
        ("short.json", b'{"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}'),
        ("hollow.json", b'{"type": "Polygon", "coordinates": []}'),
        ("none.json", b'{"type": "FeatureCollection", "features": []}'),
        ("far.json", b'{"type": "Polygon", "coordinates": [[[900, 900], [990, 900], [990, 990]]]}'),
        ("broken.png", b"\x89PNG\r\n\x1a\n and no more"),
        ("empty.png", b""),
    ],
)
def test_masks_that_cannot_be_used(tmp_path: Path, plain: ArraySlide, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_mask(path, open_view(plain))
    assert name in caught.value.message
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_missing_mask(tmp_path: Path, plain: ArraySlide) -> None:
    with pytest.raises(InputError, match=r"none\.png"):
        load_mask(tmp_path / "none.png", open_view(plain))
