"""What the three frameworks have in common: a generator in training, and phases that each lower an objective."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kin_cli.errors import KinError, ModelError
from kin_cli.models.checkpoint import load_generator
from kin_cli.models.resnet import ResnetGenerator, ResnetSpec
from kin_cli.training.counterstain import haematoxylin_target
from kin_cli.training.guide import aligned_target, known, stained_target
from kin_cli.training.networks import Average, ImagePool, initialise
from kin_cli.training.run import Worker, unsynchronised
from kin_cli.training.settings import NetworkSettings

_BETAS = (0.5, 0.999)
_GOLDEN = 0x9E3779B97F4A7C15


# FROM training.framework: What the three frameworks have in common: a generator in training, and phases that each lower an objective.


@dataclass
class Batch:
    """Patches of both stains, (B, 3, H, W) float32 in [-1, 1], and what the generators made of them, detached.

    ``warm`` asks the generator's objective for the warm start instead of its losses. ``spare`` are patches like
    (``source``, ``target``) for further steps of the discriminator. ``guide`` shows the target stain roughly where
    ``source`` has it, black where unknown; ``aligned`` says that it does to the pixel.
    """

    source: Tensor
    target: Tensor
    warm: bool = False
    spare: tuple[tuple[Tensor, Tensor], ...] = ()
    made: dict[str, Tensor] = field(default_factory=dict)
    guide: Tensor | None = None
    aligned: bool = False

    def repeated(self, number: int) -> Batch:
        """What a phase sees at its step ``number`` (0 first) within one step of the generator."""
        if number == 0:
            return self
        source, target = self.spare[number - 1]
        return Batch(source, target, made=self.made)


class Objective(nn.Module):
    """Weighted terms of one loss. Registers exactly the networks that its phase trains, so that DDP can wrap it."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The terms by name, scalars; their sum is lowered. Fakes are left in ``batch.made``."""
        raise NotImplementedError


@dataclass(frozen=True)
class Phase:
    """One optimizer and the objective that it lowers.

    ``rate`` multiplies the learning rate. ``repeats`` says that the phase takes the discriminator's number of steps.
    """

    name: str
    objective: Objective
    optimizer: torch.optim.Optimizer
    rate: float = 1.0
    repeats: bool = False


@dataclass(frozen=True)
class Framework:
    """A generator in training. A step runs the ``phases`` in their order, the generator's first.

    ``networks`` are all that is trained, by name; ``fixed`` is moved to the device with them; ``pools`` are part of the
    state of a run.
    """

    generator: ResnetGenerator
    networks: dict[str, nn.Module]
    phases: tuple[Phase, ...]
    pools: dict[str, ImagePool] = field(default_factory=dict)
    fixed: tuple[nn.Module, ...] = ()


def warm_terms(generator: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The one term of the warm start."""
    return {"warm": distance_to_painting(generator(batch.source), batch)}


def distance_to_painting(made: Tensor, batch: Batch) -> Tensor:
    """L1 of translations to their input's haematoxylin, painted as in a counterstain; with a guide's DAB the square.

    The best guess of L1 for an area of which a third of the likes are brown has no brown at all; the square's has a
    third of it. An aligned guide leaves nothing to guess, and L1 keeps edges sharp.
    """
    if batch.guide is None:
        return F.l1_loss(made.float(), haematoxylin_target(batch.source))
    if batch.aligned:
        wanted = aligned_target(batch.source, batch.guide)
        return ((made - wanted).abs() * known(batch.guide)).mean()
    return ((made - stained_target(batch.source, batch.guide)).square() * known(batch.guide)).mean()


def build_generator(settings: NetworkSettings) -> ResnetGenerator:
    """A new generator in the official layout, or the one of ``settings.start`` with its own sizes, ready to train.

    Raises ``ModelError`` where that file holds no ResNet generator.
    """
    if settings.start is not None:
        loaded = load_generator(settings.start)
        if not isinstance(loaded.module, ResnetGenerator):
            raise ModelError(
                f"{settings.start} is a {loaded.layout} generator", "training continues ResNet layouts only"
            )
        return loaded.module.requires_grad_(True).train()
    blur = settings.antialias
    generator = ResnetGenerator(
        ResnetSpec(width=settings.width, blocks=settings.blocks, antialias_down=blur, antialias_up=blur)
    )
    initialise(generator, kind=settings.init, gain=settings.init_gain)
    return generator


def adam(*modules: nn.Module) -> torch.optim.Adam:
    """The optimizer of all three papers; the learning rate is set before every step."""
    parameters: Iterable[nn.Parameter] = (p for module in modules for p in module.parameters())
    return torch.optim.Adam(parameters, betas=_BETAS)


# FROM training.step: One step of a run: every phase once, over the accumulated batches.


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
