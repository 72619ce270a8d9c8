"""Parts common to the three frameworks: batches, objectives, phases, and how networks and optimizers are built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kin_cli.errors import ModelError
from kin_cli.models.checkpoint import load_generator
from kin_cli.models.resnet import ResnetGenerator, ResnetSpec
from kin_cli.training.guidance import Guidance
from kin_cli.training.losses import lsgan_discriminator, lsgan_generator
from kin_cli.training.networks import ImagePool, PatchDiscriminator, frozen, initialise
from kin_cli.training.settings import NetworkSettings
from kin_cli.training.smooth_norm import smooth_norms

_BETAS = (0.5, 0.999)  # Adam's, in all three papers
_TRAINED = ("instance", "reflect")  # norm layers and padding of generators that can be trained


@dataclass
class PatchBatch:
    """Patches of both stains, (B, 3, H, W) float32 in [-1, 1].

    ``fakes`` are their translations by the stain they imitate (``target``, ``source``), detached. The generator's
    objective stores them there, and the discriminators' reads them.
    """

    source: Tensor
    target: Tensor
    guide: Tensor | None = None
    fakes: dict[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module):
    """Weighted terms of one loss. Registers exactly the networks that its phase trains, so that DDP can wrap it."""

    guidance: Guidance | None = None

    def guided(self, batch: PatchBatch, fake: Tensor) -> dict[str, Tensor]:
        """The terms that all frameworks share; ``fake`` is the translation of ``batch.source``, not detached."""
        return {} if self.guidance is None else self.guidance.terms(batch.source, fake, batch.guide)

    def forward(self, batch: PatchBatch) -> dict[str, Tensor]:
        """Return the terms by name, as scalars; their sum is minimised."""
        raise NotImplementedError


@dataclass(frozen=True)
class Phase:
    """One optimizer and the objective that it minimises. ``rate`` is a factor on the learning rate."""

    name: str
    objective: Objective
    optimizer: torch.optim.Optimizer
    rate: float = 1.0


@dataclass(frozen=True)
class Framework:
    """A generator in training. Every step runs the ``phases`` in order, the generator's first.

    ``networks`` are all trained networks by name. ``pools`` are saved with the state of a run. ``fixed`` networks are
    moved to the device, but neither trained nor saved.
    """

    generator: ResnetGenerator
    networks: dict[str, nn.Module]
    phases: tuple[Phase, ...]
    pools: dict[str, ImagePool] = field(default_factory=dict)
    fixed: tuple[nn.Module, ...] = ()


@dataclass(frozen=True)
class Discriminators:
    """A discriminator and an image pool for each translated stain, and the phase that trains the discriminators."""

    by_stain: dict[str, nn.Module]
    pools: dict[str, ImagePool]
    phase: Phase

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The discriminators by their names within a framework."""
        return {f"disc_{stain}": discriminator for stain, discriminator in self.by_stain.items()}


class DiscriminatorObjective(Objective):
    """LSGAN loss of the discriminators; ``discriminators`` and ``pools`` are by stain, ``source`` or ``target``."""

    def __init__(self, discriminators: dict[str, nn.Module], pools: dict[str, ImagePool]) -> None:
        super().__init__()
        self.discriminators = nn.ModuleDict(discriminators)
        self._pools = pools

    def forward(self, batch: PatchBatch) -> dict[str, Tensor]:  # noqa: D102
        terms = {}
        for stain, discriminator in self.discriminators.items():
            real = batch.target if stain == "target" else batch.source
            fake = self._pools[stain].query(batch.fakes[stain])
            terms[f"d_{stain}"] = lsgan_discriminator(discriminator(real), discriminator(fake))
        return terms


def build_generator(settings: NetworkSettings) -> ResnetGenerator:
    """A new generator in the official architecture, or that of ``settings.start`` with its own sizes, ready to train.

    Raises:
        ModelError: The file holds no ResNet generator.
    """
    if settings.start is not None:
        loaded = load_generator(settings.start, entry=settings.start_entry)
        trainable = isinstance(loaded.spec, ResnetSpec) and (loaded.spec.norm, loaded.spec.padding) == _TRAINED
        if not (isinstance(loaded.module, ResnetGenerator) and trainable):
            raise ModelError(
                f"{settings.start} is a {loaded.architecture} generator",
                "only ResNet generators with InstanceNorm and reflection padding can be trained",
            )
        return _smoothed(loaded.module.requires_grad_(True).train(), settings)
    blur = settings.antialias
    generator = ResnetGenerator(
        ResnetSpec(width=settings.width, blocks=settings.blocks, antialias_down=blur, antialias_up=blur)
    )
    initialise(generator, kind=settings.init, gain=settings.init_gain)
    return _smoothed(generator, settings)


def _smoothed(generator: ResnetGenerator, settings: NetworkSettings) -> ResnetGenerator:
    if settings.smooth_norm:
        smooth_norms(generator)
    return generator


def build_discriminators(
    settings: NetworkSettings, stains: Sequence[str], *, pool: int = 0, rate: float = 1.0
) -> Discriminators:
    """New discriminators for the stains ``source`` or ``target``, with image pools of size ``pool``.

    ``rate`` is a factor on the learning rate.
    """
    discriminators: dict[str, nn.Module] = {stain: _discriminator(settings) for stain in stains}
    pools = {stain: ImagePool(pool) for stain in stains}
    objective = DiscriminatorObjective(discriminators, pools)
    return Discriminators(discriminators, pools, Phase("discriminator", objective, adam(objective), rate=rate))


def _discriminator(settings: NetworkSettings) -> PatchDiscriminator:
    discriminator = PatchDiscriminator(settings.disc_width, layers=settings.disc_layers, antialias=settings.antialias)
    initialise(discriminator, kind=settings.init, gain=settings.init_gain)
    return discriminator


def adam(*modules: nn.Module) -> torch.optim.Adam:
    """Adam over all parameters of the modules; the learning rate is set before every step."""
    return torch.optim.Adam((p for module in modules for p in module.parameters()), betas=_BETAS)


def adversarial_loss(discriminator: nn.Module, fake: Tensor) -> Tensor:
    """The generator's LSGAN loss, a scalar; the discriminator's parameters receive no gradient."""
    with frozen(discriminator):
        return lsgan_generator(discriminator(fake))
