"""CycleGAN (Zhu et al., ICCV 2017): two generators that undo each other, two discriminators."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from kin_cli.training.framework import (
    Framework,
    Objective,
    PatchBatch,
    Phase,
    adam,
    build_discriminators,
    build_generator,
    fooled,
    warm_terms,
)
from kin_cli.training.settings import CycleGanLosses, NetworkSettings


def build_cyclegan(network: NetworkSettings, losses: CycleGanLosses) -> Framework:
    """Networks, optimizers and phases of a CycleGAN."""
    g_ab, g_ba = build_generator(network), build_generator(network)
    against = build_discriminators(network, ["target", "source"], pool=losses.pool)
    generators = CycleObjective(g_ab, g_ba, discriminators=against.discriminators, losses=losses)
    return Framework(
        generator=g_ab,
        networks={"generator": g_ab, "back": g_ba, **against.networks},
        phases=(Phase("generators", generators, adam(g_ab, g_ba)), against.phase),
        pools=against.pools,
    )


class CycleObjective(Objective):
    """LSGAN in both directions + λ (cycle + identity share · identity) in L1."""

    def __init__(
        self, g_ab: nn.Module, g_ba: nn.Module, *, discriminators: dict[str, nn.Module], losses: CycleGanLosses
    ) -> None:
        super().__init__()
        self.g_ab, self.g_ba = g_ab, g_ba
        self._discriminators, self._losses = (
            dict(discriminators),
            losses,
        )  # a plain dict: not among this objective's parameters

    def forward(self, batch: PatchBatch) -> dict[str, Tensor]:  # noqa: D102
        if batch.warm:
            return warm_terms(self.g_ab, batch)
        source, target = batch.source, batch.target
        fake_target, fake_source = self.g_ab(source), self.g_ba(target)
        batch.made = {"target": fake_target.detach(), "source": fake_source.detach()}
        weight = self._losses.cycle
        terms = {
            "gan_target": fooled(self._discriminators["target"], fake_target),
            "gan_source": fooled(self._discriminators["source"], fake_source),
            "cycle_source": weight * _l1(self.g_ba(fake_target), source),
            "cycle_target": weight * _l1(self.g_ab(fake_source), target),
        }
        if self._losses.identity > 0:
            weight *= self._losses.identity
            terms["identity_target"] = weight * _l1(self.g_ab(target), target)
            terms["identity_source"] = weight * _l1(self.g_ba(source), source)
        return terms


def _l1(made: Tensor, wanted: Tensor) -> Tensor:
    return F.l1_loss(made.float(), wanted)
