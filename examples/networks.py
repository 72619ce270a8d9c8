"""Two networks as a laboratory may have them, for ``own_generator.py``; kin knows neither of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """x + two convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.norm_one = nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width)
        self.two, self.norm_two = nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual."""
        y = F.relu(self.norm_one(self.one(F.pad(x, (1, 1, 1, 1), mode="reflect"))))
        return x + self.norm_two(self.two(F.pad(y, (1, 1, 1, 1), mode="reflect")))


class GlobalGenerator(nn.Module):
    """As the global generator of pix2pixHD: four halvings, residual blocks, four doublings."""

    def __init__(self, width: int = 8, halvings: int = 4, blocks: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7), nn.InstanceNorm2d(width), nn.ReLU()]
        for n in range(halvings):
            wide = 2**n * width
            layers += [nn.Conv2d(wide, 2 * wide, 3, stride=2, padding=1), nn.InstanceNorm2d(2 * wide), nn.ReLU()]
        layers += [Residual(2**halvings * width) for _ in range(blocks)]
        for n in range(halvings, 0, -1):
            wide = 2**n * width
            up = nn.ConvTranspose2d(wide, wide // 2, 3, stride=2, padding=1, output_padding=1)
            layers += [up, nn.InstanceNorm2d(wide // 2), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        """Translate images (B, 3, H, W) in -1 to 1."""
        return self.layers(x)


class AdaptiveNorm(nn.Module):
    """Instance normalization with the scale and shift of a style (AdaIN)."""

    def __init__(self, width: int, style: int) -> None:
        super().__init__()
        self.affine = nn.Linear(style, 2 * width)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Normalize, then scale and shift."""
        scale, shift = self.affine(style)[..., None, None].chunk(2, dim=1)
        return (1 + scale) * F.instance_norm(x) + shift


class StyledGenerator(nn.Module):
    """A content path with AdaIN, and one learnt style."""

    def __init__(self, width: int = 8, style: int = 4) -> None:
        super().__init__()
        self.style = nn.Parameter(torch.randn(1, style))
        self.first, self.first_norm = nn.Conv2d(3, width, 7, padding=3), AdaptiveNorm(width, style)
        self.down, self.down_norm = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), AdaptiveNorm(2 * width, style)
        self.up, self.up_norm = nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1), AdaptiveNorm(width, style)
        self.last = nn.Conv2d(width, 3, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        """Translate images (B, 3, H, W) in -1 to 1."""
        x = F.relu(self.first_norm(self.first(x), self.style))
        x = F.relu(self.down_norm(self.down(x), self.style))
        x = F.relu(self.up_norm(self.up(x), self.style))
        return torch.tanh(self.last(x))
