"""CycleGAN (Zhu et al., ICCV 2017): two generators, G_AB and G_BA, and two discriminators.

A is the source stain, B the target stain; G_BA inverts G_AB.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from kin_cli.training.framework import (
    Framework,
    Objective,
    PatchBatch,
    Phase,
    adam,
    adversarial_loss,
    build_discriminators,
    build_generator,
)
from kin_cli.training.settings import CycleGanLosses, NetworkSettings
from kin_cli.training.smooth_norm import smoothed


def build_cyclegan(network: NetworkSettings, losses: CycleGanLosses) -> Framework:
    """Networks, optimizers and phases of a CycleGAN; G_AB, from source to target, is the generator."""
    g_ab, g_ba = build_generator(network), build_generator(network)
    discriminators = build_discriminators(network, ["target", "source"], pool=losses.pool)
    objective = CycleObjective(g_ab, g_ba, discriminators=discriminators.by_stain, losses=losses)
    return Framework(
        generator=g_ab,
        networks={"G_AB": g_ab, "G_BA": g_ba, **discriminators.networks},
        phases=(Phase("generators", objective, adam(g_ab, g_ba)), discriminators.phase),
        pools=discriminators.pools,
    )


class CycleObjective(Objective):
    """Adversarial loss of both directions + λ (cycle + w · identity), both in L1."""

    def __init__(
        self, g_ab: nn.Module, g_ba: nn.Module, *, discriminators: dict[str, nn.Module], losses: CycleGanLosses
    ) -> None:
        super().__init__()
        self.g_ab, self.g_ba, self._losses = g_ab, g_ba, losses
        self._discriminators = dict(discriminators)  # a plain dict does not register them as parameters

    def forward(self, batch: PatchBatch) -> dict[str, Tensor]:  # noqa: D102
        source, target = batch.source, batch.target
        with smoothed(self.g_ab, len(source)):
            fake_target = self.g_ab(source)
        with smoothed(self.g_ba, len(target)):
            fake_source = self.g_ba(target)
        batch.fakes = {"target": fake_target.detach(), "source": fake_source.detach()}
        weight = self._losses.cycle
        terms = {
            "gan_target": adversarial_loss(self._discriminators["target"], fake_target),
            "gan_source": adversarial_loss(self._discriminators["source"], fake_source),
            "cycle_source": weight * _l1(self.g_ba(fake_target), source),
            "cycle_target": weight * _l1(self.g_ab(fake_source), target),
        }
        if self._losses.identity > 0:
            weight *= self._losses.identity
            terms["identity_target"] = weight * _l1(self.g_ab(target), target)
            terms["identity_source"] = weight * _l1(self.g_ba(source), source)
        return terms | self.guided(batch, fake_target)


def _l1(output: Tensor, expected: Tensor) -> Tensor:
    return F.l1_loss(output.float(), expected)
