"""Stain colours: against scikit-image's separation and torchstain's own normalization."""

from __future__ import annotations

import builtins
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from scipy.linalg import sqrtm
from skimage.color import hed_from_rgb, rgb2lab, separate_stains
from torchstain.base import normalizers

from kin_cli.errors import InputError, UsageError
from kin_cli.geometry import Box
from kin_cli.slide.open import open_source
from kin_cli.slide.stain import (
    METHODS,
    MatchedSlide,
    StainMatch,
    colour_distance,
    colour_statistics,
    fit_stains,
    jittered_stains,
    match_to,
    matched,
    stained,
    target_stains,
    tissue_colours,
    unmatched,
)
from kin_cli.slide.unreadable import FillingSlide
from tests.helpers.trusting import write_tissue


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two slides, the second stained half as strongly."""
    folder = tmp_path_factory.mktemp("stains")
    return write_tissue(folder / "a.tif"), write_tissue(folder / "b.tif", seed=1, stain=0.5)


def colours(path: Path) -> Any:
    view = open_source(path)
    with view.slide:
        return tissue_colours(view)


def test_jitter_scales_the_stains_that_scikit_image_separates() -> None:
    patch = np.random.default_rng(0).integers(60, 200, (64, 64, 3), np.uint8)
    changed = jittered_stains(patch, np.random.default_rng(3), amount=0.2)
    before, after = (separate_stains((p.astype(float) + 1) / 256, hed_from_rgb) for p in (patch, changed))
    for stain in range(3):
        slope, offset = np.polyfit(before[..., stain].ravel(), after[..., stain].ravel(), 1)
        residual = after[..., stain] - slope * before[..., stain] - offset
        assert 0.8 <= slope <= 1.2
        assert np.abs(residual).mean() < 0.02 * np.ptp(before[..., stain])


def test_jitter_leaves_glass_alone_and_zero_changes_nothing() -> None:
    glass = np.full((8, 8, 3), 255, np.uint8)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(jittered_stains(glass, rng, amount=0.3), glass)
    patch = rng.integers(0, 256, (8, 8, 3), np.uint8)
    assert jittered_stains(patch, rng, amount=0.0) is patch


def of_two_stains(pixels: Any) -> Any:
    """The colours (n, 3) without what is neither haematoxylin nor eosin by Macenko's fit."""
    stains = np.array(fit_stains(pixels, "macenko", what="x")["stains"])
    density = -np.log((pixels.astype(float) + 1) / 240) @ (stains @ np.linalg.pinv(stains)).T
    return np.rint(240 * np.exp(-density) - 1).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("method", METHODS)
def test_a_match_is_torchstains_own_normalization(method: Any, slides: tuple[Path, Path]) -> None:
    target, source = (of_two_stains(colours(path)) for path in slides)
    match = StainMatch(method, fit_stains(source, method, what="b"), fit_stains(target, method, what="a"))
    kind = normalizers.MacenkoNormalizer if method == "macenko" else normalizers.ReinhardNormalizer
    oracle = kind(backend="numpy")
    every = {"beta": -1} if method == "macenko" else {}  # torchstain would leave weakly stained pixels out
    oracle.fit(target[:, None], **every)
    made = oracle.normalize(source[:, None], **every)
    expected = (made[0] if method == "macenko" else made).astype(int)
    found = match(source[:, None]).astype(int)
    # torchstain cuts the digits off, Pillow rounds
    assert np.abs(found - expected).mean() < 0.7
    assert np.quantile(np.abs(found - expected), 0.999) <= 2
    before, after = (np.abs(pixels.mean(axis=0) - target.mean(axis=0)).sum() for pixels in (source, found[:, 0]))
    assert after < 0.5 * before


@pytest.mark.parametrize("method", METHODS)
def test_to_its_own_colours_a_slide_stays_what_it_is_also_in_pigment(method: Any, slides: tuple[Path, Path]) -> None:
    known = fit_stains(colours(slides[0]), method, what="a")
    pixels = np.random.default_rng(0).integers(20, 236, (4000, 1, 3), np.uint8)
    assert np.quantile(np.abs(StainMatch(method, known, known)(pixels).astype(int) - pixels), 0.99) <= 1


@pytest.mark.parametrize("method", METHODS)
def test_a_slide_as_near_as_parts_of_the_training_is_left_alone(method: Any, slides: tuple[Path, Path]) -> None:
    target = target_stains([colours(slides[0])], method)
    assert 0 < target["spread"] < 3
    for path, needed in zip(slides, (False, True), strict=True):
        view = open_source(path)
        with view.slide:
            match = match_to(view, method, target)
            assert (match.needed, match.note is None, match.as_dict()["needed"]) == (needed, needed, needed)
            assert (matched(view, match) is view) is not needed
            assert unmatched(matched(view, match)).read(Box(0, 0, 8, 8)).shape == (8, 8, 3)
            assert ("not needed" in match.identity) is not needed
    assert match.shift is not None
    assert match.shift > 2 * target["spread"]


