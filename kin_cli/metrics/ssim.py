"""SSIM: structural similarity of a translation and its source; 1 means identical.

Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli, "Image quality assessment: from error visibility to structural
similarity", IEEE Transactions on Image Processing 13(4), 2004. On luma, with a Gaussian of 11×11 pixels and a standard
deviation of 1.5, biased covariance, K₁ = 0.01, K₂ = 0.03.
"""

from __future__ import annotations

from kin_cli.geometry import Pixels
from kin_cli.metrics.colour import blurred, gaussian, luma

_RADIUS_PX = 5
_WEIGHTS = gaussian(_RADIUS_PX, 1.5)
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


class Ssim:
    """Mean of the SSIM map over all tiles. Memory bound: two numbers."""

    halo_px = _RADIUS_PX

    def __init__(self) -> None:
        self._sum, self._pixels = 0.0, 0

    def measure(self, tile: Pixels, source: Pixels) -> tuple[float, int]:
        """Sum of the SSIM map over a tile, and its number of pixels; tile and source are given with a halo of 5 px."""
        x, y = luma(tile), luma(source)
        mean_x, mean_y, xx, yy, xy = (blurred(values, _WEIGHTS) for values in (x, y, x * x, y * y, x * y))
        variance_x, variance_y, covariance = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
        similarity = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
        similarity /= (mean_x**2 + mean_y**2 + _C1) * (variance_x + variance_y + _C2)
        return float(similarity.sum()), similarity.size

    def add(self, part: tuple[float, int]) -> None:
        """Add a result of ``measure``."""
        self._sum += part[0]
        self._pixels += part[1]

    def values(self) -> dict[str, float]:
        """Mean over all pixels; NaN if no tile was measured."""
        return {"ssim": self._sum / self._pixels if self._pixels else float("nan")}
