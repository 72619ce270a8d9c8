"""Generators that break: numbers that overflow, and one colour for whatever they see."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from kin_cli.models.architectures import build
from tests.helpers.generators import TINY


def _state(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {name: tensor.clone() for name, tensor in build(TINY).state_dict().items()}


def _last_weight(state: dict[str, Tensor]) -> str:
    return [name for name in state if name.endswith("weight")][-1]


def overflowing(path: Path, *, factor: float = 1e30) -> Path:
    """Features of the second convolution beyond float32: every patch with texture has an infinite variance."""
    state = _state()
    second = [name for name in state if name.endswith("weight")][1]
    state[second] *= factor
    torch.save(state, path)
    return path


def one_colour(path: Path) -> Path:
    """An output that does not depend on the input."""
    state = _state()
    state[_last_weight(state)] *= 0
    torch.save(state, path)
    return path
