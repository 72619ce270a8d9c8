"""Pictures of a run's progress: the same patches every time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from kin_cli.slide.source import Pixels
from kin_cli.store.files import os_errors_as_output_errors


def to_tensor(patches: Sequence[Pixels], device: torch.device) -> Tensor:
    """Patches (H, W, 3) uint8 of one size as a batch (B, 3, H, W) float32 in [-1, 1]."""
    stacked = torch.from_numpy(np.stack(patches)).to(device)
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def to_pixels(images: Tensor) -> Pixels:
    """A batch (B, 3, H, W) in [-1, 1] as (B, H, W, 3) uint8, rounded."""
    levels = (images.float().clamp(-1.0, 1.0) * 127.5 + 127.5).round()
    pixels: Pixels = levels.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()
    return pixels


@torch.inference_mode()
def write_samples(path: Path, generator: nn.Module, *, source: Sequence[Pixels], target: Sequence[Pixels]) -> None:
    """A PNG of three rows: patches of the source, what the generator makes of them, patches of the target."""
    device = next(generator.parameters()).device
    # one at a time: the peak of a step must not be exceeded for a picture
    made = [to_pixels(generator(to_tensor([patch], device)))[0] for patch in source]
    rows = [np.concatenate(list(row), axis=1) for row in (source, made, target)]
    with os_errors_as_output_errors(path):
        Image.fromarray(np.concatenate(rows)).save(path)
