"""How large one section is beside another, whatever their files say of the size of a pixel.

A copy of a slide keeps the pixel size of the original when it is resized, a photograph has none, and some scanners are
wrong by a few per cent. So the largest pieces are looked for in the other section at many scales, at 96 µm per pixel or
coarser, where a search takes a second or two: outlines and densities of whole pieces fit at one scale only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kin_cli.geometry import Mask
from kin_cli.registration.search import Searcher
from kin_cli.registration.sections import Labels, Section

_STEP = 2.0 ** (1 / 12)  # between scales, 6 %
_REACH = 12  # steps to either side: half to twice the size
_FINE_STEP = 1.02
_STEP_DEGREES = 10
_PIECES = 3  # the largest; a missing one does not decide
_UM, _PIECE_SIDE, _SLIDE_SIDE = (16.0, 96.0), 24, 160  # resolution, and sides in pixels that it is chosen for
_MOST_SIDE = 320  # of the other slide at any scale that is tried but 1
_ABSORBED = 1.1  # an affine map finds what is less
_FAR = 1.4  # ratio of the tissue's sizes from which scales around it are tried, too
_CLEARLY = 0.06  # correlation by which one scale is better than another


@dataclass(frozen=True)
class Fit:
    """A scale: the pixel size of the other slide times this; and the mean correlation of the pieces there."""

    factor: float
    score: float


def tissue_ratio(source: Section, target: Section) -> float:
    """Size of the source's tissue as a length, over that of the target's: the scale if both show the same."""
    areas = [float(part.tissue.sum()) * part.um[0] * part.um[1] for part in (source, target)]
    return math.sqrt(areas[0] / areas[1])


def likely_factors(source: Section, target: Section, labels: Labels) -> list[float]:
    """Factors to try on the pixel size of the target, the likeliest first; 1.0 alone if nothing speaks against it.

    ``labels`` are the pieces of the source (h, w).
    """
    found = fits(source, target, labels)
    best = max(found, key=lambda fit: fit.score)
    if max(best.factor, 1 / best.factor) <= _ABSORBED:
        return [1.0]
    stated = max((fit for fit in found if max(fit.factor, 1 / fit.factor) < _STEP), key=lambda fit: fit.score)
    return [best.factor, 1.0] if best.score - stated.score > _CLEARLY else [1.0, best.factor]


def best_factor(source: Section, target: Section, labels: Labels) -> float:
    """The likeliest of these factors, whether the pixel size that the target has now is a good one or not."""
    return max(fits(source, target, labels), key=lambda fit: fit.score).factor


def fits(source: Section, target: Section, labels: Labels) -> list[Fit]:
    """How well the largest pieces are found in the target at each scale; around the best one in finer steps."""
    areas = [int(np.count_nonzero(labels == number)) for number in range(1, min(_PIECES, int(labels.max())) + 1)]
    ratio = tissue_ratio(source, target)
    um = _resolution(source, target, ratio, areas[0] * source.um[0] * source.um[1])
    rough = source.resampled(um)
    pieces = [(rough.of_mask(labels == number, source), area) for number, area in enumerate(areas, start=1)]
    reduced = [(piece, float(area)) for piece, area in pieces if piece.any()]
    most = _MOST_SIDE * um / max(target.extent_um)
    target = target.at(um / 2 / max(ratio, 2.0))
    found = [_fit(rough, reduced, target, factor, None) for factor in _factors(ratio) if factor <= max(most, 1.0)]
    best, turns = max(found, key=lambda one: one[0].score)
    finer = [best.factor * _FINE_STEP**step for step in (-2, -1, 1, 2)]
    return [fit for fit, _ in found] + [_fit(rough, reduced, target, factor, turns)[0] for factor in finer]


def _resolution(source: Section, target: Section, ratio: float, area_um2: float) -> float:
    """µm per pixel: so that the largest piece has some 24 pixels on a side, and no slide far over 160.

    A target whose tissue is much larger is taken for a slide with a wrong pixel size.
    """
    longest = max(*source.extent_um, *(extent * min(1.0, 1.25 * ratio) for extent in target.extent_um))
    um = float(np.clip(math.sqrt(area_um2) / _PIECE_SIDE, *_UM))
    return max(um, longest / _SLIDE_SIDE, source.um[0])


def _factors(ratio: float) -> list[float]:
    steps = np.arange(-_REACH, _REACH + 1)
    factors = _STEP**steps
    if max(ratio, 1 / ratio) > _FAR:  # a resized copy, or a part of the tissue
        around = ratio * _STEP ** np.arange(-_REACH // 2, _REACH // 2 + 1)
        factors = np.concatenate([factors, around[(around < factors[0]) | (around > factors[-1])]])
    return [float(factor) for factor in factors]


def _fit(
    rough: Section, pieces: list[tuple[Mask, float]], target: Section, factor: float, turns: list[float] | None
) -> tuple[Fit, list[float]]:
    """The mean correlation of pieces at their best places, by area, and how they are turned there, in degrees."""
    searcher = Searcher(target.scaled(factor).resampled(rough.um[0]))
    total, degrees = 0.0, []
    for number, (piece, area) in enumerate(pieces):
        tried = range(0, 360, _STEP_DEGREES) if turns is None else [turns[number] + turn for turn in (-5, 0, 5)]
        place = searcher.places(rough, piece, tried, 1)[0]
        total += place.score * area
        degrees.append(math.degrees(place.angle))
    return Fit(factor, total / sum(area for _, area in pieces)), degrees
