"""The exchange of calls against the exchange of layers, and the reach that a NaN shows against the known one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from kin_cli.errors import ModelError
from kin_cli.models.architectures import Spec, build, halo_px
from kin_cli.models.calls import CallNetwork, probe, traced
from kin_cli.models.exchange import exchange_norms
from kin_cli.models.resnet import ResnetSpec, UrustSpec
from kin_cli.models.unet import FlatUnetSpec, UnetSpec
from kin_cli.norm.layer import Field
from kin_cli.norm.lookup import Lookup

SPECS: list[Spec] = [
    ResnetSpec(width=2, blocks=2, antialias_down=True, antialias_up=True, affine=True),
    ResnetSpec(width=2, blocks=2, halvings=3, padding="zeros", resize="reflect"),
    UrustSpec(width=2, blocks=2),
    UnetSpec(width=2, downs=5),
    FlatUnetSpec(width=2, downs=5),
]


def by_calls(module: nn.Module, side: int, **options: float) -> CallNetwork:
    return CallNetwork(module, traced(module, torch.zeros(1, 3, side, side))[1].sites, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.architecture)
def test_calls_are_exchanged_as_layers_are(spec: Spec) -> None:
    torch.manual_seed(0)
    module = build(spec).eval()
    calls = by_calls(module, 64, eps=0.1, correction=1)
    layers = exchange_norms(copy.deepcopy(module), eps=0.1, correction=1)
    assert [channels for _, channels in calls.layers] == [channels for _, channels in layers.layers]
    lookup = Lookup(64, 32, "bilinear")
    x = torch.rand(2, 3, 128, 192) * 2 - 1
    stats = calls.measure(x)
    torch.testing.assert_close(stats, layers.measure(x), atol=1e-4, rtol=1e-4)
    cells = 0.5 + torch.rand(2, len(lookup.span(1)), len(lookup.span(2)), 2, calls.channels)
    field = Field(cells, lookup, (1, 2))
    torch.testing.assert_close(calls.apply(x, field), layers.apply(x, field), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.architecture)
def test_a_nan_reaches_as_far_as_the_network_looks(spec: Spec) -> None:
    reach = probe(by_calls(build(spec).eval(), 64), side=64, stride=spec.stride)
    assert reach.spreaders == ()
    assert reach.radius_px is not None
    assert halo_px(spec) <= reach.radius_px + (2 if isinstance(spec, FlatUnetSpec) else 0)
    assert reach.radius_px < halo_px(spec) + spec.stride


def test_a_probe_leaves_weights_and_hooks_as_they_were() -> None:
    module = build(SPECS[0]).eval()
    before = copy.deepcopy(module.state_dict())
    probe(by_calls(module, 64), side=64, stride=4)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())


class Moody(nn.Module):
    """Normalizes bright images twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.norm(y) if x.mean() > 0 else y


def test_a_network_with_moods_is_refused() -> None:
    network = by_calls(Moody(), 16)
    dark, bright = -torch.ones(1, 3, 16, 16), torch.ones(1, 3, 16, 16)
    field = Field(torch.ones(1, 1, 1, 2, 3), Lookup(16, 0, "nearest"), (1, 1))
    network.apply(dark, field)
    with pytest.raises(ModelError, match="other norm layers for one image than for another"):
        network.apply(bright, field)


def test_memory_is_that_of_the_maps_that_are_alive() -> None:
    chain = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(20)))
    _, trace = traced(chain, torch.zeros(1, 3, 64, 64))
    one = 4 * 3 * 64 * 64
    assert one <= trace.peak_bytes <= 3 * one
