"""The last convolution in phases against torch's convolution."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kin_cli.models.architectures import build
from kin_cli.models.exchange import PhasedConv2d, exchange_norms
from kin_cli.models.resnet import ResnetSpec, UrustSpec


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
