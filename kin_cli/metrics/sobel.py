"""Mean Sobel gradient in YCbCr: how sharp the picture is, and how much edge there is in its colour.

``SobelGradient`` is the default: the magnitude of the gradient in Y, and in Cb and Cr. ``ClippedSobel`` is what the KIN
authors' code computes: OpenCV's filter at a depth of 8 bits, which sets negative slopes to 0, then half of both
directions; about 0.3 times the magnitude.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from kin_cli.metrics.colour import Floats, Pixels, ycbcr


class SobelGradient:
    """Mean of √(Gx² + Gy²) in Y, Cb and Cr; 3×3 kernel with weights 1, 2, 1, in 8-bit units, not divided by 8.

    Memory bound: four numbers.
    """

    halo_px = 1
    channels: tuple[str, ...] = ("sobel_y", "sobel_cb", "sobel_cr")

    def __init__(self) -> None:
        self._sums = np.zeros(len(self.channels))
        self._pixels = 0

    def measure(self, tile: Pixels) -> tuple[Floats, int]:
        """Sums over a tile (h, w, 3), given with its halo of one pixel; and the number of pixels."""
        # one plane after the other: given all three, SciPy smooths across them too
        magnitudes = [np.hypot(*_gradients(plane)) for plane in np.moveaxis(ycbcr(tile), -1, 0)]
        return np.array([magnitude.sum() for magnitude in magnitudes]), magnitudes[0].size

    def add(self, part: tuple[Floats, int]) -> None:
        """Take what ``measure`` returned in."""
        self._sums += part[0]
        self._pixels += part[1]

    def figures(self) -> dict[str, float]:
        """Means per pixel; NaN where no tile was measured."""
        if not self._pixels:
            return dict.fromkeys(self.channels, float("nan"))
        return dict(zip(self.channels, (self._sums / self._pixels).tolist(), strict=True))


class ClippedSobel(SobelGradient):
    """The KIN authors' gradient: ½ max(Gx, 0) + ½ max(Gy, 0) of the 8-bit Y, every step rounded to 8 bits."""

    channels = ("sobel_authors",)

    def measure(self, tile: Pixels) -> tuple[Floats, int]:  # noqa: D102
        # OpenCV's Y: 14-bit fixed point
        y = (tile.astype(np.int64) @ (4899, 9617, 1868) + 8192) >> 14
        down, right = (gradient.clip(0, 255) for gradient in _gradients(y))
        # rint, like OpenCV's rounding, takes halves to the even neighbour
        mean = np.rint((down + right) / 2)
        return np.array([mean.sum()]), mean.size


def _gradients(plane: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Gradients down and to the right of (h, w), (h - 2, w - 2) each."""
    return [ndimage.sobel(plane, axis=axis)[1:-1, 1:-1] for axis in (0, 1)]
