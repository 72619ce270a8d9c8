"""Integrals of pixels over boxes with fractional edges."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Edges = npt.NDArray[np.float64]
Sums = npt.NDArray[np.float32]


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
