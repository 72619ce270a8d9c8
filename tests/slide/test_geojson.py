"""Outlines for QuPath against the mask that they outline, as Pillow fills them and as kin reads annotations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy import ndimage

from kin_cli.geometry import Box
from kin_cli.slide.geojson import encoded, feature, line, rectangle, tissue_outlines
from kin_cli.slide.mask_file import load_mask
from kin_cli.slide.tissue import TissueMask
from kin_cli.slide.view import SlideView, open_view
from tests.helpers.slides import ArraySlide


def view_of(width: int, height: int, origin: tuple[int, int] = (0, 0)) -> SlideView:
    slide = ArraySlide(np.zeros((height, width, 3), np.uint8))
    slide.bounds_origin = origin
    return open_view(slide)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 12), st.integers(3, 12))
def test_a_point_is_inside_exactly_where_the_mask_is(seed: int, rows: int, cols: int) -> None:
    mask = np.random.default_rng(seed).random((rows, cols)) > 0.5
    found = tissue_outlines(TissueMask(mask, view_of(cols * 8, rows * 8).size), view_of(cols * 8, rows * 8))
    drawn = Image.new("1", (cols * 8, rows * 8))
    for piece in found:
        rings = piece["geometry"]["coordinates"]
        layer = Image.new("1", drawn.size)
        for number, ring in enumerate(rings):
            assert ring[0] == ring[-1]
            ImageDraw.Draw(layer).polygon([(x - 0.5, y - 0.5) for x, y in ring], fill=number == 0)
        drawn.paste(1, mask=layer)
    centres = np.asarray(drawn)[4::8, 4::8]
    np.testing.assert_array_equal(centres, mask)
    # pieces that touch at a corner may be one or two
    touching, apart = (ndimage.label(mask, ndimage.generate_binary_structure(2, n))[1] for n in (2, 1))
    assert touching <= len(found) <= apart


@pytest.mark.parametrize("origin", [(0, 0), (100, 60)])
def test_kin_reads_its_own_outlines(tmp_path: Path, origin: tuple[int, int]) -> None:
    mask = ndimage.zoom(np.random.default_rng(0).random((6, 8)) > 0.5, 8, order=0)
    view = view_of(mask.shape[1] * 10, mask.shape[0] * 10, origin)
    file = tmp_path / "tissue.geojson"
    file.write_bytes(encoded(tissue_outlines(TissueMask(mask, view.size), view)))
    read = load_mask(file, view)
    assert abs(read.tissue_fraction - mask.mean()) < 0.01
    assert json.loads(file.read_bytes())["features"][0]["properties"]["classification"]["name"] == "Tissue"


def test_lines_and_rectangles_are_in_pixels_of_the_slide() -> None:
    slide = ArraySlide(np.zeros((200, 300, 3), np.uint8), np.zeros((100, 150, 3), np.uint8))
    slide.bounds_origin = (7, 5)
    view = open_view(slide, level=1, region=Box(10, 20, 100, 60))
    assert line(view, 0, 0, 10, 0) == {"type": "LineString", "coordinates": [[13, 35], [33, 35]]}
    ring = rectangle(view, Box(0, 0, 5, 5))["coordinates"][0]
    assert (ring[0], ring[2]) == ([13, 35], [23, 45])
    made = feature(line(view, 0, 0, 1, 0), "Border", (1, 2, 3), name="a", measurements={"excess": 1.23456})
    assert made["properties"]["measurements"] == {"excess": 1.2346}
    assert json.loads(encoded([made]))["features"][0]["properties"]["name"] == "a"
