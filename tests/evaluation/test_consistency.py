"""The mismatch of two translations of the same pixels, against scikit-image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from skimage import color

from kin_cli.errors import NoTissueError
from kin_cli.evaluation.consistency import measure_mismatch
from kin_cli.geometry import Box
from kin_cli.progress import SilentProgress
from kin_cli.slide.tissue import TissueMask
from kin_cli.slide.view import SlideView, open_view
from tests.helpers.generators import write_generator
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
    assert_refused(kin("validate", tmp_path / "kina.tif", "--shifted", slide), "does not tell how it was made", code=1)


def test_a_sample_translated_again_is_what_two_translations_differ_by(
    slide: Path, tiny_generator: Path, tmp_path: Path
) -> None:
    """Of one place inside the slide: the same as comparing both files there, for every method."""
    options = ("-m", tiny_generator, "--patch-size", 64, "--kernel", "constant:3", "--tissue", "none", "--no-trust")
    files: dict[str, list[Path]] = {}
    for name, how in (("kin", ("--paper",)), ("seamless", ())):
        files[name] = [tmp_path / f"{name}{number}.tif" for number in range(2)]
        for file, region in zip(files[name], ((), ("--region", "32,32,488,1008")), strict=True):
            succeed("translate", slide, *options, *how, *region, "--compression", "deflate", "-o", file)
    again = json.loads(succeed("validate", files["seamless"][0], "--places", 2, "--json", "--seed", 3))
    assert again["made_by"] == "seamless"
    boxes = [Box(*place) for place in again["places"]]
    assert len(boxes) == 2
    for name, (first, second) in files.items():
        far = []
        for box in boxes:
            one, other = tifffile.imread(first)[box.slices()], tifffile.imread(second)[box.shifted(-32, -32).slices()]
            far.append(color.deltaE_cie76(color.rgb2lab(one), color.rgb2lab(other)).ravel())
        expected = np.concatenate(far)
        assert again["mismatch"][name]["pixels"] == expected.size
        assert again["mismatch"][name]["mean"] == pytest.approx(expected.mean(), rel=0.02)
        assert again["mismatch"][name]["p99"] == pytest.approx(np.percentile(expected, 99), rel=0.03)
    means = [again["mismatch"][name]["mean"] for name in ("in", "kin", "seamless")]
    assert means[0] > means[1] > means[2] > 0
    only = json.loads(succeed("validate", files["kin"][0], "--places", 2, "--seed", 3, "--consistency", "in", "--json"))
    assert only["mismatch"] == {"in": again["mismatch"]["in"]}
    assert only["made_by"] == "kin"
    shown = succeed("seams", files["kin"][0], "--tissue", "none", "--consistency", "--places", 1)
    assert "as this file" in shown


def test_what_cannot_be_translated_again_is_told(wanted: Path, slide: Path, tmp_path: Path) -> None:
    assert_refused(kin("validate", slide), "does not tell how it was made", code=1)
    assert_refused(kin("validate", wanted, "--consistency", "tin"), "there are in, kin, seamless", code=2)
    alone = tmp_path / wanted.name
    alone.write_bytes(wanted.read_bytes())
    assert_refused(kin("validate", alone), "name it with --source", code=1)
    assert_refused(kin("validate", alone, "--source", slide), "name its file with --model", code=1)
    other = write_generator(tmp_path / "other.pth", seed=8)
    refused = kin("validate", alone, "--source", slide, "--model", other)
    assert_refused(refused, "is not the generator that made", code=1)
