"""SSIM: structural similarity of a translation and its source, 1 is identical.

Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli, "Image quality assessment: from error visibility to structural
similarity", IEEE Transactions on Image Processing 13(4), 2004, on luma: Gaussian window, standard deviation 1.5, 11×11
pixels, biased covariance, K₁ = 0.01, K₂ = 0.03.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from kin_cli.metrics.colour import Floats, Pixels, luma

_RADIUS_PX = 5
_WEIGHTS = np.exp(-0.5 * (np.arange(-_RADIUS_PX, _RADIUS_PX + 1) / 1.5) ** 2)
_WEIGHTS /= _WEIGHTS.sum()
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


class Ssim:
    """Mean of the SSIM map over all tiles. Memory bound: two numbers."""

    halo_px = _RADIUS_PX

    def __init__(self) -> None:
        self._sum, self._pixels = 0.0, 0

    def measure(self, tile: Pixels, source: Pixels) -> tuple[float, int]:
        """Sum of the map over a tile, given like its source with a halo of 5 px; and the number of pixels."""
        x, y = luma(tile), luma(source)
        mean_x, mean_y = _blurred(x), _blurred(y)
        variance_x, variance_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
        covariance = _blurred(x * y) - mean_x * mean_y
        likeness = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
        likeness /= (mean_x**2 + mean_y**2 + _C1) * (variance_x + variance_y + _C2)
        return float(likeness.sum()), likeness.size

    def add(self, part: tuple[float, int]) -> None:
        """Take what ``measure`` returned in."""
        self._sum += part[0]
        self._pixels += part[1]

    def figures(self) -> dict[str, float]:
        """The mean; NaN where no tile was measured."""
        return {"ssim": self._sum / self._pixels if self._pixels else float("nan")}


def _blurred(values: Floats) -> Floats:
    blurred: Floats = ndimage.correlate1d(ndimage.correlate1d(values, _WEIGHTS, axis=0), _WEIGHTS, axis=1)
    return blurred[_RADIUS_PX:-_RADIUS_PX, _RADIUS_PX:-_RADIUS_PX]
