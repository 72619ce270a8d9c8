"""Between the bytes of pictures and the range of a generator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[np.uint8]


def to_tensor(patches: Sequence[Pixels], device: torch.device | str = "cpu") -> Tensor:
    """Patches (H, W, 3) uint8 of one size as a batch (B, 3, H, W) float32 in [-1, 1]."""
    stacked = torch.from_numpy(np.stack(patches)).to(device)
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def to_pixels(images: Tensor) -> Pixels:
    """A batch (B, 3, H, W) in [-1, 1] as (B, H, W, 3) uint8, rounded."""
    levels = (images.float().clamp(-1.0, 1.0) * 127.5 + 127.5).round()
    pixels: Pixels = levels.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()
    return pixels
