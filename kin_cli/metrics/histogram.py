"""Correlation of two slides' colour histograms: do they have the same colours, wherever they are?

``LabHistogram`` is the default: L*, a* and b* each on their own in bins of four units, so that hue, saturation and
brightness all count and no colour is undefined; in finer bins, the combs that 8-bit rounding and JPEG make of colours
would count. ``HueHistogram`` is the statistic of the KIN authors' code: hue alone,
in ten bins over [0, 256) although OpenCV's hue ends at 179, so that three bins are always empty, which raises the
correlation; grey pixels have hue 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

from kin_cli.metrics.colour import Floats, Pixels, lab

Counts = npt.NDArray[np.int64]

# OpenCV divides by the chroma with a table of 12-bit fixed-point reciprocals: 180·4096 / (6·chroma), rounded
_HUE_SHIFT = 12
_HUES = 180
_RECIPROCALS = np.concatenate([[0], np.rint((_HUES << _HUE_SHIFT) / (6.0 * np.arange(1, 256)))]).astype(np.int64)


class Histogram(ABC):
    """Counts of pixels, gathered tile by tile. Memory bound: 64 bins of each of three channels."""

    halo_px = 0

    def __init__(self) -> None:
        self.counts: Counts | None = None

    @abstractmethod
    def measure(self, tile: Pixels) -> Counts:
        """Counts of one tile (h, w, 3), shape (channels, bins)."""

    def add(self, counts: Counts) -> None:
        """Take the counts of a tile in."""
        self.counts = counts if self.counts is None else self.counts + counts


class LabHistogram(Histogram):
    """L*, a* and b* of CIELAB (D65) in 64 bins of four units from -2 (L*) and -130: white and neutral are centres."""

    def measure(self, tile: Pixels) -> Counts:  # noqa: D102
        bins = np.floor((lab(tile.reshape(-1, 3)) + (2, 130, 130)) / 4).clip(0, 63).astype(np.intp)
        return np.stack([np.bincount(channel, minlength=64) for channel in bins.T])


class HueHistogram(Histogram):
    """OpenCV's 8-bit hue in ten bins over [0, 256), as the KIN authors compute it."""

    def measure(self, tile: Pixels) -> Counts:  # noqa: D102
        bins = opencv_hue(tile.reshape(-1, 3)) * 10 // 256
        return np.bincount(bins, minlength=10)[None]


def correlations(one: Histogram, other: Histogram) -> Floats:
    """Pearson's correlation of two histograms over their bins, for each channel; NaN where a histogram is empty."""
    if one.counts is None or other.counts is None:
        return np.array([np.nan])
    return np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(one.counts, other.counts, strict=True)])


def opencv_hue(rgb: Pixels) -> npt.NDArray[np.int64]:
    """Hue of 8-bit RGB (…, 3) as OpenCV's ``cvtColor(…, COLOR_RGB2HSV)`` gives it: 0 to 179, half a degree each.

    The integer arithmetic is part of the definition: red wins ties for the maximum, then green, and the quotient is a
    product with a rounded reciprocal.
    """
    red, green, blue = np.moveaxis(rgb.astype(np.int64), -1, 0)
    largest = np.maximum(np.maximum(red, green), blue)
    chroma = largest - np.minimum(np.minimum(red, green), blue)
    sector = np.where(largest == green, blue - red + 2 * chroma, red - green + 4 * chroma)
    sector = np.where(largest == red, green - blue, sector)
    hue = (sector * _RECIPROCALS[chroma] + (1 << (_HUE_SHIFT - 1))) >> _HUE_SHIFT
    wrapped: npt.NDArray[np.int64] = np.where(hue < 0, hue + _HUES, hue)
    return wrapped
