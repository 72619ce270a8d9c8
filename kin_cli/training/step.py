"""One step of a run: every phase once, over the accumulated batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from kin_cli.errors import KinError
from kin_cli.training.average import Average
from kin_cli.training.devices import Worker, unsynchronised
from kin_cli.training.framework import Batch, Framework, Phase

_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Stepper:
    """A framework, ready on its device. Used by one thread."""

    framework: Framework
    worker: Worker
    average: Average
    objectives: Sequence[nn.Module]
    seed: int

    def step(self, number: int, batches: Sequence[Batch], *, rate: float) -> dict[str, float]:
        """Do step ``number`` (0 first) at the learning rate ``rate``; the terms of all losses, by name.

        Terms are means over the accumulated batches, of this process. Raises ``KinError`` where one is not finite:
        parameters are then those of the step before, or of its phase.
        """
        torch.manual_seed(_mixed(self.seed, number, self.worker.rank))
        values: dict[str, float] = {}
        for phase, objective in zip(self.framework.phases, self.objectives, strict=True):
            if batches[0].warm and phase is not self.framework.phases[0]:
                break
            for repeat in range(1 + (len(batches[0].spare) if phase.repeats else 0)):
                values |= self._lower(phase, objective, [batch.repeated(repeat) for batch in batches], rate)
                _require_finite(values, number)
                phase.optimizer.step()
        self.average.update(self.framework.generator)
        return values

    def _lower(self, phase: Phase, objective: nn.Module, batches: Sequence[Batch], rate: float) -> dict[str, float]:
        for group in phase.optimizer.param_groups:
            group["lr"] = rate * phase.rate
        phase.optimizer.zero_grad()
        sums: dict[str, float] = {}
        for number, batch in enumerate(batches):
            with unsynchronised(objective, last=number == len(batches) - 1):
                terms = self.worker.terms(objective, batch)
                loss = torch.stack(list(terms.values())).sum() / len(batches)
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + float(term.detach()) / len(batches)
        return sums


def _mixed(*numbers: int) -> int:
    """A seed of 63 bits from several numbers, so that neighbouring steps have unrelated seeds."""
    state = 0
    for number in numbers:
        state = ((state ^ number) * _GOLDEN + 1) % (1 << 64)
        state ^= state >> 31
    return state >> 1


def _require_finite(values: dict[str, float], number: int) -> None:
    bad = [name for name, value in values.items() if value != value or abs(value) == float("inf")]
    if bad:
        raise KinError(
            f"the loss {bad[0]} is {values[bad[0]]} at step {number + 1}: training has diverged",
            "a lower --lr or --precision fp32 may help; the last checkpoint is kept",
        )


def means(rows: Iterable[dict[str, float]]) -> dict[str, float]:
    """Mean of each name over the rows that have it."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in columns.items()}
