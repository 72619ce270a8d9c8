"""Figures that compare two slides area by area, each with a bootstrap interval, and what chance reaches.

An area is *positive* if its mean density exceeds the threshold that parts the areas of the real slide in two (Otsu),
the same threshold for every slide. Intervals are of the bootstrap: squares of 256 µm are drawn with replacement, since
neighbouring areas are alike. Chance is the translation with its areas shuffled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage, stats

from kin_cli.geometry import Doubles, Indices, Mask
from kin_cli.validation.areas import BINS, Areas
from kin_cli.validation.stains import otsu

_DRAWS, _SHUFFLES = 200, 20
_MOST_DRAWN = 4_000_000  # areas in all draws of a bootstrap together
_FEWEST = 8
_ROC_POINTS = 200
_HAUSDORFF_PERCENTILE = 95.0
REAL = 1

BETTER = {
    "dice": "1",
    "iou": "1",
    "sensitivity": "1",
    "specificity": "1",
    "auc": "1",
    "hausdorff95_um": "0",
    "pearson": "1",
    "spearman": "1",
    "density_ratio": "1",
    "integrated_ratio": "1",
    "kl": "0",
    "stained": "as real",
    "stained_real": "",
    "nuclei_ratio": "1",
    "nuclei_pearson": "1",
    "labelling_index": "as real",
    "labelling_index_real": "",
    "h_score": "as real",
    "h_score_real": "",
    "labelling_bias": "0",
    "labelling_limits": "0",
}
"""Every figure and its best value."""


@dataclass(frozen=True)
class Score:
    """A figure at one size of areas: its value, 95 % interval, and what chance and the recoloured source reach.

    ``finer`` tells that the areas are finer than the registration's own error, so that the figure means little.
    """

    um: int
    name: str
    value: float | None
    interval: tuple[float, float] | None
    chance: float | None
    recoloured: float | None
    recoloured_interval: tuple[float, float] | None
    areas: int
    finer: bool


def scores(areas: Areas, *, finer: bool, seed: int = 0) -> list[Score]:
    """All figures of areas of one size."""
    count = len(areas.pixels)
    if count < _FEWEST:
        return [Score(areas.um, name, None, None, None, None, None, count, finer) for name in BETTER]
    threshold = otsu(areas.density(REAL).astype(np.float32))
    rng = np.random.default_rng(seed)
    own = _with_interval(areas, 0, threshold, rng)
    shuffled = []
    for _ in range(_SHUFFLES):
        order = rng.permutation(count)
        shuffled.append(_figures(areas, 0, threshold, _far(areas, 0, threshold, order), order=order))
    other = _with_interval(areas, 2, threshold, rng) if len(areas.sums) > 2 else None
    found = []
    for name in BETTER:
        value, interval = own[name]
        chance = [values[name] for values in shuffled if math.isfinite(values[name])]
        baseline = (None, None) if other is None else other[name]
        found.append(
            Score(areas.um, name, value, interval, float(np.mean(chance)) if chance else None, *baseline, count, finer)
        )
    return found


def verdict(found: list[Score] | tuple[Score, ...], um: int = 128) -> str:
    """Whether the density of the stain is where it should be, in one sentence: against chance and recolouring."""
    score = next((one for one in found if one.um == um and one.name == "pearson"), None)
    if score is None or score.value is None or score.interval is None:
        return f"too few areas of {um} µm to judge"
    low, high = score.interval
    said = f"in areas of {um} µm the stain's density follows the real one with r = {score.value:.2f}"
    said += f" ({low:.2f} to {high:.2f})"
    if low <= (score.chance or 0.0):
        return f"{said}, which chance reaches, too"
    if score.recoloured is None:
        return f"{said}, more than by chance; --source tells what recolouring alone reaches"
    than = "more than" if low > score.recoloured else "less than" if high < score.recoloured else "no more than"
    return f"{said}: {than} the recoloured source ({score.recoloured:.2f})"


Interval = tuple[float, float] | None


def _with_interval(
    areas: Areas, slide: int, threshold: float, rng: np.random.Generator
) -> dict[str, tuple[float | None, Interval]]:
    """Every figure of a slide against the real one, with its interval."""
    clusters = areas.clusters
    order = np.argsort(clusters, kind="stable")
    starts = np.searchsorted(clusters[order], np.arange(int(clusters.max()) + 2))
    far = _far(areas, slide, threshold)
    values = _figures(areas, slide, threshold, far)
    number = len(starts) - 1
    draws = min(_DRAWS, max(20, _MOST_DRAWN // len(order)))
    drawn: list[dict[str, float]] = []
    if number >= _FEWEST:
        for _ in range(draws):
            chosen = rng.integers(0, number, number)
            picked = np.concatenate([order[starts[c] : starts[c + 1]] for c in chosen])
            drawn.append(_figures(areas, slide, threshold, far, picked=picked))
    found: dict[str, tuple[float | None, Interval]] = {}
    for name, value in values.items():
        sample = np.array([one[name] for one in drawn if math.isfinite(one[name])])
        enough = len(sample) >= draws / 2 and math.isfinite(value)
        interval = tuple(np.percentile(sample, [2.5, 97.5]).tolist()) if enough and len(sample) else None
        found[name] = (value if math.isfinite(value) else None, interval)
    return found


def _figures(
    areas: Areas,
    slide: int,
    threshold: float,
    far: Doubles,
    *,
    picked: Indices | None = None,
    order: Indices | None = None,
) -> dict[str, float]:
    """All figures of the areas ``picked`` (None: all); ``order`` shuffles those of the slide against the real ones.

    ``far``: see ``_far``.
    """
    count = len(areas.pixels)
    theirs = np.arange(count) if picked is None else picked
    ours = theirs if order is None else order[theirs]
    density = areas.sums[slide][ours, 0] / areas.pixels[ours], areas.sums[REAL][theirs, 0] / areas.pixels[theirs]
    one, other = density[0] > threshold, density[1] > threshold
    sums = [areas.sums[n][at].astype(np.float64) for n, at in ((slide, ours), (REAL, theirs))]
    found = mask_figures(one, other) | {"auc": roc_area(density[0], other)}
    found["hausdorff95_um"] = _hausdorff(far[:, theirs], one, other)
    found |= {"pearson": _correlation(*density), "spearman": _correlation(*map(stats.rankdata, density))}
    totals = [values.sum(axis=0) for values in sums]
    pixels = areas.pixels[ours].sum(), areas.pixels[theirs].sum()
    found["density_ratio"] = _ratio(totals[0][0] / pixels[0], totals[1][0] / pixels[1])
    found["integrated_ratio"] = _ratio(totals[0][2], totals[1][2])
    drawn = _times_drawn(areas, picked)
    found["kl"] = divergence(drawn @ areas.histograms[REAL], drawn @ areas.histograms[slide])
    found |= {"stained": totals[0][1] / pixels[0], "stained_real": totals[1][1] / pixels[1]}
    found["nuclei_ratio"] = _ratio(totals[0][3], totals[1][3])
    found["nuclei_pearson"] = _correlation(sums[0][:, 3], sums[1][:, 3])
    for suffix, total in (("", totals[0]), ("_real", totals[1])):
        found["labelling_index" + suffix] = _ratio(total[4:7].sum(), total[3])
        found["h_score" + suffix] = 100 * _ratio(total[4] + 2 * total[5] + 3 * total[6], total[3])
    found["labelling_bias"], found["labelling_limits"] = bland_altman(*(_labelled(values) for values in sums))
    return {name: float(found[name]) for name in BETTER}


def _times_drawn(areas: Areas, picked: Indices | None) -> Doubles:
    """How often each square of 256 µm stands in a draw of whole squares, (m,); once without a draw."""
    every = np.bincount(areas.clusters)
    if picked is None:
        return np.ones(len(every))
    found: Doubles = np.bincount(areas.clusters[picked], minlength=len(every)) / every
    return found


def mask_figures(one: Mask, other: Mask) -> dict[str, float]:
    """Dice, intersection over union, sensitivity and specificity of flags (n,), ``other`` being the truth."""
    both, either = float((one & other).sum()), float((one | other).sum())
    positive = float(other.sum())
    negative = len(other) - positive
    return {
        "dice": _ratio(2 * both, one.sum() + positive),
        "iou": _ratio(both, either),
        "sensitivity": _ratio(both, positive),
        "specificity": _ratio(float((~one & ~other).sum()), negative),
    }


def roc_area(values: Doubles, truth: Mask) -> float:
    """Area under the ROC curve with which values (n,) tell true areas from others (Mann–Whitney; ties count half)."""
    positive, negative = int(truth.sum()), int((~truth).sum())
    if not positive or not negative:
        return math.nan
    ranks = stats.rankdata(values)[truth].sum()
    return float((ranks - positive * (positive + 1) / 2) / (positive * negative))


@dataclass(frozen=True, eq=False)
class RocCurve:
    """How well densities of areas of one size tell positive areas from others, at every threshold of the density.

    ``slide`` is "translation" or "recoloured". The arrays (n,) begin at (0, 0), threshold ∞, and end at (1, 1).
    """

    um: int
    slide: str
    false_positive: Doubles
    true_positive: Doubles
    threshold: Doubles

    def as_dict(self) -> dict[str, Any]:
        """Return the points, ready for JSON; the threshold of the first is None."""
        rates = [values.round(5).tolist() for values in (self.false_positive, self.true_positive)]
        thresholds = [None, *self.threshold[1:].round(5).tolist()]
        names = ("false_positive", "true_positive", "threshold")
        return {"um": self.um, "slide": self.slide, **dict(zip(names, (*rates, thresholds), strict=True))}


def roc_curves(areas: Areas) -> list[RocCurve]:
    """The curves of the translation and, if there is one, of the recoloured source; none if all areas are alike."""
    if len(areas.pixels) < _FEWEST:
        return []
    theirs = areas.density(REAL)
    truth = theirs > otsu(theirs.astype(np.float32))
    if truth.all() or not truth.any():
        return []
    slides = {"translation": 0, "recoloured": 2}
    return [
        RocCurve(areas.um, name, *roc_points(areas.density(number), truth))
        for name, number in slides.items()
        if number < len(areas.sums)
    ]


def roc_points(values: Doubles, truth: Mask) -> tuple[Doubles, Doubles, Doubles]:
    """False and true positive rates, and the thresholds that they belong to (values from it upwards count), (n,).

    Of long curves 200 points, evenly along their length, are kept.
    """
    order = np.argsort(-values, kind="stable")
    sorted_values, hits = values[order], truth[order]
    last = np.flatnonzero(np.append(np.diff(sorted_values) != 0, True))  # equal values pass together
    true = np.append(0.0, hits.cumsum()[last] / max(1, int(truth.sum())))
    false = np.append(0.0, (~hits).cumsum()[last] / max(1, int((~truth).sum())))
    thresholds = np.append(np.inf, sorted_values[last])
    if len(true) > _ROC_POINTS:
        wanted = np.searchsorted(true + false, np.linspace(0, 2, _ROC_POINTS))
        kept = np.unique(np.append(0, np.minimum(wanted, len(true) - 1)))
        return false[kept], true[kept], thresholds[kept]
    return false, true, thresholds


def divergence(real: Doubles, ours: Doubles) -> float:
    """Kullback–Leibler divergence of two histograms of counts, from ``ours`` to the real one, in nats.

    Half a count is added to every bin, so that an empty one is no infinity.
    """
    truth, model = (real + 0.5) / (real.sum() + BINS / 2), (ours + 0.5) / (ours.sum() + BINS / 2)
    return float((truth * np.log(truth / model)).sum())


def bland_altman(ours: Doubles, theirs: Doubles) -> tuple[float, float]:
    """Mean difference and half the width of the 95 % limits of agreement (1.96 standard deviations), or NaN."""
    difference = (ours - theirs)[np.isfinite(ours) & np.isfinite(theirs)]
    if len(difference) < 2:
        return math.nan, math.nan
    return float(difference.mean()), float(1.96 * difference.std(ddof=1))


def _labelled(sums: Doubles) -> Doubles:
    """Labelling index of each area; NaN where there are no nuclei."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Doubles = sums[:, 4:7].sum(axis=1) / sums[:, 3]
    return found


