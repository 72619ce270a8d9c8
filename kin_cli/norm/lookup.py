"""Interpolation of the table at the pixels of a window: nearest or bilinear, in the coordinates of the whole image.

For one statistic of one channel:

    field = R_y · stats · R_xᵀ

    stats  (r, c)    the table's cells around the window
    R_y    (h, r)    sampling weights of the feature rows, each row summing to 1
    R_x    (w, c)    sampling weights of the feature columns
    field  (h, w)    the statistic at every feature pixel

Row i of a feature map with ``stride`` image pixels per feature that begins ``margin`` pixels above the window lies at

    y = ((i + 1/2) · stride - margin) / patch

in units of cells, counted from the window's first cell. ``nearest`` takes cell ⌊y⌋; ``bilinear`` interpolates between
the centres of two cells, at y - 1/2. Windows start at multiples of the patch size, so R_y and R_x are the same for all
windows of a shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from kin_cli.geometry import Floats, Integers

Interpolation = Literal["nearest", "bilinear"]


class Taps(NamedTuple):
    """The rows of R in sparse form: (1 - fraction) · stats[lower] + fraction · stats[upper], three arrays (features,).

    Cells are counted from the first cell of ``Lookup.span``.
    """

    lower: Integers
    upper: Integers
    fraction: Floats


@dataclass(frozen=True)
class Lookup:
    """Interpolation of a table with cells of ``patch_px`` in windows with a halo of ``halo_px``."""

    patch_px: int
    halo_px: int
    interpolation: Interpolation

    def span(self, patches: int) -> range:
        """Cells needed along one axis by a window of ``patches`` patches, relative to the window's first cell."""
        halo = self.halo_px
        first, last = self._position(0, 1, halo), self._position(patches * self.patch_px + 2 * halo - 1, 1, halo)
        return range(math.floor(first), math.floor(last) + (2 if self.interpolation == "bilinear" else 1))

    def stride(self, features: int, patches: int, *, margin_px: int) -> float:
        """Stride: image pixels per feature-map pixel, for ``patches`` patches with ``margin_px`` of halo per side."""
        return (patches * self.patch_px + 2 * margin_px) / features

    def taps(self, features: int, patches: int, *, margin_px: int | None = None) -> Taps:
        """The two cells around each feature pixel along one axis, and the weight of the second.

        ``features`` is the length of the feature map along the axis; ``margin_px`` is the part of the halo that the map
        still covers, None for all of it.
        """
        span, margin = self.span(patches), self.halo_px if margin_px is None else margin_px
        stride = self.stride(features, patches, margin_px=margin)
        position = np.array([self._position(i, stride, margin) for i in range(features)])
        lower = np.floor(position).astype(np.int64)
        fraction = np.zeros(features) if self.interpolation == "nearest" else position - lower
        # at weight 0 the upper neighbour is not needed, and it may lie beyond the span
        upper = np.where(fraction > 0, lower + 1, lower)
        return Taps(lower - span.start, upper - span.start, fraction.astype(np.float32))

    def weights(self, features: int, patches: int) -> Floats:
        """The sampling matrix R along one axis, shape (features, len(span)); every row sums to 1."""
        lower, upper, fraction = self.taps(features, patches)
        matrix = np.zeros((features, len(self.span(patches))), np.float32)
        row = np.arange(features)
        matrix[row, lower] = 1 - fraction
        matrix[row, upper] += fraction
        return matrix

    def _position(self, feature: int, stride: float, margin_px: int) -> float:
        """Centre of a feature pixel in units of cells, from the first cell's edge (nearest) or centre (bilinear)."""
        position = ((feature + 0.5) * stride - margin_px) / self.patch_px
        return position - 0.5 if self.interpolation == "bilinear" else position
