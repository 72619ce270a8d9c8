"""The source recoloured: what a translation reaches that only changes colours, wherever they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kin_cli.geometry import Doubles, Pixels
from kin_cli.metrics.colour import lab, rgb_of_lab


@dataclass(frozen=True, eq=False)
class Recolouring:
    """Moves and scales L*, a* and b* (Reinhard et al., IEEE Comput. Graph. Appl. 21, 2001), all (3,)."""

    mean: Doubles
    scale: Doubles
    wanted: Doubles

    def __call__(self, pixels: Pixels) -> Pixels:
        """Recolour pixels (…, 3)."""
        return rgb_of_lab((lab(pixels) - self.mean) * self.scale + self.wanted)


def recolouring(own: Doubles, wanted: Doubles) -> Recolouring:
    """The recolouring that gives L*a*b* colours (n, 3) the mean and standard deviation of others (m, 3)."""
    scale = wanted.std(axis=0) / np.maximum(own.std(axis=0), 1e-6)
    return Recolouring(own.mean(axis=0), scale, wanted.mean(axis=0))