def _far(areas: Areas, slide: int, threshold: float, order: Indices | None = None) -> Doubles:
    """Distance in µm of every area from the nearest positive one of the real slide, and of the slide: (2, n)."""
    one, other = (areas.density(number) > threshold for number in (slide, REAL))
    one = one if order is None else one[order]
    if not one.any() or not other.any():
        return np.full((2, len(one)), np.nan)
    return distances(areas.cells, one, other) * areas.um


def _hausdorff(far: Doubles, one: Mask, other: Mask) -> float:
    """The 95 % Hausdorff distance of positive areas, of which ``far`` holds the distances (2, n)."""
    ends = [far[side][flags] for side, flags in enumerate((one, other))]
    if not all(len(end) for end in ends) or np.isnan(far).any():
        return math.nan
    return float(max(np.percentile(end, _HAUSDORFF_PERCENTILE) for end in ends))


def distances(cells: Indices, one: Mask, other: Mask) -> Doubles:
    """Distance of every cell (n, 2) from the nearest that is set in ``other``, and in ``one``: (2, n), in cells."""
    origin = cells.min(axis=0)
    shape = tuple(cells.max(axis=0) - origin + 1)
    at = tuple((cells - origin).T)
    found = []
    for flags in (other, one):
        empty = np.ones(shape, np.bool_)
        empty[at] = ~flags
        found.append(ndimage.distance_transform_edt(empty)[at])
    return np.stack(found)


def _correlation(one: Doubles, other: Doubles) -> float:
    if len(one) < 3 or one.std() == 0 or other.std() == 0:
        return math.nan
    return float(np.corrcoef(one, other)[0, 1])


def _ratio(one: float, other: float) -> float:
    return float(one / other) if other > 0 else math.nan
