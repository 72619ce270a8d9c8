"""Other witnesses of where a translation can be believed, on a sample of patches, and whether the score agrees.

The shifted grid asks how much the place of a patch decides; several generators, how much the training did; the way back
of a CycleGAN, what was lost. None of them asks for the real stain. ``abstention`` does: it needs an accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats as statistics

from kin_cli.errors import UsageError
from kin_cli.geometry import Box, Doubles
from kin_cli.models.reference import GROUPS
from kin_cli.passes.alone import alone, differences
from kin_cli.passes.engine import Engine
from kin_cli.progress import Progress
from kin_cli.trust.sample import Known, Sample

_BAND = (0.025, 0.975)
_RUNS = 400  # random orders that make the band of chance


@dataclass(frozen=True, eq=False)
class Witnesses:
    """Percentiles and disagreements of a sample of patches.

    ``boxes`` are in pixels of level 0; ``percentile`` (n,), ``group`` names which layers say so; ``disagreement`` holds
    (n,) mean colour differences in ΔE by witness: "shift", "generators", "way back".
    """

    boxes: tuple[tuple[float, float, float, float], ...]
    percentile: Doubles
    group: tuple[str, ...]
    disagreement: dict[str, Doubles]

    def agreement(self) -> dict[str, dict[str, float | None]]:
        """For each witness its mean, and Spearman's rank correlation with the score (positive: they agree)."""
        return {name: _agreement(values, -np.log(self.percentile)) for name, values in self.disagreement.items()}

    def rows(self) -> list[dict[str, Any]]:
        """One row for each patch, for CSV and JSON."""
        return [
            {
                "x": x,
                "y": y,
                "width": width,
                "height": height,
                "percentile": float(f"{self.percentile[i]:.4g}"),
                "layers": self.group[i],
                **{name.replace(" ", "_"): round(float(v[i]), 3) for name, v in self.disagreement.items()},
            }
            for i, (x, y, width, height) in enumerate(self.boxes)
        ]


def witnesses(
    sample: Sample, known: Known, progress: Progress, *, others: Sequence[Engine] = (), back: Engine | None = None
) -> Witnesses:
    """Translate each patch of a sample, patch by patch (kernel 1), and once more for every witness.

    The shift is half a patch in both directions; the quarter that both patches show is compared. ``others`` are
    generators of the same stains, ``back`` one of the opposite direction. Memory bound: a few patches.

    Raises ``UsageError`` if the patch size does not suit a generator.
    """
    for engine in (known.engine, *others, *([] if back is None else [back])):
        if sample.boxes[0].width % (2 * engine.stride):
            raise UsageError(f"patch size {sample.boxes[0].width} is not a multiple of {2 * engine.stride}")
    found: dict[str, list[float]] = {"shift": []}
    measured = []
    with progress.stage("witnesses", len(sample.boxes), "patches") as advance:
        for box in sample.boxes:
            pixels = sample.view.read(box)
            stats, translated = alone(known.engine, pixels)
            measured.append(stats)
            half = box.width // 2
            _, shifted = alone(known.engine, sample.view.read(box.shifted(half, half)))
            found["shift"].append(float(differences(translated[half:, half:], shifted[:-half, :-half]).mean()))
            if others:
                made = [translated, *(alone(engine, pixels)[1] for engine in others)]
                pairs = [float(differences(a, b).mean()) for i, a in enumerate(made) for b in made[:i]]
                found.setdefault("generators", []).append(float(np.mean(pairs)))
            if back is not None:
                found.setdefault("way back", []).append(float(differences(alone(back, translated)[1], pixels).mean()))
            advance(1)
    scores = known.reference.scores(np.stack(measured))
    return Witnesses(
        tuple(_level0(sample, box) for box in sample.boxes),
        scores.percentile,
        tuple(GROUPS[int(group)] for group in scores.group),
        {name: np.array(values) for name, values in found.items()},
    )


def _level0(sample: Sample, box: Box) -> tuple[float, float, float, float]:
    x, y = sample.view.out_to_l0(float(box.x), float(box.y))
    right, bottom = sample.view.out_to_l0(float(box.right), float(box.bottom))
    return round(x, 1), round(y, 1), round(right - x, 1), round(bottom - y, 1)


def _agreement(values: Doubles, score: Doubles) -> dict[str, float | None]:
    if len(values) < 3 or np.ptp(values) == 0 or np.ptp(score) == 0:
        return {"mean": round(float(values.mean()), 3), "correlation": None, "p_value": None}
    result = statistics.spearmanr(values, score)
    return {
        "mean": round(float(values.mean()), 3),
        "correlation": round(float(result.statistic), 3),
        "p_value": float(f"{result.pvalue:.2g}"),
    }


@dataclass(frozen=True, eq=False)
class AbstentionCurve:
    """Accuracy of what is kept against the fraction that is flagged, the least believable first.

    ``flagged`` (n,) are fractions from 0 up to below 1; ``kept`` (n,) mean accuracies of the rest; ``chance`` their
    mean if what is flagged is drawn at random, ``low`` and ``high`` (n,) the band that holds 95 % of such draws.
    ``gain`` is the mean of ``kept`` - ``chance``: what the score is worth, 0 for none; ``p_value`` how often chance
    does as well.
    """

    flagged: Doubles
    kept: Doubles
    chance: float
    low: Doubles
    high: Doubles
    gain: float
    p_value: float

    def as_dict(self) -> dict[str, Any]:
        """The curve as a JSON object."""
        return {name: v.round(5).tolist() if isinstance(v, np.ndarray) else v for name, v in vars(self).items()}


def abstention(
    accuracy: Doubles, percentile: Doubles, *, weights: Doubles | None = None, seed: int = 0
) -> AbstentionCurve:
    """The abstention curve of areas with an ``accuracy`` (n,), larger better, and a trust ``percentile`` (n,).

    ``weights`` (n,) are sizes of the areas, by default equal. Areas whose accuracy or percentile is NaN are left out.

    Raises ``ValueError`` if fewer than two areas are left.
    """
    weight = np.ones(len(accuracy)) if weights is None else np.asarray(weights, np.float64)
    valid = np.isfinite(accuracy) & np.isfinite(percentile) & (weight > 0)
    values, weight = np.asarray(accuracy, np.float64)[valid], weight[valid]
    if len(values) < 2:
        raise ValueError("an abstention curve needs at least two areas")
    order = np.argsort(np.asarray(percentile)[valid], kind="stable")
    rng = np.random.default_rng(seed)
    flagged, kept = _curve(values[order], weight[order])
    draws = np.stack([_interpolated(flagged, *_curve(values[o], weight[o])) for o in _orders(rng, len(values))])
    chance = float(np.average(values, weights=weight))
    low, high = np.quantile(draws, _BAND, axis=0)
    gain = float((kept - chance).mean())
    as_well = int(((draws - chance).mean(axis=1) >= gain).sum())
    return AbstentionCurve(flagged, kept, chance, low, high, round(gain, 6), (as_well + 1) / (_RUNS + 1))


def _orders(rng: np.random.Generator, count: int) -> list[Any]:
    return [rng.permutation(count) for _ in range(_RUNS)]


def _curve(values: Doubles, weight: Doubles) -> tuple[Doubles, Doubles]:
    """Fraction flagged before each area in this order, and the mean of that area and all after it."""
    total = weight.sum()
    after = np.cumsum((values * weight)[::-1])[::-1]
    left = np.cumsum(weight[::-1])[::-1]
    return 1 - left / total, after / left


def _interpolated(at: Doubles, flagged: Doubles, kept: Doubles) -> Doubles:
    return np.interp(at, flagged, kept)
