"""The halo against figures known from the papers' architectures and against the gradient of a real forward."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kin_cli.models.architectures import Spec, build, halo_px, layer_blocks, measured_radius_px
from kin_cli.models.exchange import exchange_norms
from kin_cli.models.resnet import ResnetSpec, UrustSpec
from kin_cli.models.unet import UnetSpec

ANTIALIASED = {"antialias_down": True, "antialias_up": True}


@pytest.mark.parametrize(
    ("spec", "radius"), [(ResnetSpec(64, 9, **ANTIALIASED), 93), (ResnetSpec(64, 6, **ANTIALIASED), 69)]
)
def test_known_radii(spec: Spec, radius: int) -> None:
    assert halo_px(spec) == radius


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize(
    "spec", [ResnetSpec(2), ResnetSpec(2, antialias_down=True), ResnetSpec(2, antialias_up=True), UrustSpec(2)]
)
def test_radius_is_where_the_gradient_ends(spec: Spec, blocks: int) -> None:
    spec = type(spec)(**{**vars(spec), "blocks": blocks})
    network = build(spec).double().eval()
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.InstanceNorm2d | nn.ReLU):
            network.get_submodule(name.rpartition(".")[0]).register_module(name.rpartition(".")[2], nn.Identity())
    x = torch.randn(1, 3, 128, 128, dtype=torch.float64, requires_grad=True)
    distances = []
    for phase in range(4):
        y = network(x)[0, 0, 64 + phase, 64 + phase]
        (gradient,) = torch.autograd.grad(y, x)
        touched = gradient[0].abs().sum(dim=0).nonzero()
        distances.append(int((touched - 64 - phase).abs().max()))
    assert halo_px(spec) == max(distances)


def test_closed_form_of_the_unet_is_what_is_measured() -> None:
    with torch.device("meta"):
        network = build(UnetSpec(1, 5, in_channels=1, out_channels=1))
    assert halo_px(UnetSpec(64, 5)) == measured_radius_px(network, stride=32, in_channels=1) == 93


@pytest.mark.parametrize(("layers", "radius"), [([nn.Conv2d(3, 3, 7, padding=3)], 3), ([nn.Identity()], 0)])
def test_radius_of_simple_networks(layers: list[nn.Module], radius: int) -> None:
    assert measured_radius_px(nn.Sequential(*layers), stride=1) == radius


def test_measuring_leaves_the_network_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.InstanceNorm2d(3))
    before = network[0].weight.clone()
    measured_radius_px(network, stride=1)
    assert isinstance(network[1], nn.InstanceNorm2d)
    assert torch.equal(network[0].weight, before)


def test_unbounded_receptive_field_is_an_error() -> None:
    class Everywhere(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + x.mean()

    with pytest.raises(ValueError, match="wider than"):
        measured_radius_px(Everywhere(), stride=1)


SPECS: list[tuple[Spec, list[str], int]] = [
    (ResnetSpec(width=4, blocks=3), ["conv", "down 1", "down 2", "residual", "up 1", "up 2"], 64),
    (
        ResnetSpec(width=4, blocks=2, antialias_down=True, antialias_up=True, dropout=True),
        ["conv", "down 1", "down 2", "residual", "up 1", "up 2"],
        64,
    ),
    (UrustSpec(width=4, blocks=2), ["conv", "down 1", "down 2", "residual", "up 1", "up 2"], 64),
    (UnetSpec(width=2, downs=5), [*(f"down {n}" for n in (1, 2, 3)), *(f"up {n}" for n in (1, 2, 3, 4))], 64),
    (UnetSpec(width=2, downs=7), [*(f"down {n}" for n in range(1, 6)), *(f"up {n}" for n in range(1, 7))], 256),
]


@pytest.mark.parametrize(("spec", "names", "side"), SPECS, ids=lambda value: getattr(value, "architecture", ""))
def test_layer_blocks_are_those_of_the_layout(spec: Spec, names: list[str], side: int) -> None:
    """Told from the size of the feature maps: it falls along the downs, stays in the residuals, grows along the ups."""
    torch.manual_seed(0)
    module = build(spec)
    sides: list[int] = []
    for layer in module.modules():
        if isinstance(layer, nn.InstanceNorm2d):
            layer.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[-1]))
    with torch.inference_mode():
        module(torch.zeros(1, 3, side, side))
    network = exchange_norms(module, side=side)
    blocks = layer_blocks(network.layers)
    assert [block.name for block in blocks] == names
    ends = [0] + [block.channels.stop for block in blocks]
    assert [block.channels.start for block in blocks] == ends[:-1]
    assert ends[-1] == network.channels
    assert sum(block.layers for block in blocks) == len(network.layers)
    by_block = [sides.pop(0) for block in blocks for _ in range(block.layers)]
    place = 0
    previous = side + 1
    for block in blocks:
        here = by_block[place]
        assert set(by_block[place : place + block.layers]) == {here}
        if block.name.startswith("up"):
            assert here >= previous
        else:
            assert here <= previous
        previous, place = here, place + block.layers
