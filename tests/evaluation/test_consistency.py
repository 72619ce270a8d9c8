"""The mismatch of two translations of the same pixels, against scikit-image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from skimage import color

from kin_cli.errors import NoTissueError
from kin_cli.evaluation.consistency import measure_mismatch
from kin_cli.progress import SilentProgress
from kin_cli.slide.tissue import TissueMask
from kin_cli.slide.view import SlideView, open_view
from tests.helpers.pictures import noisy, smooth_picture
from tests.helpers.processes import assert_refused, kin, succeed
from tests.helpers.slides import ArraySlide


def view_of(pixels: np.ndarray) -> SlideView:
    return open_view(ArraySlide(pixels))


def test_the_mismatch_is_that_of_scikit_image_and_0_of_equal_pixels() -> None:
    pixels = smooth_picture(300, 260)
    shifted = noisy(pixels, 6)[40:, 64:]
    mask = TissueMask(np.ones((4, 4), np.bool_), view_of(pixels).size)
    options = {"progress": SilentProgress(), "workers": 2}
    found = measure_mismatch(view_of(pixels), view_of(shifted), (64, 40), mask, **options)
    far = color.deltaE_cie76(color.rgb2lab(pixels[40:, 64:]), color.rgb2lab(shifted))
    assert found.mean == pytest.approx(far.mean(), abs=0.01)
    assert found.p99 == pytest.approx(np.percentile(far, 99), abs=0.06)
    assert found.pixels == far.size
    same = measure_mismatch(view_of(pixels), view_of(pixels[40:, 64:]), (64, 40), mask, **options)
    assert (same.mean, same.p99) == (0.0, 0.05)
    with pytest.raises(NoTissueError):
        measure_mismatch(view_of(pixels), view_of(shifted), (900, 0), mask, **options)


def test_commands_compare_a_translation_with_a_shifted_one(slide: Path, tiny_generator: Path, tmp_path: Path) -> None:
    options = ("-m", tiny_generator, "--patch-size", 128, "--tissue", "none", "--compression", "deflate", "--no-trust")
    regions = {"a": (0, 0), "b": (64, 64), "c": (128, 0)}
    means = {}
    for method in ("in", "kin"):
        files = {}
        for name, (x, y) in regions.items():
            files[name] = tmp_path / f"{method}{name}.tif"
            region = ("--region", f"{x},{y},{520 - x},{1040 - y}")
            succeed("translate", slide, *options, "--method", method, *region, "-o", files[name])
        found = json.loads(succeed("validate", files["a"], "--shifted", files["b"], "--tissue", "none", "--json"))
        means[method] = found["mismatch"]["mean"]
        assert found["mismatch"]["offset"] == [64, 64]
        refused = kin("validate", files["a"], "--shifted", files["c"])
        assert_refused(refused, "its patches lie where those of", code=2)
    assert 0 < means["kin"] < means["in"]
    shown = succeed("seams", tmp_path / "kina.tif", "--shifted", tmp_path / "kinb.tif", "--tissue", "none")
    assert f"tile mismatch: mean {means['kin']:.2f} ΔE" in shown
    assert_refused(kin("validate", tmp_path / "kina.tif"), "nothing to compare with", code=2)
    assert_refused(kin("validate", tmp_path / "kina.tif", "--shifted", slide), "does not tell how it was made", code=1)
