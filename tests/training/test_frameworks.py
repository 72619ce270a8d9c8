"""Each framework's gradients go where they should, and its loss falls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kin_cli.errors import ModelError
from kin_cli.models.architectures import build
from kin_cli.training.cut import build_cut
from kin_cli.training.cyclegan import build_cyclegan
from kin_cli.training.distributed import Rank
from kin_cli.training.framework import Framework, PatchBatch, build_generator
from kin_cli.training.lsesim import build_lsesim, recoloured
from kin_cli.training.networks import Ema
from kin_cli.training.run import Stepper
from kin_cli.training.settings import CutLosses, CycleGanLosses, LsesimLosses, NetworkSettings
from tests.helpers.generators import TINY

NETWORK = NetworkSettings(width=4, blocks=2, disc_width=4, disc_layers=2, init="xavier", init_gain=1.0)
SMALL = {"window": 4, "layers": (1, 2), "random_features": True}

BUILD: dict[str, Callable[[], Framework]] = {
    "cyclegan": lambda: build_cyclegan(NETWORK, CycleGanLosses()),
    "cut": lambda: build_cut(NETWORK, CutLosses()),
    "l-lsesim": lambda: build_lsesim(NETWORK, LsesimLosses(learned=True, **SMALL)),
    "f-lsesim": lambda: build_lsesim(NETWORK, LsesimLosses(learned=False, **SMALL)),
}
TRAINED = {
    "cyclegan": [{"G_AB", "G_BA"}, {"disc_target", "disc_source"}],
    "cut": [{"generator", "projection"}, {"disc_target"}],
    "l-lsesim": [{"generator"}, {"maps"}, {"disc_target"}],
    "f-lsesim": [{"generator"}, {"disc_target"}],
}


def batch(seed: int = 0) -> PatchBatch:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, 1, 3, 8, 8, generator=generator) * 2 - 1
    source, target = nn.functional.interpolate(coarse.flatten(0, 1), size=(48, 48), mode="bilinear").unsqueeze(1)
    return PatchBatch(source, target * 0.5 + 0.4)


@pytest.fixture(params=list(BUILD))
def named(request: pytest.FixtureRequest) -> tuple[str, Framework]:
    torch.manual_seed(0)
    return request.param, BUILD[request.param]()


def with_gradient(framework: Framework) -> set[str]:
    return {
        name
        for name, module in framework.networks.items()
        if any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())
    }


def test_each_phase_gives_gradients_to_its_own_networks_only(named: tuple[str, Framework]) -> None:
    name, framework = named
    pair = batch()
    for phase, expected in zip(framework.phases, TRAINED[name], strict=True):
        torch.stack(list(phase.objective(pair).values())).sum().backward()
        assert with_gradient(framework) == expected
        owned = {id(p) for group in phase.optimizer.param_groups for p in group["params"]}
        assert owned == {id(p) for n in expected for p in framework.networks[n].parameters()}
        phase.optimizer.zero_grad()
    assert not any(fake.requires_grad for fake in pair.fakes.values())
    assert not any(p.grad is not None for module in framework.fixed for p in module.parameters())


def stepper(framework: Framework) -> Stepper:
    objectives = [phase.objective for phase in framework.phases]
    return Stepper(framework, Rank(torch.device("cpu"), bf16=False), Ema(framework.generator, 0.9), objectives, 0)


def test_a_step_changes_every_network_and_the_average_follows(named: tuple[str, Framework]) -> None:
    _, framework = named
    steps = stepper(framework)
    before = {name: _flat(module) for name, module in framework.networks.items()}
    ema = _flat(steps.ema.module)
    steps.step(0, [batch()], rate=1e-3)
    assert all(not torch.equal(before[name], _flat(module)) for name, module in framework.networks.items())
    now = _flat(framework.generator)
    torch.testing.assert_close(_flat(steps.ema.module), torch.lerp(ema, now, 0.9))


def test_structure_losses_fall_on_one_pair(named: tuple[str, Framework]) -> None:
    name, framework = named
    term = {"cyclegan": "cycle_source", "cut": "nce", "l-lsesim": "maps", "f-lsesim": "spatial"}[name]
    steps = stepper(framework)
    values = [steps.step(number, [batch()], rate=2e-3)[term] for number in range(20)]
    assert sum(values[-5:]) < 0.9 * sum(values[:5])


def test_accumulated_batches_are_one_larger_batch() -> None:
    changes = []
    for parts in (1, 2):
        torch.manual_seed(1)
        framework = build_cyclegan(NETWORK, CycleGanLosses(pool=0))
        pairs = [batch(1), batch(2)]
        if parts == 1:
            pairs = [
                PatchBatch(*(torch.cat(stain) for stain in zip(*((p.source, p.target) for p in pairs), strict=True)))
            ]
        stepper(framework).step(0, pairs, rate=1e-3)
        changes.append(torch.cat([p.grad.flatten() for p in framework.generator.parameters() if p.grad is not None]))
    torch.testing.assert_close(changes[0], changes[1], atol=1e-5, rtol=1e-3)


def test_recoloured_keeps_structure_and_changes_colour() -> None:
    torch.manual_seed(0)
    images = batch().source
    changed = recoloured(images)
    assert (changed - images).abs().mean() > 0.05
    assert changed.min() >= -1
    assert changed.max() <= 1
    grey = [x.mean(1).flatten() for x in (images, changed)]
    assert torch.corrcoef(torch.stack(grey))[0, 1] > 0.8


def _flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()]).clone()


def test_training_starts_from_an_entry_of_a_bundle(tmp_path: Path) -> None:
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        states.append(build(TINY).state_dict())
    torch.save({"netG_A2B": states[0], "netG_B2A": states[1], "epoch": 3}, tmp_path / "bundle.pth")
    with pytest.raises(ModelError, match="--entry netG_A2B"):
        build_generator(NetworkSettings(start=tmp_path / "bundle.pth"))
    started = build_generator(NetworkSettings(start=tmp_path / "bundle.pth", start_entry="netG_B2A"))
    assert started.training
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in started.state_dict().items())
