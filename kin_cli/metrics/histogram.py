"""Correlation of the colour histograms of two slides: do they have the same colours, wherever these are?

``LabHistogram`` is the default: one histogram each of L*, a* and b* in bins of four units, so that hue, saturation and
brightness all count and no colour is undefined. Finer bins would measure the comb-like gaps that 8-bit rounding and
JPEG leave in a histogram. ``HueHistogram`` is the statistic of the KIN authors' code: hue alone, in ten bins over
[0, 256). OpenCV's hue ends at 179, so that three bins are always empty, which raises the correlation; grey pixels have
hue 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

from kin_cli.geometry import Doubles, Pixels
from kin_cli.metrics.colour import lab

Counts = npt.NDArray[np.int64]

# OpenCV divides by the chroma with a table of 12-bit fixed-point reciprocals: 180·4096 / (6·chroma), rounded.
_HUE_SHIFT = 12
_HUES = 180
_RECIPROCALS = np.concatenate([[0], np.rint((_HUES << _HUE_SHIFT) / (6.0 * np.arange(1, 256)))]).astype(np.int64)


class Histogram(ABC):
    """Pixel counts, accumulated tile by tile. Memory bound: 64 bins for each of three channels."""

    halo_px = 0

    def __init__(self) -> None:
        self.counts: Counts | None = None

    @abstractmethod
    def measure(self, tile: Pixels) -> Counts:
        """Count the pixels of one tile (h, w, 3): (channels, bins)."""

    def add(self, counts: Counts) -> None:
        """Add a result of ``measure``."""
        self.counts = counts if self.counts is None else self.counts + counts


class LabHistogram(Histogram):
    """L*, a*, b* (CIELAB, D65) in 64 bins of four units, from -2 (L*) or -130: white and neutral are bin centres."""

    def measure(self, tile: Pixels) -> Counts:  # noqa: D102
        bins = np.floor((lab(tile.reshape(-1, 3)) + (2, 130, 130)) / 4).clip(0, 63).astype(np.intp)
        return np.stack([np.bincount(channel, minlength=64) for channel in bins.T])


class HueHistogram(Histogram):
    """OpenCV's 8-bit hue in ten bins over [0, 256), as the KIN authors compute it."""

    def measure(self, tile: Pixels) -> Counts:  # noqa: D102
        bins = opencv_hue(tile.reshape(-1, 3)) * 10 // 256
        return np.bincount(bins, minlength=10)[None]


def correlations(one: Histogram, other: Histogram) -> Doubles:
    """Pearson correlation of two histograms over their bins, (channels,); one NaN if a histogram is empty."""
    if one.counts is None or other.counts is None:
        return np.array([np.nan])
    return np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(one.counts, other.counts, strict=True)])


def opencv_hue(rgb: Pixels) -> npt.NDArray[np.int64]:
    """Hue of 8-bit RGB (…, 3) as by OpenCV's ``cvtColor(…, COLOR_RGB2HSV)``: 0 to 179, in units of two degrees.

    The integer arithmetic is part of the definition: ties for the maximum go to red, then to green, and the division is
    a product with a rounded reciprocal.
    """
    red, green, blue = np.moveaxis(rgb.astype(np.int64), -1, 0)
    largest = np.maximum(np.maximum(red, green), blue)
    chroma = largest - np.minimum(np.minimum(red, green), blue)
    sector = np.where(largest == green, blue - red + 2 * chroma, red - green + 4 * chroma)
    sector = np.where(largest == red, green - blue, sector)
    hue = (sector * _RECIPROCALS[chroma] + (1 << (_HUE_SHIFT - 1))) >> _HUE_SHIFT
    wrapped: npt.NDArray[np.int64] = np.where(hue < 0, hue + _HUES, hue)
    return wrapped