def turned(pixels: Any, amounts: tuple[float, float]) -> Any:
    """Colours (n, 3) with haematoxylin and eosin made stronger by these factors, glass of 245 left as it is."""
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    change = np.linalg.inv(stains) @ np.diag([*amounts, 1.0]) @ stains
    density = -np.log((pixels.astype(float) + 1) / 246) @ change
    return np.rint(246 * np.exp(-density) - 1).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("amounts", [(1.35, 0.6), (0.7, 1.3), (0.6, 0.6)])
def test_what_counts_as_tissue_does_not_depend_on_how_strongly_it_is_stained(
    amounts: tuple[float, float], slides: tuple[Path, Path]
) -> None:
    picture = tifffile.imread(slides[0]).reshape(-1, 3)
    other = turned(picture, amounts)
    target, source = (stained(pixels) for pixels in (picture, other))
    assert len(source) == pytest.approx(len(target), rel=0.1)
    match = StainMatch("reinhard", fit_stains(source, "reinhard", what="b"), fit_stains(target, "reinhard", what="a"))
    tissue = picture.min(axis=1) < 200
    errors = [np.abs(a.astype(int) - picture)[tissue].mean() for a in (other, match(other[:, None])[:, 0])]
    assert errors[1] < 0.6 * errors[0]


def test_the_distance_of_colours_is_that_of_two_normal_distributions() -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.integers(low, 200, (4000, 3)).astype(np.uint8) for low in (20, 90))
    a, b = (rgb2lab(pixels[:, None])[:, 0] for pixels in (one, other))
    root = sqrtm(np.cov(a.T))
    common = np.trace(sqrtm(root @ np.cov(b.T) @ root)).real
    spread = np.trace(np.cov(a.T)) + np.trace(np.cov(b.T)) - 2 * common
    expected = np.sqrt(((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum() + spread)
    found = colour_distance(colour_statistics(one), colour_statistics(other))
    assert found == pytest.approx(expected, rel=1e-3)
    assert colour_distance(colour_statistics(one), colour_statistics(one)) == pytest.approx(0, abs=0.02)


def test_a_match_that_would_not_bring_the_slide_much_nearer_leaves_it_alone(slides: tuple[Path, Path]) -> None:
    target = target_stains([colours(slides[0])], "macenko")
    view = open_source(slides[1])
    with view.slide:
        good = match_to(view, "macenko", target)
    assert good.left is not None
    assert good.left < 0.5 * good.shift
    assert good.needed
    vain = replace(good, left=0.6 * good.shift)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    assert vain(pixels) is pixels
    assert not vain.as_dict()["needed"]
    assert "try the other method" in str(vain.note)


def test_parts_are_slides_if_there_are_five(slides: tuple[Path, Path]) -> None:
    one, other = (colours(path) for path in slides)
    few, many = target_stains([one] * 5, "reinhard"), target_stains([one] * 4 + [other] * 4, "reinhard")
    assert few["spread"] < 0.6  # rounding alone
    assert many["spread"] > 3


def test_a_matched_view_is_the_slide_in_other_colours_wherever_it_is_read(slides: tuple[Path, Path]) -> None:
    target = fit_stains(colours(slides[0]), "macenko", what="a")
    for fill in (False, True):
        view = open_source(slides[1], fill=fill)
        with view.slide:
            match = match_to(view, "macenko", target)
            shown, back = matched(view, match), unmatched(matched(view, match))
            whole, part = Box(0, 0, 300, 200), Box(100, 50, 64, 64)
            np.testing.assert_array_equal(shown.read(whole)[part.slices()], shown.read(part))
            np.testing.assert_array_equal(shown.read(part), match(view.read(part)))
            np.testing.assert_array_equal(back.read(part), view.read(part))
            assert isinstance(shown.slide, FillingSlide if fill else MatchedSlide)
            assert (shown.slide.mpp, shown.slide.levels) == (view.slide.mpp, view.slide.levels)


def test_the_fit_does_not_depend_on_the_region(slides: tuple[Path, Path]) -> None:
    view = open_source(slides[1], region=Box(64, 64, 128, 128))
    with view.slide:
        np.testing.assert_array_equal(tissue_colours(view), colours(slides[1]))


def test_what_has_no_stains_is_refused() -> None:
    with pytest.raises(InputError, match="too little tissue"):
        fit_stains(np.zeros((0, 3), np.uint8), "macenko", what="x.tif")
    with pytest.raises(InputError, match="cannot be fitted"):
        fit_stains(np.full((900, 3), 90, np.uint8), "reinhard", what="x.tif")
    with pytest.raises(InputError, match="cannot be fitted"):
        fit_stains(np.full((900, 3), 90, np.uint8), "macenko", what="x.tif")


def test_without_torchstain_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("torchstain"):
            raise ModuleNotFoundError(name)
        return plain(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UsageError, match="needs torchstain") as caught:
        fit_stains(np.zeros((900, 3), np.uint8), "macenko", what="x.tif")
    assert "kin-cli[stain]" in str(caught.value)
