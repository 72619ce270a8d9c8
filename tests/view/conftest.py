"""Fixtures: a slide and two translations of it, small but with several levels and tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import pyvips
from scipy import ndimage

from tests.helpers.pages import need_viewer


def write_pyramid(path: Path, pixels: np.ndarray) -> Path:
    """A lossless pyramid of 0.5 µm/px."""
    how = {"compression": "deflate", "tile_width": 256, "tile_height": 256, "xres": 2000, "yres": 2000}
    pyvips.Image.new_from_array(pixels).tiffsave(str(path), tile=True, pyramid=True, **how)
    return path


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A source with tissue-like blobs, the same in another colour with steps of 512 px, and one without steps."""
    need_viewer()
    folder = tmp_path_factory.mktemp("shown")
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(1536, 2048)), 12)
    density = np.clip(noise / noise.std() * 0.35 + 0.5, 0, 1)[..., None]
    source = (245 - density * np.array([60, 150, 90])).astype(np.uint8)
    stained = 245 - density * np.array([120, 150, 170])
    steps = np.kron(np.array([[0, 30, 0, 30], [30, 0, 30, 0], [0, 30, 0, 30]]), np.ones((512, 512)))[..., None]
    return (
        write_pyramid(folder / "source.tif", source),
        write_pyramid(folder / "steps.tif", (stained - steps).clip(0, 255).astype(np.uint8)),
        write_pyramid(folder / 'a <b>"c" & #1.tif', stained.astype(np.uint8)),
    )
