"""DAB, the brown of immunohistochemistry: how much of it a pixel holds, by colour deconvolution."""

from __future__ import annotations

import numpy as np

from kin_cli.metrics.colour import Floats, Pixels

HAEMATOXYLIN = (0.650, 0.704, 0.286)
EOSIN = (0.072, 0.990, 0.105)
DAB = (0.268, 0.570, 0.776)
"""Optical densities of red, green, blue: Ruifrok & Johnston, Anal. Quant. Cytol. Histol. 23 (2001)."""

_BROWN = 0.2  # decadic optical density of DAB above which pathology software calls a pixel positive


def dab_density(pixels: Pixels, *, white: float = 255.0) -> Floats:
    """Decadic optical density of DAB, (..., 3) uint8 to (...) float64; below 0 where there is less than none.

    Beer and Lambert: densities add, so that those of three colours give those of two dyes and of a residue orthogonal
    to both. ``white`` is the grey level of glass.
    """
    stains = np.array([HAEMATOXYLIN, DAB, np.cross(HAEMATOXYLIN, DAB)])
    unmix = np.linalg.inv(stains / np.linalg.norm(stains, axis=1, keepdims=True))
    table = -np.log10(np.maximum(np.arange(256), 1) / white)
    density: Floats = table[pixels] @ unmix[:, 1]
    return density


def brown_share(pixels: Pixels, *, white: float = 255.0) -> float:
    """Share of the pixels of an image (h, w, 3) that hold more DAB than a density of 0.2."""
    return float((dab_density(pixels, white=white) > _BROWN).mean())
