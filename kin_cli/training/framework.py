"""What the three frameworks have in common: a generator in training, and phases that each lower an objective."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kin_cli.errors import ModelError
from kin_cli.models.checkpoint import load_generator
from kin_cli.models.resnet import ResnetGenerator, ResnetSpec
from kin_cli.training.counterstain import haematoxylin_target
from kin_cli.training.guide import aligned_target, known, stained_target
from kin_cli.training.losses import lsgan_discriminator, lsgan_generator
from kin_cli.training.networks import ImagePool, PatchDiscriminator, frozen, initialise
from kin_cli.training.settings import NetworkSettings

_BETAS = (0.5, 0.999)


# FROM training.framework: What the three frameworks have in common: a generator in training, and phases that each lower an objective.


@dataclass
class PatchBatch:
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

    def repeated(self, number: int) -> PatchBatch:
        """What a phase sees at its step ``number`` (0 first) within one step of the generator."""
        if number == 0:
            return self
        source, target = self.spare[number - 1]
        return PatchBatch(source, target, made=self.made)


class Objective(nn.Module):
    """Weighted terms of one loss. Registers exactly the networks that its phase trains, so that DDP can wrap it."""

    def forward(self, batch: PatchBatch) -> dict[str, Tensor]:
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


def warm_terms(generator: nn.Module, batch: PatchBatch) -> dict[str, Tensor]:
    """The one term of the warm start."""
    return {"warm": distance_to_painting(generator(batch.source), batch)}


def distance_to_painting(made: Tensor, batch: PatchBatch) -> Tensor:
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
                f"{settings.start} is a {loaded.architecture} generator", "training continues ResNet layouts only"
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


# FROM training.opponents: The discriminators of a framework: who judges, on which earlier fakes, and how they learn.


@dataclass(frozen=True)
class Discriminators:
    """A discriminator and a pool of earlier fakes for each stain that is judged, and the phase that trains them."""

    discriminators: dict[str, nn.Module]
    pools: dict[str, ImagePool]
    phase: Phase

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The discriminators by their names within a framework."""
        return {f"disc_{stain}": discriminator for stain, discriminator in self.discriminators.items()}


def build_discriminators(
    settings: NetworkSettings, stains: Sequence[str], *, pool: int, rate: float = 1.0
) -> Discriminators:
    """New discriminators of the stains ``source`` or ``target``; ``rate`` multiplies the learning rate."""
    discriminators: dict[str, nn.Module] = {stain: _discriminator(settings) for stain in stains}
    pools = {stain: ImagePool(pool) for stain in stains}
    objective = DiscriminatorObjective(discriminators, pools)
    return Discriminators(
        discriminators, pools, Phase("discriminator", objective, adam(objective), rate=rate, repeats=True)
    )


def _discriminator(settings: NetworkSettings) -> PatchDiscriminator:
    discriminator = PatchDiscriminator(settings.disc_width, layers=settings.disc_layers, antialias=settings.antialias)
    initialise(discriminator, kind=settings.init, gain=settings.init_gain)
    return discriminator


class DiscriminatorObjective(Objective):
    """LSGAN of discriminators by the name of the stain they judge: ``source``, ``target``."""

    def __init__(self, discriminators: dict[str, nn.Module], pools: dict[str, ImagePool]) -> None:
        super().__init__()
        self.discriminators = nn.ModuleDict(discriminators)
        self._pools = pools

    def forward(self, batch: PatchBatch) -> dict[str, Tensor]:  # noqa: D102
        terms = {}
        for stain, discriminator in self.discriminators.items():
            real = batch.target if stain == "target" else batch.source
            fake = self._pools[stain].query(batch.made[stain])
            terms[f"d_{stain}"] = lsgan_discriminator(discriminator(real), discriminator(fake))
        return terms


def fooled(discriminator: nn.Module, fake: Tensor) -> Tensor:
    """LSGAN's term of a generator; the discriminator itself gets no gradient."""
    with frozen(discriminator):
        return lsgan_generator(discriminator(fake))
