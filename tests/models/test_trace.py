"""What a norm layer takes over from its neighbours, and that it changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from kin_cli.models.architectures import Spec, build
from kin_cli.models.exchange import exchange_norms, links
from kin_cli.models.resnet import ResnetSpec, UrustSpec
from kin_cli.models.unet import UnetSpec
from kin_cli.norm.layer import Field
from kin_cli.norm.lookup import Lookup

SPECS = [
    ResnetSpec(width=4, blocks=2),
    ResnetSpec(width=4, blocks=2, antialias_down=True, antialias_up=True, affine=True),
    ResnetSpec(width=4, blocks=1, dropout=True),
    UrustSpec(width=4, blocks=2, affine=True),
    UnetSpec(width=4, downs=5),
]


def network(spec: Spec) -> nn.Module:
    torch.manual_seed(0)
    net = build(spec).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.architecture)
def test_every_norm_of_a_known_layout_takes_its_convolution(spec: Spec) -> None:
    found = links(network(spec), side=64)
    assert found
    assert all(link.convolution is not None for link in found)


def test_relu_and_padding_are_taken_where_nothing_else_reads_between() -> None:
    first, down, down2, inner, last, up, up2 = (
        links(network(SPECS[0]), side=64)[:2] + links(network(ResnetSpec(width=4, blocks=1)), side=64)[2:]
    )
    assert [link.relu is not None for link in (first, down, down2, inner, last, up, up2)] == [
        True, True, True, True, False, True, True,
    ]  # fmt: skip
    # before the blocks the padding shares its input with the sum; the last one stands before the final convolution
    assert [link.pad is not None for link in (first, down, down2, inner, last, up, up2)] == [
        False, False, False, True, False, False, True,
    ]  # fmt: skip


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.architecture)
def test_one_image_at_a_time_is_folded_and_equals_the_unpatched_network(spec: Spec) -> None:
    net = network(spec)
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    expected = copy.deepcopy(net)(x)
    patched = exchange_norms(net)
    stats = patched.measure(x.clone())
    cells = torch.stack([stats[:, 0], 1 / stats[:, 1]], dim=1)[:, None, None]
    lookup = Lookup(64, 0, "nearest")
    together = patched.apply(x, Field(cells, lookup, (1, 1)))
    alone = torch.cat([patched.apply(x[i : i + 1], Field(cells[i : i + 1], lookup, (1, 1))) for i in range(2)])
    torch.testing.assert_close(together, expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(alone, expected, atol=2e-5, rtol=0)


class Shared(nn.Module):
    """Reads what is in front of its norm, and what is behind it, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.InstanceNorm2d(4)
        self.relu, self.pad = nn.ReLU(), nn.ReflectionPad2d(1)
        self.last = nn.Conv2d(4, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        before = self.conv(x)
        after = self.norm(before)
        return self.last(self.pad(self.relu(after))) + (before * after).mean(1, keepdim=True)


def test_what_others_read_is_left_alone() -> None:
    torch.manual_seed(0)
    net = Shared()
    (link,) = links(net, side=16)
    assert (link.convolution, link.relu, link.pad) == (None, None, None)
    x = torch.randn(1, 3, 16, 16)
    expected = copy.deepcopy(net)(x)
    patched = exchange_norms(net, side=16)
    stats = patched.measure(x)
    cells = torch.stack([stats[:, 0], 1 / stats[:, 1]], dim=1)[:, None, None]
    found = patched.apply(x, Field(cells, Lookup(16, 0, "nearest"), (1, 1)))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
