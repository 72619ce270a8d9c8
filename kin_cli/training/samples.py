"""Pictures of a run's progress: the same patches every time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from kin_cli.models.images import to_pixels, to_tensor
from kin_cli.slide.source import Pixels
from kin_cli.store.files import os_errors_as_output_errors


@torch.inference_mode()
def write_samples(path: Path, generator: nn.Module, *, source: Sequence[Pixels], target: Sequence[Pixels]) -> None:
    """A PNG of three rows: patches of the source, what the generator makes of them, patches of the target."""
    device = next(generator.parameters()).device
    # one at a time: the peak of a step must not be exceeded for a picture
    made = [to_pixels(generator(to_tensor([patch], device)))[0] for patch in source]
    rows = [np.concatenate(list(row), axis=1) for row in (source, made, target)]
    with os_errors_as_output_errors(path):
        Image.fromarray(np.concatenate(rows)).save(path)
