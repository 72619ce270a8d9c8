"""Where a window reads the table: nearest or bilinear sampling weights at global pixel coordinates.

A window starts at a multiple of the patch size and is surrounded by a halo, so that the weights are the same for every
window of a shape: field = R_y · cells · R_xᵀ (design: one piece of code for every preset, window size and stride).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Interpolation = Literal["nearest", "bilinear"]


class Taps(NamedTuple):
    """For each feature pixel along an axis the two cells around it, counted from the first that the window reads, and
    the weight of the upper one: int64, int64 and float32 of one length."""

    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    fraction: NDArray[np.float32]


@dataclass(frozen=True)
class Lookup:
    """Reading a table whose cells are ``patch_px`` wide in windows with ``halo_px`` around them."""

    patch_px: int
    halo_px: int
    interpolation: Interpolation

    def span(self, patches: int) -> range:
        """Cells that a window of ``patches`` × ``patches`` patches reads along an axis, relative to its first one."""
        halo = self.halo_px
        first, last = self._position(0, 1, halo), self._position(patches * self.patch_px + 2 * halo - 1, 1, halo)
        return range(math.floor(first), math.floor(last) + (2 if self.interpolation == "bilinear" else 1))

    def stride(self, features: int, patches: int, *, margin_px: int) -> float:
        """Pixels per feature of a map that reaches ``margin_px`` beyond the core of a window of so many patches."""
        return (patches * self.patch_px + 2 * margin_px) / features

    def taps(self, features: int, patches: int, *, margin_px: int | None = None) -> Taps:
        """Which two cells each feature pixel lies between, and where.

        ``features`` is the feature map's extent along the axis. ``margin_px`` is how far it reaches beyond the window's
        core, None for all of the halo.
        """
        span, margin = self.span(patches), self.halo_px if margin_px is None else margin_px
        stride = self.stride(features, patches, margin_px=margin)
        position = np.array([self._position(i, stride, margin) for i in range(features)])
        lower = np.floor(position).astype(np.int64)
        fraction = np.zeros(features) if self.interpolation == "nearest" else position - lower
        # The upper neighbour of an exact hit has weight 0 and may lie beyond the span.
        upper = np.where(fraction > 0, lower + 1, lower)
        return Taps(lower - span.start, upper - span.start, fraction.astype(np.float32))

    def weights(self, features: int, patches: int) -> NDArray[np.float32]:
        """The same as a sampling matrix R, shape (features, len(span)), rows summing to 1."""
        lower, upper, fraction = self.taps(features, patches)
        matrix = np.zeros((features, len(self.span(patches))), np.float32)
        every = np.arange(features)
        matrix[every, lower] = 1 - fraction
        matrix[every, upper] += fraction
        return matrix

    def _position(self, feature: int, stride: float, margin_px: int) -> float:
        """Centre of a feature pixel in units of cells; for bilinear, relative to the first cell's centre."""
        position = ((feature + 0.5) * stride - margin_px) / self.patch_px
        return position - 0.5 if self.interpolation == "bilinear" else position
