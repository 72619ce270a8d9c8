"""Other scans, imitated, and that they say how far is normal: against scikit-image and on a real stained section."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import mannwhitneyu
from skimage import data, exposure, filters

from kin_cli.geometry import Box
from kin_cli.models.reference import ReferenceCard, fit_group, fit_reference
from kin_cli.trust.scans import CHANGES, blurred, compressed, rescanned

PICTURE = data.immunohistochemistry()
SIDE = 96


def read(box: Box) -> Any:
    return PICTURE[box.slices()]


@pytest.mark.parametrize("change", CHANGES)
def test_another_scan_is_a_little_different_in_size_the_same(change: str) -> None:
    box, plain = Box(100, 120, SIDE, SIDE), read(Box(100, 120, SIDE, SIDE)).copy()
    made = [rescanned(read, box, change, np.random.default_rng(seed)) for seed in range(6)]
    assert all(one.shape == plain.shape and one.dtype == np.uint8 for one in made)
    differences = [np.abs(one.astype(int) - plain).mean() for one in made]
    assert 0.3 < max(differences) < 25
    assert len({one.tobytes() for one in made}) > 1
    np.testing.assert_array_equal(made[0], rescanned(read, box, change, np.random.default_rng(0)))
    np.testing.assert_array_equal(read(box), plain)


def test_the_changes_are_those_of_other_libraries() -> None:
    patch = read(Box(0, 0, SIDE, SIDE))
    expected = filters.gaussian(patch, 0.6, channel_axis=-1, mode="reflect", preserve_range=True)
    # SciPy's "reflect" repeats the last pixel, as scikit-image hands it on
    assert np.abs(blurred(patch, 0.6) - expected).max() < 0.51
    file = io.BytesIO()
    Image.fromarray(patch).save(file, "JPEG", quality=70)
    np.testing.assert_array_equal(compressed(patch, 70), np.asarray(Image.open(file)))
    grey = np.full((8, 8, 3), 128, np.uint8)
    levels = [
        int(rescanned(lambda _: grey, Box(0, 0, 8, 8), "gamma", np.random.default_rng(s))[0, 0, 0]) for s in range(50)
    ]
    low, high = (int(exposure.adjust_gamma(grey, gamma)[0, 0, 0]) for gamma in (1.1, 1 / 1.1))
    assert low - 1 <= min(levels) < 124
    assert 132 < max(levels) <= high + 1


def statistics(patches: list[Any], channels: int = 16) -> Any:
    """Mean and standard deviation of a random convolution of each patch: (n, 2, channels)."""
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, channels, 7)
    with torch.no_grad():
        maps = [
            layer(torch.tensor(patch[None] / 127.5 - 1, dtype=torch.float32).permute(0, 3, 1, 2)) for patch in patches
        ]
    return np.stack([[m.mean((0, 2, 3)).numpy(), m.std((0, 2, 3), unbiased=False).numpy()] for m in maps])


def section() -> tuple[list[Any], list[Any]]:
    """Training patches from the upper part of a section, and others from its lower part."""
    places = [(x, y) for y in range(0, 512 - SIDE + 1, 32) for x in range(0, 512 - SIDE + 1, 16)]
    patches = [read(Box(x, y, SIDE, SIDE)) for x, y in places]
    upper = np.array([y + SIDE <= 352 for _, y in places])
    lower = np.array([y >= 352 for _, y in places])
    return [p for p, u in zip(patches, upper, strict=True) if u], [p for p, u in zip(patches, lower, strict=True) if u]


def test_a_break_of_what_is_linear_in_variances_shows_in_them_and_not_in_their_logarithms() -> None:
    # Every variance is a mixture of those of three tissues; what is odd lacks a hundredth in every other
    rng = np.random.default_rng(0)
    mixing = rng.lognormal(0, 1.5, (3, 16))

    def drawn(count: int, kept: float = 1.0) -> Any:
        parts = rng.dirichlet([0.3] * 3, count)
        variances = parts @ mixing * (1 + 3e-3 * rng.normal(size=(count, 16)))
        variances[:, ::2] *= kept
        return np.stack([np.zeros_like(variances), np.sqrt(variances)], axis=1).astype(np.float32)

    train, normal, odd = drawn(300), drawn(100), drawn(100, 0.99)
    areas = {}
    for name in ("grain", "sharpness", "structure"):  # of the same layer
        group = fit_group(train, name, 0, 16)
        a, b = group.score(odd), group.score(normal)
        areas[name] = mannwhitneyu(a, b).statistic / (len(a) * len(b))
    assert min(areas["grain"], areas["sharpness"]) > 0.95
    assert areas["structure"] < 0.93


def test_no_kind_of_other_scan_is_flagged_more_than_chance_and_the_order_of_patches_is_kept() -> None:
    train, held = section()
    rng = np.random.default_rng(1)

    def again(patches: list[Any], change: str) -> list[Any]:
        return [rescanned(lambda _, p=p: p, Box(0, 0, SIDE, SIDE), change, rng) for p in patches]

    redder, softer = again(train[::3], "white balance"), again(train[1::3], "focus")
    stats = np.concatenate([statistics(train), statistics(redder), statistics(softer)])
    order = np.arange(len(train))
    kinds = np.repeat([0, 1, 2], [len(train), len(redder), len(softer)])
    folds = np.concatenate([order, order[::3], order[1::3]]) * 5 // len(train)
    card = ReferenceCard(SIDE, len(stats), (), 0.25)
    narrow = fit_reference(stats[kinds == 0], folds[kinds == 0], [16], card)
    wide = fit_reference(stats, folds, [16], card, kinds=kinds)
    assert len(wide.plain.combined) == 3
    tests = statistics([*held, *(compressed(p, 30) for p in held)])
    few, many = narrow.scores(tests).percentile, wide.scores(tests).percentile
    assert np.median(many) > 1.2 * np.median(few)
    assert (np.diff(many[np.argsort(few, kind="stable")]) >= -1e-12).all()
    redder = statistics(again(held, "white balance"))
    flagged = [(known.scores(redder).percentile < 0.05).mean() for known in (narrow, wide)]
    assert flagged[1] <= 0.1
    assert flagged[0] > 2 * flagged[1]
