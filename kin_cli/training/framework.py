"""What the three frameworks have in common: a generator, phases that each lower an objective, pools of old fakes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kin_cli.errors import ModelError
from kin_cli.models.checkpoint import load_generator
from kin_cli.models.resnet import ResnetGenerator, ResnetSpec
from kin_cli.training.counterstain import haematoxylin_target
from kin_cli.training.losses import lsgan_discriminator, lsgan_generator
from kin_cli.training.networks import PatchDiscriminator, frozen, initialise
from kin_cli.training.settings import NetworkSettings

_BETAS = (0.5, 0.999)


@dataclass
class Batch:
    """Patches of both stains, (B, 3, H, W) float32 in [-1, 1], and what the generators made of them, detached.

    ``warm`` asks the generator's objective for the warm start instead of its losses. ``spare`` are patches like
    (``source``, ``target``) for further steps of the discriminator.
    """

    source: Tensor
    target: Tensor
    warm: bool = False
    spare: tuple[tuple[Tensor, Tensor], ...] = ()
    made: dict[str, Tensor] = field(default_factory=dict)

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


class ImagePool:
    """Up to ``size`` earlier fakes, so that a discriminator sees more than the last (Shrivastava et al., CVPR 2017).

    Kept on the CPU as 8-bit, as real patches are: a quarter of the memory and of the checkpoint.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.images: list[Tensor] = []

    def query(self, fakes: Tensor) -> Tensor:
        """Each fake of a batch, or half of the time, once the pool is full, an earlier one that it replaces."""
        if self.size == 0:
            return fakes
        return torch.stack([self._swap(fake) for fake in fakes])

    def _swap(self, fake: Tensor) -> Tensor:
        stored = _as_bytes(fake)
        if len(self.images) < self.size:
            self.images.append(stored)
            return fake
        if torch.rand(()) < 0.5:
            return fake
        index = int(torch.randint(self.size, ()))
        earlier, self.images[index] = self.images[index], stored
        return (earlier.to(fake) / 127.5) - 1.0


def _as_bytes(image: Tensor) -> Tensor:
    return ((image.detach().float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()


class DiscriminatorObjective(Objective):
    """LSGAN of discriminators by the name of the stain they judge: ``source``, ``target``."""

    def __init__(self, judges: dict[str, nn.Module], pools: dict[str, ImagePool]) -> None:
        super().__init__()
        self.judges = nn.ModuleDict(judges)
        self._pools = pools

    def forward(self, batch: Batch) -> dict[str, Tensor]:  # noqa: D102
        terms = {}
        for stain, judge in self.judges.items():
            real = batch.target if stain == "target" else batch.source
            fake = self._pools[stain].query(batch.made[stain])
            terms[f"d_{stain}"] = lsgan_discriminator(judge(real), judge(fake))
        return terms


def fooled(judge: nn.Module, fake: Tensor) -> Tensor:
    """LSGAN's term of a generator; the discriminator itself gets no gradient."""
    with frozen(judge):
        return lsgan_generator(judge(fake))


def warm_terms(generator: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """L1 of the generator's output to its input's haematoxylin, painted as in a counterstain."""
    return {"warm": F.l1_loss(generator(batch.source).float(), haematoxylin_target(batch.source))}


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


def build_discriminator(settings: NetworkSettings) -> PatchDiscriminator:
    """A new discriminator."""
    judge = PatchDiscriminator(settings.disc_width, layers=settings.disc_layers, antialias=settings.antialias)
    initialise(judge, kind=settings.init, gain=settings.init_gain)
    return judge


def adam(*modules: nn.Module) -> torch.optim.Adam:
    """The optimizer of all three papers; the learning rate is set before every step."""
    parameters: Iterable[nn.Parameter] = (p for module in modules for p in module.parameters())
    return torch.optim.Adam(parameters, betas=_BETAS)
