"""Pictures to evaluate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from kin_cli.geometry import Pixels

SIDE = 768


def texture(seed: int, colour: tuple[int, int, int]) -> Pixels:
    """Spots of several sizes in one colour on white: 768×768 px."""
    draws = np.random.default_rng(seed)
    spots = sum(ndimage.gaussian_filter(draws.normal(size=(SIDE, SIDE)), sigma) * sigma for sigma in (1, 3, 9))
    fraction = np.clip(0.5 + spots, 0, 1)[..., None]
    return np.rint(255 - fraction * (255 - np.array(colour))).astype(np.uint8)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A source, its translation with four patches' worth of seams, and a reference, as PNG (all of it counts)."""
    folder = tmp_path_factory.mktemp("pictures")
    source = texture(1, (150, 40, 130))
    translated = source[..., [1, 0, 2]].copy()
    translated[:256, 256:512] = np.clip(translated[:256, 256:512].astype(int) + 12, 0, 255)
    for name, pixels in (("source", source), ("slide", translated), ("reference", texture(2, (110, 60, 20)))):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in ("source", "slide", "reference")}
