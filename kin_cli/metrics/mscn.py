"""Mean-subtracted, contrast-normalised (MSCN) luminance: what PIQE and NIQE look at.

Each pixel less its local mean, over its local standard deviation plus 1, both under a Gaussian of 7×7 pixels with a
standard deviation of 7/6 (Mittal et al. 2013; Venkatanath et al. 2015).
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from kin_cli.metrics.colour import Floats, Pixels, luma

RADIUS_PX = 3
"""Pixels that a normalised pixel depends on, on every side."""

_WEIGHTS = np.exp(-0.5 * (np.arange(-RADIUS_PX, RADIUS_PX + 1) / (7 / 6)) ** 2)
_WEIGHTS /= _WEIGHTS.sum()


def grey(rgb: Pixels) -> Floats:
    """Luma of 8-bit RGB (h, w, 3), rounded to whole numbers: float64 (h, w), 0 to 255."""
    return np.rint(luma(rgb))


def normalised(values: Floats) -> tuple[Floats, Floats]:
    """MSCN coefficients and local standard deviations of (h, w), each (h - 6, w - 6): the rim is not defined."""
    mean = _blurred(values)
    deviation = np.sqrt(np.abs(_blurred(values**2) - mean**2))
    inner = values[RADIUS_PX:-RADIUS_PX, RADIUS_PX:-RADIUS_PX]
    return (inner - mean) / (deviation + 1), deviation


def _blurred(values: Floats) -> Floats:
    blurred: Floats = ndimage.correlate1d(ndimage.correlate1d(values, _WEIGHTS, axis=0), _WEIGHTS, axis=1)
    return blurred[RADIUS_PX:-RADIUS_PX, RADIUS_PX:-RADIUS_PX]
