"""Witnesses of trust: against scikit-image's colour difference, and the abstention curve against its definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from skimage.color import deltaE_cie76, rgb2lab

from kin_cli.passes.alone import alone, differences
from kin_cli.progress import SilentProgress
from kin_cli.slide.open import open_source
from kin_cli.trust.sample import load_known, nearness, sample_patches, verdict
from kin_cli.trust.witness import abstention, witnesses
from tests.helpers.trusting import SIDE, learned, write_tissue


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator that has learned."""
    return learned(tmp_path_factory.mktemp("learned"))


def test_differences_are_those_of_scikit_image() -> None:
    a, b = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), np.uint8)
    expected = deltaE_cie76(rgb2lab(a), rgb2lab(b))
    assert differences(a, b).mean() == pytest.approx(float(expected.mean()), rel=1e-3)


def test_a_generator_agrees_with_itself_and_not_with_another(model: Path, tmp_path: Path) -> None:
    known, other = load_known(model), load_known(learned(tmp_path, seed=5))
    view = open_source(write_tissue(tmp_path / "new.tif", seed=40, odd=True))
    with view.slide:
        sample = sample_patches(view, count=12, patch_px=SIDE, min_tissue=0.25)
        same = witnesses(sample, known, SilentProgress(), others=[known.engine])
        two = witnesses(sample, known, SilentProgress(), others=[other.engine], back=other.engine)
    assert same.disagreement["generators"].max() == 0
    assert two.disagreement["generators"].min() > 0
    assert two.disagreement["shift"].min() > 0
    assert set(two.disagreement) == {"shift", "generators", "way back"}
    assert len(two.rows()) == 12
    odd = np.array([x for x, *_ in two.boxes]) >= 2 * 704 // 3 // SIDE * SIDE
    assert two.percentile[odd].max() < two.percentile[~odd].min()


def test_a_patch_alone_is_what_the_network_does_without_kin(model: Path) -> None:
    import torch

    from kin_cli.models.checkpoint import load_generator

    pixels = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    _, found = alone(load_known(model).engine, pixels)
    with torch.inference_mode():
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
        expected = load_generator(model).module(x)[0].permute(1, 2, 0).numpy() * 127.5 + 127.5
    assert np.abs(found - expected).max() <= 1.01


def test_a_slide_of_other_colours_is_far_and_matching_brings_it_nearer(model: Path, tmp_path: Path) -> None:
    known = load_known(model)
    near = nearness(write_tissue(tmp_path / "near.tif", seed=50), known, SilentProgress())
    far = nearness(write_tissue(tmp_path / "far.tif", seed=51, stain=0.4), known, SilentProgress())
    assert near[0].median > 0.05
    assert "is like" in verdict(near)[0]
    assert far[0].median < 0.02
    assert max(one.median for one in far if one.value in ("macenko", "reinhard")) > 5 * far[0].median
    assert [one.name for one in far[3:]] == ["--mpp 0.25", "--mpp 0.355", "--mpp 0.705", "--mpp 1"]


def test_the_abstention_curve_is_the_mean_of_what_is_left() -> None:
    rng = np.random.default_rng(2)
    accuracy, weights = rng.random(60), rng.integers(1, 5, 60).astype(float)
    curve = abstention(accuracy, accuracy, weights=weights)  # a perfect score
    order = np.argsort(accuracy)
    for i in (0, 7, 59):
        rest = order[i:]
        assert curve.kept[i] == pytest.approx(np.average(accuracy[rest], weights=weights[rest]))
        assert curve.flagged[i] == pytest.approx(weights[order[:i]].sum() / weights.sum())
    assert curve.chance == pytest.approx(np.average(accuracy, weights=weights))
    assert (np.diff(curve.kept) >= 0).all()
    assert curve.p_value < 0.01


def test_a_score_without_worth_stays_within_the_band_of_chance() -> None:
    rng = np.random.default_rng(3)
    curve = abstention(rng.random(200), rng.random(200))
    inside = (curve.kept >= curve.low) & (curve.kept <= curve.high)
    assert inside.mean() > 0.8
    assert 0.02 < curve.p_value < 0.98
    assert curve.gain == pytest.approx(0, abs=0.1)
    with pytest.raises(ValueError, match="two areas"):
        abstention(np.array([0.5, np.nan]), np.array([0.1, 0.2]))
