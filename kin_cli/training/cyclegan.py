"""CycleGAN (Zhu et al., ICCV 2017): two generators that undo each other, two discriminators."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from kin_cli.training.framework import Batch, Framework, Objective, Phase, adam, build_generator, warm_terms
from kin_cli.training.networks import build_opponents, fooled
from kin_cli.training.settings import CycleGanLosses, NetworkSettings


def build_cyclegan(network: NetworkSettings, losses: CycleGanLosses) -> Framework:
    """Networks, optimizers and phases of a CycleGAN."""
    there, back = build_generator(network), build_generator(network)
    against = build_opponents(network, ["target", "source"], pool=losses.pool)
    generators = CycleObjective(there, back, judges=against.judges, losses=losses)
    return Framework(
        generator=there,
        networks={"generator": there, "back": back, **against.networks},
        phases=(Phase("generators", generators, adam(there, back)), against.phase),
        pools=against.pools,
    )


class CycleObjective(Objective):
    """LSGAN in both directions + λ (cycle + identity share · identity) in L1."""

    def __init__(
        self, there: nn.Module, back: nn.Module, *, judges: dict[str, nn.Module], losses: CycleGanLosses
    ) -> None:
        super().__init__()
        self.there, self.back = there, back
        self._judges, self._losses = dict(judges), losses  # a plain dict: not among this objective's parameters

    def forward(self, batch: Batch) -> dict[str, Tensor]:  # noqa: D102
        if batch.warm:
            return warm_terms(self.there, batch)
        source, target = batch.source, batch.target
        fake_target, fake_source = self.there(source), self.back(target)
        batch.made = {"target": fake_target.detach(), "source": fake_source.detach()}
        weight = self._losses.cycle
        terms = {
            "gan_target": fooled(self._judges["target"], fake_target),
            "gan_source": fooled(self._judges["source"], fake_source),
            "cycle_source": weight * _l1(self.back(fake_target), source),
            "cycle_target": weight * _l1(self.there(fake_source), target),
        }
        if self._losses.identity > 0:
            weight *= self._losses.identity
            terms["identity_target"] = weight * _l1(self.there(target), target)
            terms["identity_source"] = weight * _l1(self.back(source), source)
        return terms


def _l1(made: Tensor, wanted: Tensor) -> Tensor:
    return F.l1_loss(made.float(), wanted)
