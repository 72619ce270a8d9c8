"""The table norm and the patching of networks against torch's own InstanceNorm2d and arithmetic."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kin_cli.errors import ModelError
from kin_cli.models.exchange import exchange_norms
from kin_cli.norm.layer import Field
from kin_cli.norm.lookup import Lookup

PATCH = 32


class Residual(nn.Module):
    """A small network whose layers are registered in another order than they run."""

    def __init__(self, affine: bool = False) -> None:
        super().__init__()
        self.late = nn.InstanceNorm2d(6, affine=affine)
        self.tail = nn.Conv2d(6, 3, 3, padding=1, padding_mode="reflect")
        self.head = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
        self.early = nn.InstanceNorm2d(4, affine=affine)
        self.down = nn.Conv2d(4, 6, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(torch.relu(self.early(self.head(x))))
        return torch.tanh(self.tail(nn.functional.interpolate(self.late(x), scale_factor=2)))


def network(affine: bool = False) -> Residual:
    torch.manual_seed(0)
    net = Residual(affine)
    if affine:
        for norm in (net.early, net.late):
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.uniform_(norm.bias, -1, 1)
    return net


def images(batch: int = 3) -> Tensor:
    return torch.rand(batch, 3, PATCH, PATCH, generator=torch.Generator().manual_seed(1)) * 2 - 1


def table_stats(stats: Tensor) -> Tensor:
    return torch.stack([stats[:, 0], 1 / stats[:, 1]], dim=1)[:, None, None]


@pytest.mark.parametrize("affine", [False, True])
def test_own_statistics_reproduce_the_original_network(affine: bool) -> None:
    net, x = network(affine), images()
    expected = copy.deepcopy(net).eval()(x)
    exchanged = exchange_norms(net)
    out = exchanged.apply(x, Field(table_stats(exchanged.measure(x)), Lookup(PATCH, 0, "nearest"), (1, 1)))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


def test_statistics_are_in_the_order_in_which_layers_run() -> None:
    net, x = network(), images()
    first = net.head(x)
    second = net.down(torch.relu(net.early(first)))
    exchanged = exchange_norms(net)
    stats = exchanged.measure(x)
    assert exchanged.layers == [("early", 4), ("late", 6)]
    assert stats.shape == (3, 2, 10)
    for part, features in ((slice(0, 4), first), (slice(4, 10), second)):
        torch.testing.assert_close(stats[:, 0, part], features.mean((2, 3)), atol=1e-6, rtol=1e-5)
        var = features.var((2, 3), correction=0)
        torch.testing.assert_close(stats[:, 1, part], (var + 1e-5).sqrt(), atol=1e-6, rtol=1e-5)


def test_correction_and_eps_are_the_layers_own_parameters() -> None:
    net, x = network(), images()
    first = net.head(x)
    stats = exchange_norms(net, eps=0.0, correction=1).measure(x)
    torch.testing.assert_close(stats[:, 1, :4], first.std((2, 3), correction=1), atol=1e-6, rtol=1e-5)


def test_measuring_stops_at_the_last_norm_layer() -> None:
    net = network()
    ran: list[str] = []
    net.tail.register_forward_hook(lambda *_: ran.append("tail"))
    exchanged = exchange_norms(net)
    ran.clear()
    exchanged.measure(images())
    assert not ran


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("affine", [False, True])
def test_a_field_normalizes_each_pixel_with_its_own_mean_and_scale(interpolation: str, affine: bool) -> None:
    torch.manual_seed(2)
    norm = nn.InstanceNorm2d(5, affine=affine)
    if affine:
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.uniform_(norm.bias, -1, 1)
    lookup = Lookup(PATCH, 8, interpolation)  # type: ignore[arg-type]
    side = 2 * PATCH + 16
    x, span = torch.randn(2, 5, side, side), len(lookup.span(2))
    stats = torch.rand(2, span, span, 2, 5) + 0.5
    weights = torch.from_numpy(lookup.weights(side, 2))
    mean, scale = torch.einsum("hr,brckn,wc->kbnhw", weights, stats, weights)
    expected = (x - mean) * scale
    if affine:
        expected = expected * norm.weight[:, None, None] + norm.bias[:, None, None]
    exchanged = exchange_norms(nn.Sequential(nn.Conv2d(3, 5, 1), nn.Sigmoid(), norm))
    layer = exchanged.module.get_submodule("2")
    exchanged._session.begin(Field(stats, lookup, (2, 2)))
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_a_constant_patch_without_epsilon_stays_finite() -> None:
    net = network()
    stats = exchange_norms(net, eps=0.0, correction=1).measure(torch.zeros(1, 3, PATCH, PATCH))
    assert torch.isfinite(stats).all()


def test_half_precision_keeps_statistics_in_float32() -> None:
    net = network()
    exact = exchange_norms(copy.deepcopy(net)).measure(images())
    stats = exchange_norms(net.to(torch.bfloat16)).measure(images().to(torch.bfloat16))
    assert stats.dtype == torch.float32
    np.testing.assert_allclose(stats.numpy(), exact.numpy(), atol=0.05)


def test_networks_that_a_table_cannot_hold_are_refused() -> None:
    with pytest.raises(ModelError, match="no InstanceNorm2d"):
        exchange_norms(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
    with pytest.raises(ModelError, match="running statistics"):
        exchange_norms(nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4, track_running_stats=True)))
    shared = nn.InstanceNorm2d(3)
    with pytest.raises(ModelError, match="more than once"):
        exchange_norms(nn.Sequential(nn.Conv2d(3, 3, 1), shared, nn.ReLU(), shared))
