"""The ResNet generator of the CycleGAN family as its papers describe it, written without kin's own code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Wrap = Callable[[nn.Module], nn.Module]


def _same(layer: nn.Module) -> nn.Module:
    return layer


class WrittenResnet(nn.Module):
    """``wrap`` is applied to every convolution but the last, such as ``torch.nn.utils.spectral_norm``."""

    def __init__(
        self,
        width: int = 4,
        blocks: int = 2,
        *,
        wrap: Wrap = _same,
        norm: Callable[[int], nn.Module] = nn.InstanceNorm2d,
        bias: bool = True,
    ) -> None:
        super().__init__()

        def convolution(before: int, after: int, side: int = 3, **more: Any) -> nn.Module:
            return wrap(nn.Conv2d(before, after, side, bias=bias, **more))

        layers = [nn.ReflectionPad2d(3), convolution(3, width, 7), norm(width), nn.ReLU()]
        for channels in (width, 2 * width):
            layers += [convolution(channels, 2 * channels, stride=2, padding=1), norm(2 * channels), nn.ReLU()]
        layers += [_Block(4 * width, convolution, norm) for _ in range(blocks)]
        for channels in (4 * width, 2 * width):
            up = nn.ConvTranspose2d(channels, channels // 2, 3, stride=2, padding=1, output_padding=1, bias=bias)
            layers += [wrap(up), norm(channels // 2), nn.ReLU()]
        self.model = nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class _Block(nn.Module):
    def __init__(self, width: int, convolution: Callable[[int, int], nn.Module], norm: Callable[[int], nn.Module]):
        super().__init__()
        half = (nn.ReflectionPad2d(1), convolution(width, width), norm(width))
        other = (nn.ReflectionPad2d(1), convolution(width, width), norm(width))
        self.conv_block = nn.Sequential(*half, nn.ReLU(), *other)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


def written(seed: int = 0, **options: Any) -> WrittenResnet:
    """A network that has seen a few batches, so that its norms have states of a training."""
    torch.manual_seed(seed)
    network = WrittenResnet(**options)
    for _ in range(3):
        network(torch.randn(1, 3, 32, 32))
    return network.eval()


def written_state(seed: int = 0, **options: Any) -> dict[str, Tensor]:
    return dict(written(seed, **options).state_dict())


def critic() -> dict[str, Tensor]:
    """The state dict of a PatchGAN discriminator."""
    layers = nn.Sequential(nn.Conv2d(3, 4, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(4, 8, 4, 2, 1), nn.InstanceNorm2d(8))
    return {f"model.{name}": tensor for name, tensor in layers.state_dict().items()}


def under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with a prefix in front of every key, as a module in a module has it."""
    return {prefix + name: tensor for name, tensor in state.items()}
