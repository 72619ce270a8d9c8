"""Variation of patches: orientation, size and colour, all drawn from a generator that the caller seeds."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kin_cli.slide.source import Pixels


def oriented(patch: Pixels, rng: np.random.Generator, *, flip: bool, rotate: bool) -> Pixels:
    """A square patch (H, W, 3), mirrored half of the time, turned by a multiple of 90°."""
    if flip and rng.random() < 0.5:
        patch = patch[:, ::-1]
    return np.rot90(patch, int(rng.integers(4))) if rotate else patch


def resized(patch: Pixels, side: int) -> Pixels:
    """A square patch at another size, antialiased."""
    if patch.shape[0] == side:
        return patch
    return np.asarray(Image.fromarray(patch).resize((side, side), Image.Resampling.BICUBIC))


def jittered(patch: Pixels, rng: np.random.Generator, *, amount: float) -> Pixels:
    """Optical density of each channel scaled by up to ``amount`` either way: another strength of staining."""
    if amount == 0:
        return patch
    gain = 1.0 + amount * rng.uniform(-1.0, 1.0, 3)
    levels = np.arange(256)[:, None] / 255.0
    table = np.round(255.0 * levels**gain).astype(np.uint8)  # 10^(-gain · OD) in grey levels
    return np.stack([table[patch[..., channel], channel] for channel in range(3)], axis=-1)


def recoloured(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] with the same structure in other colours, each its own: a contrastive view.

    Random gain and gamma of each channel and a random mixture with grey, from torch's CPU generator.
    """
    count = len(images)
    gain, gamma, mix = torch.rand(3, count, 3, 1, 1).to(images.device)
    unit = images.float() * 0.5 + 0.5
    varied = (0.6 + 0.4 * gain) * unit.clamp(1e-3, 1.0) ** (0.5 + gamma)
    blend = 0.8 * mix[:, :1]
    mixed: Tensor = (1.0 - blend) * varied + blend * varied.mean(1, keepdim=True)
    return mixed * 2.0 - 1.0
