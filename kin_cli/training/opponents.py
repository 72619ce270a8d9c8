"""The discriminators of a framework: who judges, on which earlier fakes, and how they learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from kin_cli.training.framework import Batch, Objective, Phase, adam
from kin_cli.training.losses import lsgan_discriminator, lsgan_generator
from kin_cli.training.networks import PatchDiscriminator, frozen, initialise
from kin_cli.training.pool import ImagePool
from kin_cli.training.settings import NetworkSettings


@dataclass(frozen=True)
class Opponents:
    """A discriminator and a pool of earlier fakes for each stain that is judged, and the phase that trains them."""

    judges: dict[str, nn.Module]
    pools: dict[str, ImagePool]
    phase: Phase

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The discriminators by their names within a framework."""
        return {f"disc_{stain}": judge for stain, judge in self.judges.items()}


def build_opponents(settings: NetworkSettings, stains: Sequence[str], *, pool: int, rate: float = 1.0) -> Opponents:
    """New discriminators of the stains ``source`` or ``target``; ``rate`` multiplies the learning rate."""
    judges: dict[str, nn.Module] = {stain: _discriminator(settings) for stain in stains}
    pools = {stain: ImagePool(pool) for stain in stains}
    objective = JudgingObjective(judges, pools)
    return Opponents(judges, pools, Phase("discriminator", objective, adam(objective), rate=rate, repeats=True))


def _discriminator(settings: NetworkSettings) -> PatchDiscriminator:
    judge = PatchDiscriminator(settings.disc_width, layers=settings.disc_layers, antialias=settings.antialias)
    initialise(judge, kind=settings.init, gain=settings.init_gain)
    return judge


class JudgingObjective(Objective):
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
