"""Generators: small checkpoints with random weights, and one that changes nothing."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from kin_cli.models.architectures import Spec, build
from kin_cli.models.resnet import ResnetSpec

TINY = ResnetSpec(width=4, blocks=2, antialias_down=False, antialias_up=False)


def write_generator(path: Path, spec: Spec = TINY, *, seed: int = 0) -> Path:
    """A checkpoint in the official layout with random weights."""
    torch.manual_seed(seed)
    torch.save(build(spec).state_dict(), path)
    return path


class Identity(nn.Module):
    """A generator with a norm layer that changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(3)
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.norm(x)
