"""The abstention curve of a validation: areas found on the map, and what is not a map of this translation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kin_cli.geometry import Grid, Size
from kin_cli.passes.trust import TrustMap, map_geojson
from kin_cli.slide.view import SlideView, open_view
from kin_cli.validation.abstention import abstention_of, percentiles_at, points
from kin_cli.validation.areas import Areas
from tests.helpers.slides import ArraySlide

SIDE = 256  # px of an area of 128 µm at 0.5 µm/px, and of a patch


def trust(**changes: Any) -> TrustMap:
    """A map of 8 × 8 patches, the last two columns of which are odd."""
    percentile = np.full((8, 8), 0.6, np.float32) + np.arange(64, dtype=np.float32).reshape(8, 8) / 1000
    percentile[:, 6:] /= 1000
    known = {"grid": Grid(Size(8 * SIDE, 8 * SIDE), SIDE), "percentile": percentile, **changes}
    return TrustMap(
        **known, group=np.zeros((8, 8), np.int8), weights=np.ones((8, 8), np.float32), threshold=0.01, precision="fp32"
    )


def translation(folder: Path) -> SlideView:
    slide = ArraySlide(np.broadcast_to(np.uint8(200), (8 * SIDE, 8 * SIDE, 3)), mpp=0.5)
    slide.path = folder / "o.ome.tif"
    return open_view(slide)


def areas() -> Areas:
    """Areas that agree with the real slide everywhere but in the last two columns."""
    cells = np.argwhere(np.ones((8, 8))).astype(float)
    real = (cells[:, 0] % 2).astype(float)
    ours = np.where(cells[:, 1] >= 6, 1 - real, real)
    sums = tuple(np.stack([density * 100, *[np.zeros(64)] * 6], axis=1) for density in (ours, real))
    return Areas(128, cells, np.full(64, 100.0), sums, sums, 0.25)


def test_what_is_odd_and_wrong_raises_the_accuracy_of_the_rest(tmp_path: Path) -> None:
    view = translation(tmp_path)
    (tmp_path / "o.ome.tif.trust.geojson").write_bytes(map_geojson(trust(), view, output="o.ome.tif"))
    curve = abstention_of(areas(), view, mpp=0.5, seed=0)
    assert curve is not None
    assert curve.chance == 0.75
    assert curve.kept[16] == 1
    assert curve.p_value < 0.01
    shown = points(curve)
    assert [at for at, *_ in shown] == [0.0, 0.05, 0.1, 0.2, 0.5]
    assert shown[0][1] == 0.75
    assert shown[-1][1] == 1


def test_without_a_map_of_this_translation_there_is_no_curve(tmp_path: Path) -> None:
    view = translation(tmp_path)
    assert abstention_of(areas(), view, mpp=0.5, seed=0) is None
    other = trust(grid=Grid(Size(8 * SIDE - 1, 8 * SIDE), SIDE))
    (tmp_path / "o.ome.tif.trust.geojson").write_bytes(map_geojson(other, view, output="o.ome.tif"))
    assert abstention_of(areas(), view, mpp=0.5, seed=0) is None


def test_an_area_has_the_percentile_of_the_patch_under_its_middle() -> None:
    cells = np.array([[0, 0], [1, 15], [14, 3]], float)
    found = percentiles_at(trust(), cells, side_px=SIDE / 2)
    np.testing.assert_array_equal(found, trust().percentile[[0, 0, 7], [0, 7, 1]])
