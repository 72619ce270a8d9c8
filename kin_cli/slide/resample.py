"""Bicubic resampling in which a pixel depends on its place alone, not on what else is computed with it.

Pillow does the same to within its 8-bit intermediate and its 32-bit coordinates, which make a pixel differ by 2 grey
levels between one box and another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from kin_cli.slide.base import Pixels

_SUPPORT = 2.0
_SHARPNESS = -0.5  # the parameter a of Keys (1981), the value that reproduces straight lines and parabolas
Edges = npt.NDArray[np.float64]
Sums = npt.NDArray[np.float32]


# FROM slide.resample: Bicubic resampling in which a pixel depends on its place alone, not on what else is computed with it. Pillow does the same to within its 8-bit intermediate and its 32-bit coordinates, which make a pixel differ by 2 grey levels between one box and another.


@dataclass(frozen=True)
class ResampledAxis:
    """How pixels ``start`` to ``stop`` of an axis, brought from ``length`` to ``out_length``, are made.

    Attributes:
        first: the first pixel needed.
        weights: sparse (stop - start, pixels needed), rows of sum 1.
    """

    first: int
    weights: sparse.csr_array

    @property
    def needed(self) -> int:
        """Number of pixels needed, from ``first`` on."""
        return int(self.weights.shape[1])


def axis(start: int, stop: int, *, length: int, out_length: int) -> ResampledAxis:
    """Weights of the cubic convolution; where pixels are merged, it is widened to cover them all (antialiasing).

    What lies beyond the ends has no weight.
    """
    scale = length / out_length
    width = max(scale, 1.0)
    centres = (np.arange(start, stop) + 0.5) * scale - 0.5
    lowest = np.floor(centres - _SUPPORT * width).astype(np.intp)
    taps = lowest[:, None] + np.arange(int(np.ceil(2 * _SUPPORT * width)) + 2)
    weights = np.where((taps >= 0) & (taps < length), _cubic((taps - centres[:, None]) / width), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    taps = taps.clip(0, length - 1)
    first, end = int(taps.min()), int(taps.max()) + 1
    row_ends = np.arange(0, taps.size + 1, taps.shape[1])
    content = (weights.astype(np.float32).ravel(), (taps - first).ravel(), row_ends)
    return ResampledAxis(first, sparse.csr_array(content, shape=(stop - start, end - first)))


def resample(pixels: Pixels, *, rows: ResampledAxis, cols: ResampledAxis) -> Pixels:
    """Pixels (h, w, 3) for the rows and columns of the axes, from the (rows.needed, cols.needed, 3) that they need.

    Memory bound: 24 bytes per pixel given, and 24 per pixel made.
    """
    by_row = _along_first(pixels.astype(np.float32), rows)
    made = np.swapaxes(_along_first(np.ascontiguousarray(np.swapaxes(by_row, 0, 1)), cols), 0, 1)
    return np.rint(made).clip(0, 255).astype(np.uint8, order="C")


def _along_first(values: npt.NDArray[np.float32], along: ResampledAxis) -> npt.NDArray[np.float32]:
    flat: npt.NDArray[np.float32] = along.weights @ values.reshape(len(values), -1)
    return flat.reshape(-1, *values.shape[1:])


def _cubic(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    x, a = np.abs(distance), _SHARPNESS
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    weight: npt.NDArray[np.float64] = np.where(x < 1, near, np.where(x < _SUPPORT, far, 0.0))
    return weight


# FROM slide.area: Integrals of pixels over boxes with fractional edges.


def sums_between(values: npt.NDArray[Any], rows: Edges, cols: Edges) -> Sums:
    """Integrals of ``values`` (h, w, …) over all boxes between consecutive edges: (len(rows) - 1, len(cols) - 1, …).

    Pixel i fills [i, i + 1); edges ascend within [0, h] and [0, w].
    """
    by_row = _sums_along_first(values, rows)
    return np.swapaxes(_sums_along_first(np.swapaxes(by_row, 0, 1), cols), 0, 1)


def _sums_along_first(values: npt.NDArray[Any], edges: Edges) -> Sums:
    # a dense matrix of overlaps: BLAS makes it several times faster than cumulative sums
    starts = np.arange(len(values))
    overlaps = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    weights = np.maximum(overlaps, 0, out=overlaps).astype(np.float32)
    flat: Sums = weights @ values.reshape(len(values), math.prod(values.shape[1:])).astype(np.float32)
    return flat.reshape(len(flat), *values.shape[1:])
