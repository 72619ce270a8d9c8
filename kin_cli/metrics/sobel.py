"""Mean Sobel gradient in YCbCr: sharpness of brightness (Y) and of colour (Cb, Cr).

``SobelGradient`` is the default: the magnitude of the gradient in Y, Cb and Cr. ``ClippedSobel`` is what the KIN
authors' code computes: OpenCV's 8-bit filter, which sets negative gradients to 0, then the mean of both directions;
about 0.3 times the magnitude.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from kin_cli.geometry import Doubles, Pixels
from kin_cli.metrics.colour import ycbcr


class SobelGradient:
    """Mean of √(Gx² + Gy²) in Y, Cb and Cr, in 8-bit units; 3×3 kernel with weights 1, 2, 1, not divided by 8.

    Memory bound: four numbers.
    """

    halo_px = 1
    channels: tuple[str, ...] = ("sobel_y", "sobel_cb", "sobel_cr")

    def __init__(self) -> None:
        self._sums = np.zeros(len(self.channels))
        self._pixels = 0

    def measure(self, tile: Pixels) -> tuple[Doubles, int]:
        """Sums (3,) over a tile given with a halo of one pixel, and its number of pixels."""
        # One plane at a time: given all three, SciPy would also smooth across them.
        magnitudes = [np.hypot(*_gradients(plane)) for plane in np.moveaxis(ycbcr(tile), -1, 0)]
        return np.array([magnitude.sum() for magnitude in magnitudes]), magnitudes[0].size

    def add(self, part: tuple[Doubles, int]) -> None:
        """Add a result of ``measure``."""
        self._sums += part[0]
        self._pixels += part[1]

    def values(self) -> dict[str, float]:
        """Means per pixel; NaN if no tile was measured."""
        if not self._pixels:
            return dict.fromkeys(self.channels, float("nan"))
        return dict(zip(self.channels, (self._sums / self._pixels).tolist(), strict=True))


class ClippedSobel(SobelGradient):
    """The KIN authors' gradient: ½ max(Gx, 0) + ½ max(Gy, 0) of 8-bit Y, each step rounded to 8 bits."""

    channels = ("sobel_authors",)

    def measure(self, tile: Pixels) -> tuple[Doubles, int]:  # noqa: D102
        # OpenCV's Y, in 14-bit fixed point.
        y = (tile.astype(np.int64) @ (4899, 9617, 1868) + 8192) >> 14
        down, right = (gradient.clip(0, 255) for gradient in _gradients(y))
        # rint rounds halves to even, like OpenCV.
        mean = np.rint((down + right) / 2)
        return np.array([mean.sum()]), mean.size


def _gradients(plane: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Gradients downwards and to the right of (h, w), each (h - 2, w - 2)."""
    return [ndimage.sobel(plane, axis=axis)[1:-1, 1:-1] for axis in (0, 1)]
