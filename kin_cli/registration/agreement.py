"""How well two registered sections agree: the displacement that is left, area by area.

The error of a registration is estimated from the slides themselves: around each of many places the density of the
source is looked for in the registered real slide, within 96 µm. Where structures are alike in both stains, the best
place lies as far from the middle as the registration is wrong. What is found at random is found anywhere, so that the
fraction of places near the middle also tells whether the two slides belong together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage, stats

from kin_cli.geometry import Doubles, Floats, Mask
from kin_cli.registration.sections import Section

REACH_UM = 96.0
_SIDE_UM = 256.0  # of the window that is looked for
_NEAR_UM = 40.0
_LEAST_TISSUE = 0.6
_MOST_PLACES = 400
_NARROW_UM, _WIDE_UM, _BLUR_REACH = 6.0, 60.0, 4.0  # standard deviations, and where the blur ends, in these
_SIGNIFICANT = 1e-3
_CERTAIN = 1e-4  # windows overlap, so that they are fewer than they seem: another tissue reached 1.4e-3
_LEAST_EXCESS = 0.05  # of the fraction of places near the middle, over chance


@dataclass(frozen=True, eq=False)
class Agreement:
    """What is left between two registered sections.

    Attributes:
        middles: centres of the windows, (n, 2) µm in the source.
        shifts: what would make each agree better, (n, 2) µm in the source; NaN where nothing is alike.
        likeness: correlation at the best shift, (n,).
    """

    middles: Doubles
    shifts: Doubles
    likeness: Doubles

    def of(self, chosen: Mask) -> Agreement:
        """The agreement of some of the windows."""
        return Agreement(self.middles[chosen], self.shifts[chosen], self.likeness[chosen])

    @property
    def near(self) -> float:
        """Fraction of the windows whose best place is within 40 µm of the middle; chance is 0.14."""
        return float((np.hypot(*self.shifts.T) <= _NEAR_UM).mean()) if len(self.shifts) else 0.0

    @property
    def p(self) -> float:
        """Probability of so many windows near the middle if their best places were anywhere (binomial)."""
        if not len(self.shifts):
            return 1.0
        count = int((np.hypot(*self.shifts.T) <= _NEAR_UM).sum())
        return float(stats.binom.sf(count - 1, len(self.shifts), _chance()))

    def below(self, rate: float) -> bool:
        """Whether clearly fewer windows are near the middle than if that happened at this rate."""
        count = int((np.hypot(*self.shifts.T) <= _NEAR_UM).sum())
        return bool(stats.binom.cdf(count, len(self.shifts), rate) < _SIGNIFICANT)

    @property
    def believable(self) -> bool:
        """Whether the two sections belong together: more windows near the middle than by chance."""
        return self.p < _SIGNIFICANT and self.near > _chance() + _LEAST_EXCESS

    @property
    def certain(self) -> bool:
        """Whether the windows of all pieces show together that the slides are sections of one block."""
        return self.p < _CERTAIN and self.believable

    def error(self) -> dict[str, float] | None:
        """Median and 90th percentile of what is left, in µm, and the number of windows; None of fewer than 8.

        Of windows whose best place is near the middle: the others are no measure of error, since nothing like them was
        found. Sections that differ as much as their neighbours in the block do raise the estimate.
        """
        distance = np.hypot(*self.shifts.T)
        distance = distance[distance <= _NEAR_UM]
        if len(distance) < 8:
            return None
        median, high = np.percentile(distance, [50, 90])
        return {"median": round(float(median), 1), "p90": round(float(high), 1), "windows": len(distance)}


def _chance() -> float:
    """Fraction of the places looked at that are near the middle."""
    return float(np.pi * _NEAR_UM**2 / (2 * REACH_UM) ** 2)


def agreement(source: Section, moved: Floats, known: Mask) -> Agreement:
    """Compare a section with the density of the real one that was registered to it, (h, w), where it is ``known``."""
    um = source.um[0]
    half, reach = max(4, round(_SIDE_UM / um / 2)), max(2, round(REACH_UM / um))
    height, width = source.density.shape
    rows, cols = (np.arange(half + reach, n - half - reach, half) for n in (height, width))
    places = []
    for row in rows:  # one row of windows after the other: a large section has 9 million pixels
        strip = np.s_[row - half : row + half]
        sums = np.pad((source.tissue[strip] & known[strip]).sum(axis=0), (1, 0)).cumsum()
        enough = sums[cols + half] - sums[cols - half] >= _LEAST_TISSUE * (2 * half) ** 2
        places += [(row, col) for col in cols[enough]]
    if len(places) > _MOST_PLACES:
        drawn = np.random.default_rng(0).choice(len(places), _MOST_PLACES, replace=False)
        places = [places[number] for number in np.sort(drawn)]
    found = []
    for row, col in places:
        one, other = (_detail_around(density, row, col, half + reach, um) for density in (source.density, moved))
        found.append(_best_shift(one, other, half, reach))
    middles = np.array([(col * source.um[0], row * source.um[1]) for row, col in places]).reshape(-1, 2)
    shifts = np.array([shift for shift, _ in found]).reshape(-1, 2) * source.um
    return Agreement(middles, shifts, np.array([likeness for _, likeness in found]))


def _detail_around(density: Floats, row: int, col: int, wide: int, um: float) -> Floats:
    """The square of ``wide`` pixels around a place without what is wider than some nuclei and glands.

    So outlines do not decide.
    """
    spare = math.ceil(_BLUR_REACH * _WIDE_UM / um)
    top, left = max(0, row - wide - spare), max(0, col - wide - spare)
    part = density[top : row + wide + spare, left : col + wide + spare]
    smooth = ndimage.gaussian_filter(part, _NARROW_UM / um)
    smooth -= ndimage.gaussian_filter(part, _WIDE_UM / um)
    row, col = row - top, col - left
    found: Floats = smooth[row - wide : row + wide, col - wide : col + wide]
    return found


def _best_shift(one: Floats, around: Floats, half: int, reach: int) -> tuple[Doubles, float]:
    """The shift (x, y) in pixels at which the middle of ``one`` is most like ``around``, and the correlation there."""
    wide = half + reach
    template = one[reach:-reach, reach:-reach]
    template = template - template.mean()
    shape = [fft.next_fast_len(2 * wide, real=True)] * 2
    shared = fft.irfft2(fft.rfft2(around, shape) * fft.rfft2(template, shape).conj(), shape)
    total, squares = (_window_sums(values, 2 * half) for values in (around, around**2))
    shared = shared[: 2 * reach + 1, : 2 * reach + 1]
    spread = np.sqrt(np.maximum(squares - total**2 / (2 * half) ** 2, 1e-9) * max(float((template**2).sum()), 1e-9))
    scores = shared / spread
    best = np.unravel_index(int(np.abs(scores).argmax()), scores.shape)
    y, x = (float(n) for n in best)
    return np.array([x - reach + _peak(scores, best, 1), y - reach + _peak(scores, best, 0)]), float(scores[best])


def _window_sums(values: Floats, side: int) -> Doubles:
    sums = np.pad(values.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    found: Doubles = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    return found


def _peak(scores: Floats, best: tuple[np.intp, ...], axis: int) -> float:
    """Where, between -0.5 and 0.5, a parabola through a peak and its neighbours along an axis is highest."""
    at = int(best[axis])
    if not 0 < at < scores.shape[axis] - 1:
        return 0.0
    line = np.abs(scores[:, best[1]] if axis == 0 else scores[best[0]])
    before, here, after = (float(line[at + step]) for step in (-1, 0, 1))
    bow = before - 2 * here + after
    return 0.0 if bow >= 0 else float(np.clip((before - after) / (2 * bow), -0.5, 0.5))
