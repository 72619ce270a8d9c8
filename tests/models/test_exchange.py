"""Networks with table norms against torch: halos consumed, ops fused, the phased convolution."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from kin_cli.models.architectures import Spec, build, halo_px
from kin_cli.models.exchange import PhasedConv2d, exchange_norms, links
from kin_cli.models.resnet import ResnetSpec, UrustSpec
from kin_cli.models.unet import UnetSpec
from kin_cli.norm.layer import Field
from kin_cli.norm.lookup import Lookup

PATCH = 32
SPECS: list[Spec] = [
    ResnetSpec(width=2, blocks=3, antialias_down=True, antialias_up=True),
    ResnetSpec(width=2, blocks=2, affine=True, dropout=True),
    UrustSpec(width=2, blocks=3),
    UnetSpec(width=2, downs=5),
]


def _halo(spec: Spec) -> int:
    return -(-halo_px(spec) // spec.stride) * spec.stride


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.architecture}-{getattr(spec, 'blocks', 0)}")
@pytest.mark.parametrize("uniform", [True, False], ids=["uniform", "varying"])
def test_a_halo_that_is_used_up_leaves_the_core_as_it_was(spec: Spec, uniform: bool) -> None:
    torch.manual_seed(0)
    module, halo = build(spec).double(), _halo(spec)
    lookup = Lookup(PATCH, halo, "bilinear")
    rows, cols = (len(lookup.span(patches)) for patches in (2, 3))
    kept = exchange_norms(copy.deepcopy(module), side=64)
    stats = torch.rand(1, *((1, 1) if uniform else (rows, cols)), 2, kept.channels)
    field = Field(stats.clamp(min=0.2), lookup, (2, 3))
    x = torch.rand(1, 3, 2 * PATCH + 2 * halo, 3 * PATCH + 2 * halo, dtype=torch.float64) * 2 - 1
    whole, shrunk = kept.apply(x, field), exchange_norms(module, side=64, reach_px=halo_px(spec)).apply(x, field)
    lost = 2 * spec.stride * getattr(spec, "blocks", 0)  # two convolutions a block, one feature each
    assert [a - b for a, b in zip(whole.shape[2:], shrunk.shape[2:], strict=True)] == [2 * lost, 2 * lost]
    inner = slice(halo - lost, lost - halo or None)
    core = whole[:, :, halo:-halo, halo:-halo]
    torch.testing.assert_close(shrunk[:, :, inner, inner], core, atol=1e-5, rtol=0)
    assert core.std() > 0.01


def test_a_halo_smaller_than_the_receptive_field_is_kept() -> None:
    spec = SPECS[0]
    lookup = Lookup(PATCH, _halo(spec) - 4, "bilinear")
    network = exchange_norms(build(spec), side=64, reach_px=halo_px(spec))
    stats = torch.ones(1, len(lookup.span(1)), len(lookup.span(1)), 2, network.channels)
    x = torch.zeros(1, 3, PATCH + 2 * lookup.halo_px, PATCH + 2 * lookup.halo_px)
    assert network.apply(x, Field(stats, lookup, (1, 1))).shape == x.shape


LINKED = [
    ResnetSpec(width=4, blocks=2),
    ResnetSpec(width=4, blocks=2, antialias_down=True, antialias_up=True, affine=True),
    ResnetSpec(width=4, blocks=1, dropout=True),
    UrustSpec(width=4, blocks=2, affine=True),
    UnetSpec(width=4, downs=5),
]


def perturbed(spec: Spec) -> nn.Module:
    torch.manual_seed(0)
    net = build(spec).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


@pytest.mark.parametrize("spec", LINKED, ids=lambda spec: spec.architecture)
def test_every_norm_of_a_known_layout_takes_its_convolution(spec: Spec) -> None:
    found = links(perturbed(spec), side=64)
    assert found
    assert all(link.convolution is not None for link in found)


def test_relu_and_padding_are_taken_where_nothing_else_reads_between() -> None:
    first, down, down2, inner, last, up, up2 = (
        links(perturbed(LINKED[0]), side=64)[:2] + links(perturbed(ResnetSpec(width=4, blocks=1)), side=64)[2:]
    )
    assert [link.relu is not None for link in (first, down, down2, inner, last, up, up2)] == [
        True, True, True, True, False, True, True,
    ]  # fmt: skip
    # before the blocks the padding shares its input with the sum; the last one stands before the final convolution
    assert [link.pad is not None for link in (first, down, down2, inner, last, up, up2)] == [
        False, False, False, True, False, False, True,
    ]  # fmt: skip


@pytest.mark.parametrize("spec", LINKED, ids=lambda spec: spec.architecture)
def test_one_image_at_a_time_is_folded_and_equals_the_original_network(spec: Spec) -> None:
    net = perturbed(spec)
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    expected = copy.deepcopy(net)(x)
    exchanged = exchange_norms(net)
    stats = exchanged.measure(x.clone())
    table = torch.stack([stats[:, 0], 1 / stats[:, 1]], dim=1)[:, None, None]
    lookup = Lookup(64, 0, "nearest")
    together = exchanged.apply(x, Field(table, lookup, (1, 1)))
    alone = torch.cat([exchanged.apply(x[i : i + 1], Field(table[i : i + 1], lookup, (1, 1))) for i in range(2)])
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
    exchanged = exchange_norms(net, side=16)
    stats = exchanged.measure(x)
    table = torch.stack([stats[:, 0], 1 / stats[:, 1]], dim=1)[:, None, None]
    found = exchanged.apply(x, Field(table, Lookup(16, 0, "nearest"), (1, 1)))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(22, 38), (10, 10), (23, 38)], ids=str)
@pytest.mark.parametrize(("out", "kernel", "bias"), [(3, (7, 7), True), (1, (5, 7), False)])
def test_it_is_the_convolution(size: tuple[int, int], out: int, kernel: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(6, out, kernel, bias=bias)
    x = torch.randn(2, 6, *size).to(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(PhasedConv2d(convolution)(x), convolution(x), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "spec", [ResnetSpec(width=4, blocks=1), UrustSpec(width=4, blocks=1)], ids=lambda s: s.architecture
)
def test_generators_end_with_it(spec: ResnetSpec | UrustSpec) -> None:
    phased = [layer for layer in exchange_norms(build(spec)).module.modules() if isinstance(layer, PhasedConv2d)]
    assert len(phased) == 1
    assert phased[0].plain.out_channels == 3
