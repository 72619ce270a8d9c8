"""DAB, the brown chromogen of immunohistochemistry: its optical density per pixel, by colour deconvolution."""

from __future__ import annotations

import numpy as np

from kin_cli.geometry import Doubles, Pixels

HAEMATOXYLIN = (0.650, 0.704, 0.286)
DAB = (0.268, 0.570, 0.776)
"""Optical densities of red, green, blue: Ruifrok & Johnston, Anal. Quant. Cytol. Histol. 23 (2001)."""

_BROWN = 0.2  # decadic optical density of DAB above which pathology software calls a pixel positive


def dab_density(pixels: Pixels, *, white: float = 255.0) -> Doubles:
    """Decadic optical density of DAB, (..., 3) uint8 to (...) float64; noise makes it negative in places.

    By Beer and Lambert's law densities add: the densities of three colours give those of haematoxylin, of DAB, and of a
    residual orthogonal to both. ``white`` is the grey level of background.
    """
    stains = np.array([HAEMATOXYLIN, DAB, np.cross(HAEMATOXYLIN, DAB)])
    unmix = np.linalg.inv(stains / np.linalg.norm(stains, axis=1, keepdims=True))
    table = -np.log10(np.maximum(np.arange(256), 1) / white)
    density: Doubles = table[pixels] @ unmix[:, 1]
    return density


def brown_fraction(pixels: Pixels, *, white: float = 255.0) -> float:
    """Fraction of the pixels of an image (h, w, 3) whose density of DAB is above 0.2."""
    return float((dab_density(pixels, white=white) > _BROWN).mean())
