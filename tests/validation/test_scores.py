"""Figures of areas against SciPy, scikit-image and SimpleITK; intervals and chance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage, stats
from skimage.filters import threshold_otsu

from kin_cli.validation.areas import BASE_UM, BINS, COLUMNS, SCALES_UM, Areas, AreaTable, Rules, measured
from kin_cli.validation.scores import (
    BETTER,
    Score,
    bland_altman,
    distances,
    divergence,
    mask_figures,
    roc_area,
    roc_curves,
    roc_points,
    scores,
)
from kin_cli.validation.stains import otsu

RNG = np.random.default_rng(0)


def field(side: int, seed: int) -> np.ndarray:
    """Smooth densities between 0 and 1, (side, side)."""
    values = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(side, side)), 2)
    return (0.5 + 0.2 * values / values.std()).clip(0, 1)


def areas(ours: np.ndarray, real: np.ndarray, um: int = 64) -> Areas:
    """Areas with these mean densities (rows, cols), each of 100 pixels."""
    cells = np.argwhere(np.ones(real.shape, bool))
    squares = np.unique(cells // (256 // um), axis=0, return_inverse=True)[1].reshape(-1)
    sums, histograms = [], []
    for values in (ours.ravel(), real.ravel()):
        table = np.zeros((len(values), len(COLUMNS)))
        table[:, 0], table[:, 1], table[:, 2] = 100 * values, 100 * (values > 0.5), 100 * values * (values > 0.5)
        table[:, 3] = np.rint(20 + 5 * values)
        table[:, 4], table[:, 5] = np.rint(10 * values), np.rint(5 * values)
        sums.append(table)
        own = np.stack([100 * (np.floor(values * 20) == b) for b in range(BINS)], axis=1).astype(float)
        histograms.append(np.stack([own[squares == n].sum(axis=0) for n in range(squares.max() + 1)]))
    return Areas(um, cells, np.full(real.size, 100.0), tuple(sums), tuple(histograms), 1.0)


def by_name(found: list[Score]) -> dict[str, Score]:
    return {score.name: score for score in found}


def test_a_slide_against_itself_is_perfect() -> None:
    real = field(40, 1)
    found = by_name(scores(areas(real, real), finer=False))
    for name, best in BETTER.items():
        if best in ("0", "1"):
            wanted = float(best)
            assert found[name].value == pytest.approx(wanted, abs=1e-9), name
            assert found[name].interval == pytest.approx((wanted, wanted), abs=1e-9), name
    assert found["stained"].value == found["stained_real"].value


def test_shuffled_areas_give_chance() -> None:
    real = field(40, 1)
    shuffled = np.random.default_rng(3).permutation(real.ravel()).reshape(real.shape)
    found = by_name(scores(areas(shuffled, real), finer=False))
    for name in ("dice", "iou", "sensitivity", "specificity", "auc", "pearson", "spearman"):
        low, high = found[name].interval or (1, 0)
        assert low <= (found[name].chance or 0) <= high, name
    assert found["auc"].chance == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("how", ["noise", "shift", "half"])
def test_figures_fall_as_a_copy_is_spoiled(how: str) -> None:
    real = field(24, 2)
    noise = np.random.default_rng(5).normal(size=real.shape)
    levels = []
    for amount in range(4):
        copy = {
            "noise": real + 0.15 * amount * noise,
            "shift": np.roll(real, amount, axis=1),
            "half": np.where(np.arange(24) < 6 * amount, 0.1, real),
        }[how]
        found = by_name(scores(areas(copy, real), finer=False))
        levels.append([found[name].value or 0 for name in ("dice", "pearson", "auc")])
    assert (np.diff(np.array(levels), axis=0) < 0).all()


def test_masks_agree_with_their_definition_and_roc_with_mann_and_whitney() -> None:
    ours, truth = RNG.random(500).round(2), RNG.random(500) < 0.3
    flags = ours > 0.6
    found = mask_figures(flags, truth)
    sets = set(np.flatnonzero(flags)), set(np.flatnonzero(truth))
    assert found["dice"] == pytest.approx(2 * len(sets[0] & sets[1]) / (len(sets[0]) + len(sets[1])))
    assert found["iou"] == pytest.approx(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
    u = stats.mannwhitneyu(ours[truth], ours[~truth]).statistic
    assert roc_area(ours, truth) == pytest.approx(u / (truth.sum() * (~truth).sum()))


def test_figures_of_real_like_masks_are_those_of_scikit_learn_scikit_image_and_scipy() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    real = field(40, 7)
    ours = (0.6 * real + 0.4 * field(40, 9)).round(3)
    part = areas(ours, real)
    threshold = otsu(real.ravel().astype(np.float32))
    assert threshold == pytest.approx(threshold_otsu(real, 256), abs=0.01)
    one, truth = ours.ravel() > threshold, real.ravel() > threshold
    found = {name: score.value for name, score in by_name(scores(part, finer=False)).items()}
    wanted = {
        "dice": metrics.f1_score(truth, one),
        "iou": metrics.jaccard_score(truth, one),
        "sensitivity": metrics.recall_score(truth, one),
        "specificity": metrics.recall_score(~truth, ~one),
        "auc": metrics.roc_auc_score(truth, ours.ravel()),
        "pearson": stats.pearsonr(ours.ravel(), real.ravel()).statistic,
        "spearman": stats.spearmanr(ours.ravel(), real.ravel()).statistic,
        "nuclei_pearson": stats.pearsonr(part.sums[0][:, 3], part.sums[1][:, 3]).statistic,
        "density_ratio": ours.mean() / real.mean(),
        "integrated_ratio": ours[ours > 0.5].sum() / real[real > 0.5].sum(),
        "stained": (ours > 0.5).mean(),
        "labelling_index": part.sums[0][:, 4:7].sum() / part.sums[0][:, 3].sum(),
        "h_score": 100 * (part.sums[0][:, 4:7] @ [1, 2, 3]).sum() / part.sums[0][:, 3].sum(),
    }
    index = [sums[:, 4:7].sum(axis=1) / sums[:, 3] for sums in part.sums]
    wanted["labelling_bias"] = (index[0] - index[1]).mean()
    wanted["labelling_limits"] = 1.96 * (index[0] - index[1]).std(ddof=1)
    wanted["kl"] = stats.entropy(*(part.histograms[n].sum(axis=0) + 0.5 for n in (1, 0)))
    ends = [mask.reshape(real.shape) for mask in (one, truth)]
    far = [ndimage.distance_transform_edt(~end) for end in ends]
    percentiles = [np.percentile(values[end], 95) for values, end in zip(far[::-1], ends, strict=True)]
    wanted["hausdorff95_um"] = 64 * max(percentiles)
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, rel=1e-5)


def test_roc_curves_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    real = field(30, 7)
    ours = (0.5 * real + 0.5 * field(30, 9)).round(2)
    truth = real.ravel() > otsu(real.ravel().astype(np.float32))
    false, true, thresholds = metrics.roc_curve(truth, ours.ravel(), drop_intermediate=False)
    (curve,) = roc_curves(areas(ours, real))
    assert np.allclose(curve.false_positive, false)
    assert np.allclose(curve.true_positive, true)
    assert np.allclose(curve.threshold[1:], thresholds[1:])
    values, flags = RNG.random(5000), RNG.random(5000) < 0.3
    few = roc_points(values + flags, flags)
    assert len(few[0]) <= 201
    assert (few[0][[0, -1]].tolist(), few[1][[0, -1]].tolist()) == ([0, 1], [0, 1])
    assert metrics.auc(few[0], few[1]) == pytest.approx(roc_area(values + flags, flags), abs=1e-3)
    flat = areas(np.full((9, 9), 0.5), np.full((9, 9), 0.5))
    assert roc_curves(flat) == []


def test_distances_are_those_of_simple_itk() -> None:
    sitk = pytest.importorskip("SimpleITK")
    masks = field(40, 7) > 0.6, field(40, 8) > 0.6
    cells = np.argwhere(np.ones((40, 40), bool))
    found = distances(cells, *(mask.ravel() for mask in masks))
    largest = max(found[side][mask.ravel()].max() for side, mask in enumerate(masks))
    measure = sitk.HausdorffDistanceImageFilter()
    measure.Execute(*(sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in masks))
    assert largest == pytest.approx(measure.GetHausdorffDistance())
    average = np.mean([found[side][mask.ravel()].mean() for side, mask in enumerate(masks)])
    assert average == pytest.approx(measure.GetAverageHausdorffDistance(), rel=0.02)


def test_divergence_and_limits_of_agreement() -> None:
    real, ours = RNG.integers(50, 900, BINS).astype(float), RNG.integers(50, 900, BINS).astype(float)
    assert divergence(real, ours) == pytest.approx(stats.entropy(real + 0.5, ours + 0.5))
    one, other = RNG.random(200), RNG.random(200)
    bias, half = bland_altman(np.append(one, np.nan), np.append(other, 1.0))
    assert (bias, half) == pytest.approx((np.mean(one - other), 1.96 * np.std(one - other, ddof=1)))


def test_intervals_cover_what_is_true_of_the_population() -> None:
    covered = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        real = rng.normal(size=(16, 16))
        ours = 0.6 * real + 0.8 * rng.normal(size=real.shape)
        low, high = by_name(scores(areas(ours, real, um=256), finer=False))["pearson"].interval or (1, 0)
        covered += low <= 0.6 <= high
    assert covered >= 9


def test_areas_sum_what_their_pixels_show() -> None:
    side, rng = 16, np.random.default_rng(0)
    densities = rng.random((2, 64, 96)).astype(np.float32)
    counted = rng.random((64, 96)) < 0.8
    rules = Rules(0.4, 0.9)
    sums, histograms = measured(densities, counted, rules, side)
    block = np.s_[16:32, 48:64]
    inside = densities[0][block][counted[block]]
    assert sums[1, 3, 0] == pytest.approx(inside.sum(), rel=1e-5)
    assert sums[1, 3, 1] == (inside > 0.4).sum()
    assert sums[1, 3, 2] == pytest.approx(inside[inside > 0.4].sum(), rel=1e-5)
    assert histograms[1, 3].sum() == counted[block].sum()
    table = AreaTable(side, 1.0)
    table.add((0, 0), counted, [(sums, histograms), (sums, histograms)])
    assert table.areas(BASE_UM).sums[0][:, 1].sum() == (densities[0] > 0.4)[counted].sum()
    wide = table.areas(2 * BASE_UM)
    assert len(wide.pixels) == 6
    assert wide.pixels.sum() == counted.sum()
    for um in (BASE_UM, 2 * BASE_UM):
        found = table.areas(um)
        assert len(found.histograms[0]) == found.clusters.max() + 1 == 1
        assert (found.histograms[0][0] == histograms.sum(axis=(0, 1))).all()


def test_areas_of_several_blocks_are_those_of_one() -> None:
    side, rng = 4, np.random.default_rng(1)
    densities = rng.random((2, 64, 192)).astype(np.float32)  # 16 × 48 areas, 2 × 6 squares
    counted = np.repeat(np.repeat(rng.random((16, 48)) < 0.8, side, 0), side, 1)
    counted[:, 100:140] = False
    rules = Rules(0.4, 9.0)
    whole, parts = AreaTable(side, 1.0), AreaTable(side, 1.0)
    for table, width in ((whole, 192), (parts, 64)):
        for x in reversed(range(0, 192, width)):
            part = np.s_[:, x : x + width]
            one = measured(densities[:, :, x : x + width], counted[part], rules, side)
            table.add((0, x // side), counted[part], [one, one])
    for um in SCALES_UM:
        one, other = whole.areas(um), parts.areas(um)
        assert (one.cells == other.cells).all()
        assert np.allclose(one.sums[0], other.sums[0])
        assert np.allclose(one.histograms[1], other.histograms[1])
        kept = np.zeros((64, 192), bool)
        pixels = um // BASE_UM * side
        for row, col in one.cells:
            kept[row * pixels : (row + 1) * pixels, col * pixels : (col + 1) * pixels] = True
        in_square = [(kept & counted)[:, s * 32 : (s + 1) * 32] for s in range(6)]
        totals = sorted(int(half.sum()) for both in in_square for half in (both[:32], both[32:]) if half.any())
        assert sorted(one.histograms[0].sum(axis=1).tolist()) == totals


def test_drawn_nuclei_are_counted_and_graded() -> None:
    densities = np.zeros((2, 256, 256), np.float32)
    places = [(20 + 30 * n, 20 + 30 * m) for n in range(7) for m in range(7)]
    for number, (row, col) in enumerate(places):
        grade = number % 4
        disc = np.hypot(*(np.mgrid[:256, :256] - np.array([row, col])[:, None, None])) <= 5
        densities[0][disc], densities[1][disc] = (0.0, 0.26, 0.5, 0.8)[grade], 0.6
    densities += np.random.default_rng(0).normal(0, 0.002, densities.shape).astype(np.float32)
    densities = np.maximum(densities, 0)
    sums, _ = measured(densities, np.ones((256, 256), bool), Rules(0.2, 0.4), 32)
    counts = sums.sum(axis=(0, 1))
    wanted = [sum(n % 4 == grade for n in range(49)) for grade in (1, 2, 3)]
    assert counts[3] == pytest.approx(49, abs=2)
    assert counts[4:7] == pytest.approx(wanted, abs=2)
