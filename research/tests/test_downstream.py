"""The downstream check: its parts against other people's formulas, and the whole script in a tiny setting."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import downstream
import numpy as np
import pytest
import tifffile
from classifier import PatchClassifier, accuracy, auc, shrunk
from crops import (
    UNDECIDED,
    Crops,
    Limits,
    across_borders,
    agreement,
    covered,
    held_out,
    inside_patches,
    labels_of_mask,
    score,
    trained,
    with_tissue,
)
from dab import brown_fraction, dab_density
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from skimage.color import hdx_from_rgb, separate_stains

from kin_cli.errors import InputError
from kin_cli.geometry import Box, Size
from kin_cli.slide.tissue import TissueMask

BROWN, BLUE, WHITE = (120, 80, 40), (140, 150, 200), (250, 250, 250)


def test_dab_density_is_scikit_images_up_to_its_unit() -> None:
    image = np.random.default_rng(0).integers(20, 256, (16, 16, 3), np.uint8)
    # skimage's unit is the natural density over ln 1e6
    theirs = separate_stains(image, hdx_from_rgb)[..., 1] * np.log(1e6) / np.log(10)
    ours = dab_density(image)
    np.testing.assert_allclose(ours[theirs > 0], theirs[theirs > 0], rtol=5e-3, atol=1e-3)
    assert (ours[theirs == 0] < 1e-3).all()


def test_brown_fraction_counts_brown_pixels() -> None:
    image = np.full((10, 10, 3), WHITE, np.uint8)
    image[:3], image[3:6] = BROWN, BLUE
    assert brown_fraction(image) == pytest.approx(0.3)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 63), st.integers(0, 63))
def test_crops_across_borders_are_centred_on_inner_corners(rows: int, cols: int, dx: int, dy: int) -> None:
    size = Size(64 * cols + dx, 64 * rows + dy)
    corners = {(box.x + 32, box.y + 32) for box in across_borders(size, 64)}
    assert corners == {(64 * c, 64 * r) for c in range(1, cols) for r in range(1, rows)}
    inside = inside_patches(size, 64)
    assert len(inside) == rows * cols
    assert all(box.x % 64 == box.y % 64 == 0 and box.clipped(size) == box for box in inside)


def test_tissue_and_labels_come_from_the_mask_under_each_crop() -> None:
    mask = np.zeros((256, 256), bool)
    mask[:128, :100] = True
    boxes = [*inside_patches(Size(256, 256), 64), *across_borders(Size(256, 256), 64)]
    tissue = TissueMask(mask, Size(256, 256))
    assert covered(boxes, tissue) == pytest.approx([mask[box.slices()].mean() for box in boxes])
    assert with_tissue(boxes, tissue) == [box for box in boxes if mask[box.slices()].mean() >= 0.5]
    wanted = [1 if mask[b.slices()].mean() >= 0.5 else UNDECIDED if mask[b.slices()].any() else 0 for b in boxes]
    assert labels_of_mask(boxes, tissue).tolist() == wanted
    assert with_tissue([], tissue) == []


def test_limits_are_thirds_and_the_median_of_real_patches() -> None:
    fractions = [number / 99 for number in range(100)]
    limits = Limits.of(fractions)
    learn = limits.to_learn(fractions)
    assert [(learn == label).sum() for label in (0, UNDECIDED, 1)] == [33, 34, 33]
    assert limits.to_test(fractions).sum() == 50
    assert limits.to_test([0.0, 1.0]).tolist() == [0, 1]


def test_blocks_of_neighbours_are_held_out_together() -> None:
    boxes = inside_patches(Size(64 * 24, 64 * 24), 64)
    held = held_out(boxes).reshape(24, 24)
    assert held.mean() == pytest.approx(0.25)
    blocks = held.reshape(8, 3, 8, 3).transpose(0, 2, 1, 3).reshape(64, 9)
    assert set(blocks.sum(1)) == {0, 9}


@pytest.mark.parametrize("classes", [2, 3])
def test_auc_is_the_statistic_of_mann_and_whitney(classes: int) -> None:
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, 60)
    scores = rng.integers(0, 8, (60, classes)) / 8 + (labels[:, None] == np.arange(classes)) / 4
    areas = []
    for label in range(classes):
        inside, outside = scores[labels == label, label], scores[labels != label, label]
        areas.append(stats.mannwhitneyu(inside, outside).statistic / (len(inside) * len(outside)))
    assert auc(scores, labels) == pytest.approx(np.mean(areas))
    assert np.isnan(auc(scores[:3], np.zeros(3, np.intp)))
    assert np.isnan(accuracy(scores[:0], labels[:0]))


def test_scores_leave_the_undecided_out() -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.1, 0.9]])
    found = score(probabilities, np.array([0, 1, 1, UNDECIDED]))
    assert (found.n, found.positive, found.accuracy) == (3, pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert found.auc == 1.0
    fractions = agreement({"a": np.array([0, 1, 1]), "b": np.array([0, 1, 0])})
    assert fractions["a"]["b"] == fractions["b"]["a"] == pytest.approx(2 / 3)
    assert fractions["a"]["a"] == 1


def _patches(count: int, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Noise in brown or blue; what tells the classes apart is colour."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    return [
        np.clip(rng.normal((BLUE, BROWN)[label], 40, (32, 32, 3)), 0, 255).astype(np.uint8) for label in labels
    ], labels


def test_the_classifier_learns_and_repeats_itself() -> None:
    patches, labels = _patches(24, 0)
    first, second = (trained(patches, labels, classes=2, epochs=30, seed=3) for _ in range(2))
    others, wanted = _patches(20, 1)
    found = first.probabilities(others)
    np.testing.assert_array_equal(found, second.probabilities(others))
    np.testing.assert_allclose(found.sum(1), 1)
    assert accuracy(found, wanted) > 0.9
    untaught = PatchClassifier(2, seed=3).probabilities(others)
    assert np.abs(untaught - found).max() > 0.1
    with pytest.raises(InputError, match="class 1 has 0 real patches"):
        trained(patches, np.zeros(24, np.intp), classes=2, epochs=1, seed=0)


def test_shrinking_keeps_a_step_in_colour() -> None:
    patch = np.full((512, 512, 3), 100, np.uint8)
    patch[:, 256:] = 110
    small = shrunk(patch)
    assert small.shape == (128, 128, 3)
    assert (small[:, :64] == 100).all()
    assert (small[:, 64:] == 110).all()
    crops = Crops.read(lambda box: patch[box.slices()], [Box(0, 0, 64, 64)], workers=1)
    assert crops.patches[0].shape == (64, 64, 3)


def _slide(path: Path, seed: int, *, brown: float) -> Path:
    """Tissue of blue dots; the fraction of brown ones grows to the right."""
    rng = np.random.default_rng(seed)
    picture = np.full((384, 512, 3), (225, 215, 225), np.uint8)
    for _ in range(1500):
        y, x = rng.integers(0, 378), rng.integers(0, 506)
        picture[y : y + 6, x : x + 6] = BROWN if rng.random() < brown * x / 512 else BLUE
    if path.suffix == ".png":
        Image.fromarray(picture).save(path)
    else:
        tifffile.imwrite(path, picture, photometric="rgb", tile=(128, 128))
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def called(*arguments: object) -> tuple[int, str, str]:
        shared = ["--patch-size", "64", "--device", "cpu", "-j", "1"]
        monkeypatch.setattr(sys, "argv", ["downstream.py", *map(str, arguments), *shared])
        code = downstream.main()
        return (code, *capsys.readouterr())

    return called


def test_the_script_tells_methods_apart_by_the_rule(
    tmp_path: Path, tiny_generator: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    source, target = _slide(tmp_path / "he.png", 0, brown=0.2), _slide(tmp_path / "ihc.png", 1, brown=1.0)
    common = ["--source", source, "--target", target, "-m", tiny_generator, "--epochs", 40]
    code, out, err = run(*common, "--json", tmp_path / "out.json")
    assert code == 0, err
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["labels"] == "rule"
    assert list(found["methods"]) == list(found["agreement"]) == ["in", "tin", "kin", "seamless"]
    assert found["real"]["held_out"]["auc"] > 0.85
    for places in found["methods"].values():
        assert (places["across"]["n"], places["inside"]["n"]) == (7 * 5, 8 * 6)
    assert "seamless across" in out


def test_the_script_takes_classes_of_slides_or_masks_and_refuses_what_does_not_fit(
    tmp_path: Path, tiny_generator: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    files = [_slide(tmp_path / f"{name}.png", n, brown=n % 2) for n, name in enumerate(("a", "b", "c", "d"))]
    pairs = [f"{name}={file}" for name, file in zip(("lung", "colon", "lung", "colon"), files, strict=True)]
    common = ["-m", tiny_generator, "--methods", "in", "--epochs", 1, "--source-region", "0,0,256,256"]
    code, out, err = run(
        "--source", pairs[0], "--source", pairs[1], "--target", pairs[2], "--target", pairs[3], *common
    )
    assert code == 0, err
    # 3 × 3 inner corners on either source, half of them lung
    assert "in across             18    0.500" in out
    code, _, err = run("--source", files[0], "--target", pairs[2], "--target", pairs[3], *common)
    assert code == 2
    assert "either every slide has one of the classes" in err
    code, _, err = run("--source", files[0], "--target", files[1], "--source-mask", files[2], *common)
    assert "go together" in err
    mask = np.zeros((384, 512), np.uint8)
    mask[:, :128] = 255
    Image.fromarray(mask).save(tmp_path / "left.png")
    masks = ["--source-mask", tmp_path / "left.png", "--target-mask", tmp_path / "left.png"]
    code, out, err = run("--source", files[0], "--target", files[1], *masks, *common)
    assert code == 0, err
    assert "in inside             16    0.500" in out
