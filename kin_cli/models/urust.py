"""The generator of the KIN authors (Kaminyou/URUST) under its own state-dict keys.

They use it for their CycleGAN, CUT and LSeSim alike: a ResNet generator whose changes of size are learned and follow a
full-size convolution on the way down and precede one on the way up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from kin_cli.models.resnet import require_multiple


@dataclass(frozen=True)
class UrustSpec:
    """Everything that decides the keys and shapes of a ``UrustGenerator``; ``width`` as in ``ResnetSpec``."""

    width: int = 64
    blocks: int = 9
    affine: bool = False
    in_channels: int = 3
    out_channels: int = 3

    def __post_init__(self) -> None:
        if min(self.width, self.blocks, self.in_channels, self.out_channels) < 1:
            raise ValueError(f"width, blocks and channels must be at least 1: {self}")

    @property
    def layout(self) -> str:
        """Name of the layout, after the project that uses it."""
        return "urust"

    @property
    def stride(self) -> int:
        """Height and width of an input must be multiples of this: two halvings."""
        return 4


class UrustGenerator(nn.Module):
    """Image to image, (B, in, H, W) in [-1, 1] to (B, out, H, W) in [-1, 1]; H and W multiples of 4 and at least 8.

    Raises ``ValueError`` for other sizes.
    """

    def __init__(self, spec: UrustSpec) -> None:
        super().__init__()
        self.spec = spec
        width, affine = spec.width, spec.affine
        # attribute names are theirs: they are the keys
        self.reflectionpad = nn.ReflectionPad2d(3)
        self.block1 = nn.Sequential(
            nn.Conv2d(spec.in_channels, width, 7), nn.InstanceNorm2d(width, affine=affine), nn.ReLU(inplace=True)
        )
        self.downsampleblock2 = DownBlock(width, affine=affine)
        self.downsampleblock3 = DownBlock(2 * width, affine=affine)
        self.resnetblocks4 = nn.Sequential(*(ResidualBlock(4 * width, affine=affine) for _ in range(spec.blocks)))
        self.upsampleblock5 = UpBlock(4 * width, affine=affine)
        self.upsampleblock6 = UpBlock(2 * width, affine=affine)
        self.block7 = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(width, spec.out_channels, 7), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        """Translate a batch."""
        require_multiple(x, self.spec.stride)
        x = self.block1(self.reflectionpad(x))
        x = self.downsampleblock3(self.downsampleblock2(x))
        x = self.resnetblocks4(x)
        x = self.upsampleblock6(self.upsampleblock5(x))
        return cast(Tensor, self.block7(x))


class DownBlock(nn.Module):
    """Twice the channels, half the size: (B, C, H, W) to (B, 2C, H/2, W/2)."""

    def __init__(self, channels: int, *, affine: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.instancenorm = nn.InstanceNorm2d(2 * channels, affine=affine)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = LearnedDownsample(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise, halve."""
        return cast(Tensor, self.downsample(self.relu(self.instancenorm(self.conv(x)))))


class UpBlock(nn.Module):
    """Half the channels, twice the size: (B, C, H, W) to (B, C/2, 2H, 2W)."""

    def __init__(self, channels: int, *, affine: bool) -> None:
        super().__init__()
        self.upsample = LearnedUpsample(channels)
        self.conv = nn.Conv2d(channels, channels // 2, 3, padding=1)
        self.instancenorm = nn.InstanceNorm2d(channels // 2, affine=affine)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Double, convolve, normalise."""
        return cast(Tensor, self.relu(self.instancenorm(self.conv(self.upsample(x)))))


class ResidualBlock(nn.Module):
    """x + model(x), where model is two 3×3 convolutions at constant size, (B, C, h, w) throughout."""

    def __init__(self, channels: int, *, affine: bool) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels, affine=affine),
            nn.ReLU(inplace=True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels, affine=affine),
        )

    @property
    def body(self) -> nn.Sequential:
        """What is added to the input; its last layer is a norm."""
        return self.model

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual."""
        return x + cast(Tensor, self.model(x))


class LearnedDownsample(nn.Module):
    """A strided 3×3 convolution with reflected borders: (B, C, H, W) to (B, C, H/2, W/2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reflectionpad = nn.ReflectionPad2d(1)
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Halve."""
        return cast(Tensor, self.conv(self.reflectionpad(x)))


class LearnedUpsample(nn.Module):
    """A transposed 4×4 convolution with replicated borders: (B, C, H, W) to (B, C, 2H, 2W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.ReplicationPad2d(1), nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=3)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Double."""
        return cast(Tensor, self.model(x))
