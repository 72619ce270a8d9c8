"""Mixed statistics: against torch's instance norm and against normalization by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kin_cli.models.architectures import build
from kin_cli.training.networks import Ema
from kin_cli.training.smooth_norm import SmoothNorm, plain_norms, smooth_norms, smoothed
from tests.helpers.generators import TINY


def images(count: int, seed: int) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    scale = 1.0 + 3.0 * torch.rand((count, 4, 1, 1), generator=draws)
    return torch.randn((count, 4, 12, 12), generator=draws) * scale + scale


def test_outside_the_block_it_is_instance_norm() -> None:
    norm, x = SmoothNorm(nn.InstanceNorm2d(4)), images(3, 0)
    assert torch.equal(norm(x), F.instance_norm(x))
    with smoothed(norm, 2):
        made = norm(x)
    torch.testing.assert_close(made[2:], F.instance_norm(x[2:]))
    assert float((made[:2] - F.instance_norm(x[:2])).abs().max()) > 0.01 or bool(norm.seen)
    assert torch.equal(norm(x), F.instance_norm(x))


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_statistics_are_the_mixture_of_the_patchs_and_of_the_moving_average(share: float) -> None:
    norm = SmoothNorm(nn.InstanceNorm2d(4))
    norm.smoothed = 1
    mean, std = np.zeros(4), np.zeros(4)
    for number in range(30):
        x = images(1, number)
        norm.share = torch.tensor([share])
        made = norm(x).numpy()[0]
        pixels = x.double().numpy()[0].reshape(4, -1)
        own_mean, own_std = pixels.mean(1), np.sqrt(pixels.var(1) + 1e-5)
        memory = 1.0 if number == 0 else 0.04
        mean, std = mean + memory * (own_mean - mean), std + memory * (own_std - std)
        centre, spread = (1 - share) * own_mean + share * mean, (1 - share) * own_std + share * std
        expected = (x.double().numpy()[0] - centre[:, None, None]) / spread[:, None, None]
        np.testing.assert_allclose(made, expected, atol=2e-4)


def test_shares_are_drawn_once_for_all_layers_and_lie_between_a_quarter_and_one() -> None:
    network = nn.Sequential(nn.InstanceNorm2d(4), nn.ReLU(), nn.InstanceNorm2d(4))
    smooth_norms(network)
    shares = []
    for _ in range(50):
        with smoothed(network, 2):
            assert torch.equal(network[0].share, network[2].share)
            shares += network[0].share.tolist()
    assert len(set(shares)) == 100
    assert 0.25 <= min(shares) < 0.35
    assert 0.9 < max(shares) <= 1.0


def test_the_average_that_is_saved_has_plain_norms_and_the_state_keeps_the_moving_ones() -> None:
    generator = build(TINY)
    keys = set(generator.state_dict())
    x = torch.randn(1, 3, 32, 32)
    before = generator(x)
    smooth_norms(generator)
    with smoothed(generator, 1):
        generator(x)
    average = Ema(generator, 0.5).module
    assert set(average.state_dict()) == keys
    torch.testing.assert_close(average(x), before)
    assert any(name.endswith(".std") for name in generator.state_dict())
    plain_norms(generator)
    assert set(generator.state_dict()) == keys
