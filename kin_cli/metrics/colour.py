"""Pixel arithmetic that metrics share: colour conversions from 8-bit sRGB, means over squares, Gaussian blur."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from kin_cli.geometry import Doubles, Pixels

# ITU-R BT.601, as in JPEG: rows Y, Cb, Cr; Cb and Cr without their offset of 128.
YCBCR: Doubles = np.array(
    [[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]], np.float64
)
# IEC 61966-2-1: linear sRGB to CIE XYZ, D65.
_XYZ: Doubles = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
# The white point is the row sums of the matrix, so that white is exactly L* 100, a* 0, b* 0.
_WHITE: Doubles = _XYZ.sum(axis=1)


_ENCODED = np.arange(256) / 255
LINEAR: Doubles = np.where(_ENCODED <= 0.04045, _ENCODED / 12.92, ((_ENCODED + 0.055) / 1.055) ** 2.4)
"""Linear intensity, 0 to 1, of each of the 256 sRGB values: (256,)."""


def lab(rgb: Pixels) -> Doubles:
    """Convert 8-bit sRGB (…, 3) to CIELAB (D65), (…, 3); L* 0 to 100."""
    return lab_of_linear(LINEAR.take(rgb))


def lab_of_linear(linear: Doubles) -> Doubles:
    """Convert linear sRGB (…, 3), 0 to 1, to CIELAB (D65), (…, 3); L* 0 to 100."""
    ratio = linear @ _XYZ.T / _WHITE
    root = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def rgb_of_lab(colours: Doubles) -> Pixels:
    """Convert CIELAB (D65) (…, 3) to 8-bit sRGB, rounded; colours that sRGB cannot show are clipped."""
    lightness = (colours[..., 0] + 16) / 116
    root = np.stack([lightness + colours[..., 1] / 500, lightness, lightness - colours[..., 2] / 200], axis=-1)
    ratio = np.where(root > 6 / 29, root**3, 3 * (6 / 29) ** 2 * (root - 4 / 29))
    linear = ((ratio * _WHITE) @ np.linalg.inv(_XYZ).T).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    rounded: Pixels = np.rint(255 * encoded).astype(np.uint8)
    return rounded


def luma(rgb: npt.NDArray[Any]) -> Doubles:
    """Luma Y' = 0.299 R' + 0.587 G' + 0.114 B' of (…, 3), in the unit of ``rgb``, not rounded: (…)."""
    weighted: Doubles = rgb @ YCBCR[0]
    return weighted


def ycbcr(rgb: Pixels) -> Doubles:
    """Convert 8-bit RGB (…, 3) to Y', Cb, Cr (…, 3) in 8-bit units, not rounded; Cb and Cr without their offset."""
    converted: Doubles = rgb @ YCBCR.T
    return converted


def pooled(values: npt.NDArray[Any], step: int) -> Doubles:
    """Average (h, w, …) over squares of ``step`` pixels: (h // step, w // step, …); ignores a remainder at the edge."""
    rows, cols = (side // step for side in values.shape[:2])
    squares = values[: rows * step, : cols * step].reshape(rows, step, cols, step, *values.shape[2:])
    means: Doubles = squares.mean(axis=(1, 3))
    return means


def gaussian(radius_px: int, sigma: float) -> Doubles:
    """Weights of a Gaussian at whole pixels from -radius to radius, (2 · radius + 1,); their sum is 1."""
    weights = np.exp(-0.5 * (np.arange(-radius_px, radius_px + 1) / sigma) ** 2)
    normalized: Doubles = weights / weights.sum()
    return normalized


def blurred(values: Doubles, weights: Doubles) -> Doubles:
    """Filter (h, w) with (2r + 1,) weights along both axes: (h - 2r, w - 2r), where all pixels needed exist."""
    radius = len(weights) // 2
    found: Doubles = ndimage.correlate1d(ndimage.correlate1d(values, weights, axis=0), weights, axis=1)
    return found[radius:-radius, radius:-radius]
