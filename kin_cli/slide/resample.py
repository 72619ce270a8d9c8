"""Bicubic resampling and area sums whose values do not depend on the box in which they are computed.

``resample`` is the bicubic interpolation of Pillow, but without Pillow's 8-bit intermediate and 32-bit coordinates,
which can change a pixel by 2 grey levels from one box to another. ``sums_between`` integrates pixels over rectangles
with fractional edges, for overviews and tissue fractions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from kin_cli.geometry import AnyArray, Doubles, Floats, Pixels

_SUPPORT = 2.0  # half width of the cubic kernel, in pixels
_SHARPNESS = -0.5  # the parameter a of Keys (1981); this value reproduces straight lines and parabolas


@dataclass(frozen=True)
class ResampledAxis:
    """Weights that compute resampled pixels along one axis from source pixels.

    Attributes:
        first: the first source pixel needed.
        weights: sparse float32 (resampled pixels, source pixels from ``first`` on); each row sums to 1.
    """

    first: int
    weights: sparse.csr_array

    @property
    def needed(self) -> int:
        """Number of source pixels needed, from ``first`` on."""
        return int(self.weights.shape[1])


def axis(start: int, stop: int, *, length: int, out_length: int) -> ResampledAxis:
    """Weights for pixels ``start`` to ``stop`` of an axis that is resampled from ``length`` to ``out_length`` pixels.

    Cubic convolution (Keys 1981); for reduction the kernel is widened by the scale (antialiasing). Source positions
    beyond the ends of the axis get no weight.
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
    """Resample ``pixels`` (rows.needed, cols.needed, 3) to the rows and columns of the two axes, uint8 (h, w, 3).

    Memory bound: 24 bytes per source pixel, and 24 per resampled pixel.
    """
    by_row = _along_first(pixels.astype(np.float32), rows)
    resampled = np.swapaxes(_along_first(np.ascontiguousarray(np.swapaxes(by_row, 0, 1)), cols), 0, 1)
    return np.rint(resampled).clip(0, 255).astype(np.uint8, order="C")


def _along_first(values: Floats, along: ResampledAxis) -> Floats:
    flat: Floats = along.weights @ values.reshape(len(values), -1)
    return flat.reshape(-1, *values.shape[1:])


def _cubic(distance: Doubles) -> Doubles:
    x, a = np.abs(distance), _SHARPNESS
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    weight: Doubles = np.where(x < 1, near, np.where(x < _SUPPORT, far, 0.0))
    return weight


def sums_between(values: AnyArray, rows: Doubles, cols: Doubles) -> Floats:
    """Integrals of ``values`` (h, w, …) over the rectangles between consecutive row edges and column edges.

    Pixel i fills [i, i + 1); edges are ascending, within [0, h] and [0, w]. Returns float32
    (len(rows) - 1, len(cols) - 1, …).
    """
    by_row = _sums_along_first(values, rows)
    return np.swapaxes(_sums_along_first(np.swapaxes(by_row, 0, 1), cols), 0, 1)


def _sums_along_first(values: AnyArray, edges: Doubles) -> Floats:
    # a sparse matrix of overlaps: five times as fast as a dense one by BLAS, ten times as fast as cumulative sums
    first = np.floor(edges[:-1]).astype(np.intp)
    taps = first[:, None] + np.arange(math.ceil((edges[1:] - edges[:-1]).max(initial=0.0)) + 1)
    weights = np.maximum(np.minimum(edges[1:, None], taps + 1) - np.maximum(edges[:-1, None], taps), 0)
    ends = np.arange(0, taps.size + 1, taps.shape[1])
    content = (weights.astype(np.float32).ravel(), taps.clip(0, len(values) - 1).ravel(), ends)
    overlaps = sparse.csr_array(content, shape=(len(edges) - 1, len(values)))
    flat: Floats = overlaps @ values.reshape(len(values), math.prod(values.shape[1:])).astype(np.float32)
    return flat.reshape(len(flat), *values.shape[1:])
