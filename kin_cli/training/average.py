"""The exponential moving average of a generator, which is what a run hands out."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from kin_cli.models.resnet import ResnetGenerator


class Average:
    """A generator whose parameters follow another's: p ← d p + (1 - d) p', d = min(decay, (1 + n) / (10 + n)).

    The shorter memory of the first updates n lets the random start be forgotten.
    """

    def __init__(self, generator: ResnetGenerator, decay: float) -> None:
        self.module = copy.deepcopy(generator).eval().requires_grad_(False)
        self._decay, self._updates = decay, 0

    @torch.no_grad()
    def update(self, generator: ResnetGenerator) -> None:
        """Follow the generator by one step."""
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        for mine, theirs in zip(self.module.parameters(), generator.parameters(), strict=True):
            mine.lerp_(theirs, 1.0 - decay)
        self._updates += 1

    def restore(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Continue after ``updates`` updates."""
        self.module.load_state_dict(state)
        self._updates = updates
