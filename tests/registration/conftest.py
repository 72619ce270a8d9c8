"""A drawn section and what becomes of it on another slide."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from kin_cli.geometry import Floats, Mask
from kin_cli.registration.sections import Section

pytest.importorskip("SimpleITK")

UM = (8.0, 8.0)


def blob(shape: tuple[int, int], centre: tuple[float, float], radius: float, seed: int) -> tuple[Floats, Mask]:
    """An uneven piece of tissue with glands: density and outline, (h, w); no two seeds are alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]] - np.array(centre)[:, None, None]
    angle, far = np.arctan2(y, x), np.hypot(x, y)
    waves = sum(rng.uniform(0.04, 0.16) * np.cos(n * angle + rng.uniform(0, 6)) for n in range(1, 6))
    outline = far < radius * (1 + waves)
    grain = ndimage.gaussian_filter(rng.normal(size=shape), 2.5)
    coarse = ndimage.gaussian_filter(rng.normal(size=shape), 12)
    density = 0.4 + 0.12 * grain / grain.std() + 0.1 * coarse / coarse.std()
    return (np.where(outline, density, 0.0)).clip(0, 1).astype(np.float32), outline


def section(parts: list[tuple[Floats, Mask]]) -> Section:
    """A slide with some pieces on it."""
    return Section(np.maximum.reduce([d for d, _ in parts]), np.logical_or.reduce([m for _, m in parts]), UM)


@pytest.fixture(scope="session")
def one_piece() -> Section:
    return section([blob((300, 340), (150, 165), 95, 1)])
