"""The colour spaces that the metrics measure in, all from 8-bit sRGB."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]

# ITU-R BT.601, as JPEG uses it: rows Y, Cb, Cr; Cb and Cr without their offset of 128.
YCBCR: Floats = np.array(
    [[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]], np.float64
)
# IEC 61966-2-1: linear sRGB to CIE XYZ, D65.
_XYZ: Floats = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
# of the matrix itself, so that white is exactly L* 100, a* 0, b* 0
_WHITE: Floats = _XYZ.sum(axis=1)


# FROM metrics.colour: The colour spaces that the metrics measure in, all from 8-bit sRGB.


def _decoded() -> Floats:
    encoded = np.arange(256) / 255
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


LINEAR: Floats = _decoded()
"""Linear intensity, 0 to 1, of every 8-bit sRGB value."""


def lab_of_linear(linear: Floats) -> Floats:
    """CIELAB (D65) of linear sRGB, shape (…, 3); L* 0 to 100."""
    ratio = linear @ _XYZ.T / _WHITE
    root = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def luma(rgb: npt.NDArray[Any]) -> Floats:
    """Y' = 0.299 R' + 0.587 G' + 0.114 B' over the last axis, in the unit of ``rgb``, not rounded."""
    weighted: Floats = rgb @ YCBCR[0]
    return weighted


def ycbcr(rgb: Pixels) -> Floats:
    """Y' and, without their offset of 128, Cb and Cr of 8-bit RGB, (…, 3) each, in 8-bit units and not rounded."""
    converted: Floats = rgb @ YCBCR.T
    return converted


def lab(rgb: Pixels) -> Floats:
    """CIELAB (D65) of 8-bit sRGB, (…, 3) each."""
    return lab_of_linear(LINEAR.take(rgb))


# FROM metrics.pooling: Pictures averaged over squares.


def pooled(values: NDArray[Any], step: int) -> Floats:
    """Means (h // step, w // step, …) over squares of (h, w, …); what is left at the right and bottom is ignored."""
    rows, cols = (side // step for side in values.shape[:2])
    squares = values[: rows * step, : cols * step].reshape(rows, step, cols, step, *values.shape[2:])
    means: Floats = squares.mean(axis=(1, 3))
    return means
