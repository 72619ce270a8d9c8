"""FSIM: similarity of phase congruency and gradients, with colour (FSIMc); 1 is identical.

L. Zhang, L. Zhang, X. Mou, D. Zhang, "FSIM: a feature similarity index for image quality assessment", IEEE Transactions
on Image Processing 20(8), 2011. A picture is first averaged over squares of round(shorter side / 256) pixels: on a
whole slide FSIM judges a thumbnail, and cannot see seams. The mean over tiles judges them at full resolution.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from kin_cli.metrics.colour import Floats, Pixels
from kin_cli.metrics.phase_congruency import phase_congruency
from kin_cli.metrics.pooling import pooled

_SIDE_PX = 256
_CONGRUENCY, _GRADIENT, _CHROMA = 0.85, 160.0, 200.0
_CHROMA_POWER = 0.03
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_SCHARR = np.array([[3.0, 0.0, -3.0], [10.0, 0.0, -10.0], [3.0, 0.0, -3.0]]) / 16


class Fsim:
    """Mean of FSIMc over all tiles. Memory bound: two numbers, and 20 MB for the filters."""

    halo_px = 0

    def __init__(self) -> None:
        self._sum, self._tiles = 0.0, 0

    def measure(self, tile: Pixels, source: Pixels) -> float:
        """FSIMc of a tile and its source; NaN where neither has any feature."""
        return fsim(tile, source)

    def add(self, value: float) -> None:
        """Take what ``measure`` returned in."""
        if not math.isnan(value):
            self._sum += value
            self._tiles += 1

    def figures(self) -> dict[str, float]:
        """The mean; NaN where no tile was measured."""
        return {"fsim": self._sum / self._tiles if self._tiles else float("nan")}


def fsim(one: Pixels, other: Pixels) -> float:
    """FSIMc of two 8-bit RGB pictures of one size; NaN where neither has any feature."""
    step = pooling_px(one.shape[0], one.shape[1])
    return fsim_of_pooled(pooled(one, step), pooled(other, step))


def pooling_px(height: int, width: int) -> int:
    """Side of the squares that a picture is averaged over before FSIM looks at it."""
    return max(1, round(min(height, width) / _SIDE_PX))


def fsim_of_pooled(one: Floats, other: Floats) -> float:
    """FSIMc of two averaged pictures (h, w, 3), 0 to 255; NaN where neither has any feature."""
    first, second = one @ _YIQ.T, other @ _YIQ.T
    congruencies = [phase_congruency(picture[..., 0]) for picture in (first, second)]
    likeness = _alike(congruencies[0], congruencies[1], _CONGRUENCY)
    likeness *= _alike(_slope(first[..., 0]), _slope(second[..., 0]), _GRADIENT)
    chroma = _alike(first[..., 1:], second[..., 1:], _CHROMA).prod(axis=-1)
    # of a complex power the published code keeps the real part
    likeness *= np.power(chroma.astype(np.complex128), _CHROMA_POWER).real
    weight = np.maximum(*congruencies)
    total = float(weight.sum())
    return float((likeness * weight).sum()) / total if total > 0 else float("nan")


def _slope(values: Floats) -> Floats:
    gradients = [ndimage.correlate(values, kernel, mode="constant") for kernel in (_SCHARR, _SCHARR.T)]
    slope: Floats = np.hypot(*gradients)
    return slope


def _alike(one: Floats, other: Floats, constant: float) -> Floats:
    return (2 * one * other + constant) / (one**2 + other**2 + constant)
