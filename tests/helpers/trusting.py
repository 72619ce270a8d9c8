"""Generators that know what they were trained on, and slides that are or are not like it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

from kin_cli.progress import SilentProgress
from kin_cli.trust.learn import LearnSettings, learn_into
from tests.helpers.generators import write_generator

SIDE = 64


def write_tissue(
    path: Path,
    *,
    seed: int = 0,
    stain: float = 1.0,
    odd: bool = False,
    glass: int = 0,
    sides: tuple[int, int] = (512, 704),
) -> Path:
    """A slide of two stains in soft blobs with glass around, 0.5 µm/px.

    ``odd``: its right third is green; ``glass``: width of a strip at its left without tissue.
    """
    height, width = sides
    rng = np.random.default_rng(seed)
    fields = rng.normal(size=(2, height // 8, width // 8))
    blobs = np.stack([np.kron(field, np.ones((8, 8))) for field in fields], axis=-1)
    strength = stain * np.clip(0.5 + 0.25 * blobs + 0.1 * rng.normal(size=blobs.shape), 0.05, 2)
    density = strength @ np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    rows, cols = np.mgrid[:height, :width]
    density[((rows / height - 0.5) / 0.47) ** 4 + ((cols / width - 0.5) / 0.47) ** 4 > 1] = 0
    density[:, :glass] = 0
    pixels = np.rint(245 * np.exp(-density)).astype(np.uint8)
    if odd:
        third = slice(2 * width // 3 // SIDE * SIDE, None)
        pixels[:, third] = pixels[:, third][..., [1, 0, 2]]
    options = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(128, 128), metadata=None, compression="deflate", **options)
    return path


def learned(folder: Path, *, seed: int = 0) -> Path:
    """A tiny generator with random weights that knows two slides of ``write_tissue``."""
    model = write_generator(folder / "g.pth", seed=seed)
    slides = [write_tissue(folder / f"train{i}.tif", seed=10 + i) for i in range(2)]
    output = folder / "known.safetensors"
    learn_into(model, output, slides, LearnSettings(160, patch_px=SIDE), SilentProgress())
    return output
