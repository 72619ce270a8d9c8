"""The trust map: which patches it judges, and its files as other programs read them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kin_cli.geometry import Box, Grid, Size
from kin_cli.passes.trust import TrustMap, map_geojson, map_png, percent, read_map, trust_note
from kin_cli.slide.view import SlideView, open_view
from tests.helpers.slides import ArraySlide


def view() -> SlideView:
    """A region at level 1 of a slide of two levels."""
    slide = ArraySlide(np.full((400, 600, 3), 230, np.uint8), np.full((200, 300, 3), 230, np.uint8))
    return open_view(slide, level=1, region=Box(20, 10, 150, 100))


def example(percentiles: list[list[float]], **changes: Any) -> TrustMap:
    values = np.array(percentiles, np.float32)
    weights = np.where(np.isfinite(values), 1.0, 0.1).astype(np.float32)
    group = np.where(np.isfinite(values), 2, -1).astype(np.int8)
    known = {"weights": weights, "threshold": 0.01, "precision": "fp32", **changes}
    return TrustMap(Grid(Size(150, 100), 50), values, group, **known)


NAN = float("nan")
MIXED = [[0.5, 0.0001, NAN], [0.03, 0.005, 0.9]]


def test_the_summary_counts_tissue_not_patches() -> None:
    found = example(MIXED, weights=np.array([[1, 0.5, 0.1], [1, 0.5, 1]], np.float32)).summary()
    assert (found["patches_judged"], found["patches_below"]) == (5, 2)
    assert found["tissue_below"] == 0.25
    assert found["tissue_judged"] == round(4 / 4.1, 4)
    assert found["by_group"] == {"colour": 0, "grain": 0, "sharpness": 2, "structure": 0}
    assert found["median"] == 0.03


def test_the_squares_of_the_geojson_lie_on_the_slide_at_level_0() -> None:
    parsed = json.loads(map_geojson(example(MIXED), view(), output="o.tif"))
    assert parsed["type"] == "FeatureCollection"
    assert len(parsed["features"]) == 5
    first = parsed["features"][0]
    assert first["geometry"]["coordinates"][0][0] == [40.0, 20.0]
    assert first["geometry"]["coordinates"][0][2] == [140.0, 120.0]
    assert first["geometry"]["coordinates"][0][0] == first["geometry"]["coordinates"][0][-1]
    names = [feature["properties"]["classification"]["name"] for feature in parsed["features"]]
    odd = "unlike training: sharpness and texture"
    assert names == ["like training", odd, "like training", odd, "like training"]
    assert parsed["features"][1]["properties"]["measurements"] == {"trust percentile, %": 0.01}


def test_the_map_is_read_again_and_nothing_else_is(tmp_path: Path) -> None:
    file = tmp_path / "o.tif.trust.geojson"
    file.write_bytes(map_geojson(example(MIXED), view(), output="o.tif"))
    found = read_map(file)
    assert found is not None
    np.testing.assert_allclose(found.percentile, example(MIXED).percentile, atol=1e-6)
    np.testing.assert_array_equal(found.group, example(MIXED).group)
    assert (found.grid, found.threshold) == (example(MIXED).grid, 0.01)
    for other in (b"", b"{}", b"[1]", b'{"type": "FeatureCollection", "features": []}', b"\xff\xfe"):
        file.write_bytes(other)
        assert read_map(file) is None
    assert read_map(tmp_path / "missing") is None


def test_the_picture_has_its_colours_where_the_patches_are() -> None:
    made = Image.open(io.BytesIO(map_png(example(MIXED), np.full((100, 150, 3), 230, np.uint8), output="o.tif")))
    assert "kin trust map of o.tif" in str(made.info["Software"])
    pixels = np.asarray(made.convert("RGB")).astype(int)
    likely, odd, unjudged = pixels[25, 25], pixels[25, 75], pixels[25, 125]
    assert likely[2] > likely[0] + 30
    assert odd[0] > odd[1] + 30
    assert np.ptp(unjudged) == 0


def test_a_note_stands_only_where_more_is_odd_than_chance_makes() -> None:
    assert trust_note(example([[0.5, 0.6, 0.7], [0.8, 0.9, 0.02]]).summary(), "m.png") is None
    one_of_many = {**example(MIXED).summary(), "tissue_below": 0.02}
    assert trust_note(one_of_many, "m.png") is None
    pale = {**example(MIXED).summary(), "tissue_below": 0.0, "patches_judged": 20, "median": 0.04}
    assert "slide as a whole is unlike" in str(trust_note(pale, "m.png"))
    assert trust_note({**pale, "median": 0.3}, "m.png") is None
    line = trust_note(example(MIXED).summary(), "m.png")
    assert line is not None
    assert line.startswith("40 % of the tissue looks like nothing the generator was trained on")
    assert "sharpness and texture" in line
    assert line.endswith("see m.png")
    assert "none is judged" in str(trust_note(example([[NAN, NAN, NAN]] * 2).summary(), "m.png"))


def test_percentages_have_the_digits_that_matter() -> None:
    assert [percent(v) for v in (0, 0.00012, 0.0123, 0.5, 1)] == ["0 %", "0.012 %", "1.2 %", "50 %", "100 %"]
