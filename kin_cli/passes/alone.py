"""Patches translated one by one, each by its own statistics, and how far two translations of the same pixels differ."""

from __future__ import annotations

import numpy as np

from kin_cli.geometry import Doubles, Floats, Pixels
from kin_cli.metrics.colour import lab
from kin_cli.norm.lookup import Lookup
from kin_cli.passes.engine import Engine


def alone(engine: Engine, pixels: Pixels) -> tuple[Floats, Pixels]:
    """Statistics (2, ΣC) of a patch, and its translation normalized by them: plain instance normalization."""
    image = np.ascontiguousarray(pixels)
    stats: Floats = engine.measure([image])[0]
    scales = stats.copy()
    np.divide(1.0, stats[1], out=scales[1], where=stats[1] > 0)
    lookup = Lookup(pixels.shape[0], 0, "nearest")
    return stats, engine.apply([image], scales[None, None, None], lookup)[0]


def differences(a: Pixels, b: Pixels) -> Doubles:
    """Colour difference ΔE (CIE 1976) of the pixels of two pictures (…, 3), as (…)."""
    found: Doubles = np.linalg.norm(lab(a) - lab(b), axis=-1)
    return found
