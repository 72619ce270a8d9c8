"""The U-Net generator of pix2pix and CycleGAN (Isola et al., CVPR 2017) with the official state-dict keys.

Every block halves the size of its input, runs the nested block on it, and doubles the size again. Every block but the
outermost concatenates its input and its result (skip connection).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from kin_cli.models.resnet import Norm, norm_layer, require_multiple

MIN_DOWNS = 5
"""One downsampling each at 1, 2, 4 and 8 times the width, and the innermost."""


@dataclass(frozen=True)
class UnetSpec:
    """The parameters that fix keys and shapes of a ``UnetGenerator``.

    ``width`` is the number of channels after the first convolution (``ngf``); deeper levels have up to eight times as
    many. ``downs`` is the number of downsamplings, 8 for ``unet_256``. ``dropout`` leaves no trace in the keys and does
    nothing in eval mode. ``bias`` says whether convolutions other than the last have one.
    """

    width: int = 64
    downs: int = 8
    affine: bool = False
    dropout: bool = False
    in_channels: int = 3
    out_channels: int = 3
    bias: bool = True
    norm: Norm = "instance"

    def __post_init__(self) -> None:
        if min(self.width, self.in_channels, self.out_channels) < 1 or self.downs < MIN_DOWNS:
            raise ValueError(f"width and channels must be at least 1 and downs at least {MIN_DOWNS}: {self}")

    @property
    def architecture(self) -> str:
        """Official name, ``unet_`` and the side of the square that becomes one pixel; norms other than InstanceNorm."""
        kind = {"instance": "", "batch": ", BatchNorm", "none": ", no norm layers"}[self.norm]
        return f"unet_{2**self.downs}{kind}"

    @property
    def stride(self) -> int:
        """Height and width of inputs must be multiples of this."""
        return int(2**self.downs)


class UnetGenerator(nn.Module):
    """Translate images (B, in, H, W) in [-1, 1] to (B, out, H, W) in [-1, 1]; H and W multiples of 2**downs.

    Raises ``ValueError`` for other sizes, for which the two inputs of a skip connection would differ in size.
    """

    def __init__(self, spec: UnetSpec) -> None:
        super().__init__()
        self.spec = spec
        width = spec.width
        block: nn.Module = UnetBlock(_innermost(8 * width, spec))
        for _ in range(spec.downs - MIN_DOWNS):
            block = UnetBlock(_middle(8 * width, 8 * width, block, spec=spec, dropout=spec.dropout))
        for outer in (4 * width, 2 * width, width):
            block = UnetBlock(_middle(outer, 2 * outer, block, spec=spec))
        self.model = OutermostBlock(
            nn.Conv2d(spec.in_channels, width, 4, stride=2, padding=1, bias=spec.bias),
            block,
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(2 * width, spec.out_channels, 4, stride=2, padding=1),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Translate a batch."""
        require_multiple(x, self.spec.stride)
        return cast(Tensor, self.model(x))


@dataclass(frozen=True)
class FlatUnetSpec:
    """The parameters that fix keys and shapes of a ``FlatUnetGenerator``: ``width``, ``downs`` as in ``UnetSpec``."""

    width: int = 64
    downs: int = 8
    in_channels: int = 3
    out_channels: int = 3

    @property
    def architecture(self) -> str:
        """``unet_`` and the side of the square that becomes one pixel, and the project that writes it so."""
        return f"unet_{2**self.downs} (PyTorch-GAN)"

    @property
    def stride(self) -> int:
        """Height and width of inputs must be multiples of this."""
        return int(2**self.downs)

    def channels(self, level: int) -> int:
        """Channels after downsampling number ``level``, from 1 on."""
        return int(min(2 ** (level - 1), 8) * self.width)


class FlatUnetGenerator(nn.Module):
    """The U-Net of PyTorch-GAN's pix2pix, whose levels stand side by side: (B, in, H, W) to (B, out, H, W).

    Up to level ``downs`` and back; all norm layers are InstanceNorm, and no convolution but the last has a bias. The
    last doubling repeats pixels. Raises ``ValueError`` for sizes that are no multiples of 2**downs.
    """

    def __init__(self, spec: FlatUnetSpec) -> None:
        super().__init__()
        self.spec = spec
        before = spec.in_channels
        for level in range(1, spec.downs + 1):
            channels = spec.channels(level)
            layers: list[nn.Module] = [nn.Conv2d(before, channels, 4, stride=2, padding=1, bias=False)]
            # the outermost and the innermost have no norm
            layers += [] if level in (1, spec.downs) else [nn.InstanceNorm2d(channels)]
            setattr(self, f"down{level}", _Level(*layers, nn.LeakyReLU(0.2)))
            before = channels
        for number in range(1, spec.downs):
            channels = spec.channels(spec.downs - number)
            up = nn.ConvTranspose2d(before, channels, 4, stride=2, padding=1, bias=False)
            setattr(self, f"up{number}", _Level(up, nn.InstanceNorm2d(channels), nn.ReLU(inplace=True)))
            before = 2 * channels
        self.final = nn.Sequential(
            nn.Upsample(scale_factor=2),
            nn.ZeroPad2d((1, 0, 1, 0)),
            nn.Conv2d(before, spec.out_channels, 4, padding=1),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Translate a batch."""
        require_multiple(x, self.spec.stride)
        skipped = []
        for level in range(1, self.spec.downs + 1):
            x = getattr(self, f"down{level}")(x)
            skipped.append(x)
        for number in range(1, self.spec.downs):
            x = torch.cat([getattr(self, f"up{number}")(x), skipped[-1 - number]], dim=1)
        return cast(Tensor, self.final(x))


class _Level(nn.Module):
    """Some layers under the name ``model``."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Run them."""
        return cast(Tensor, self.model(x))


class OutermostBlock(nn.Module):
    """The outermost block: no skip connection and no norm layer."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Run the layers, including the nested block."""
        return cast(Tensor, self.model(x))


class UnetBlock(nn.Module):
    """One level: (B, C, h, w) to (B, 2C, h, w), the activated input and the result of the deeper levels, concatenated.

    The skip connection carries LeakyReLU(x), not x: the official block activates in place. Here this is explicit.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.LeakyReLU(0.2), *layers)

    def forward(self, x: Tensor) -> Tensor:
        """Activate, run the deeper levels, concatenate."""
        # unpacked at every call, because norm layers may be exchanged
        activate, *layers = self.model
        skipped = cast(Tensor, activate(x))
        deep = skipped
        for layer in layers:
            deep = layer(deep)
        return torch.cat([skipped, deep], dim=1)


def _innermost(channels: int, spec: UnetSpec) -> list[nn.Module]:
    # no norm between the convolutions: one pixel has no variance
    return [
        nn.Conv2d(channels, channels, 4, stride=2, padding=1, bias=spec.bias),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=spec.bias),
        norm_layer(channels, spec),
    ]


def _middle(outer: int, inner: int, nested: nn.Module, *, spec: UnetSpec, dropout: bool = False) -> list[nn.Module]:
    return [
        nn.Conv2d(outer, inner, 4, stride=2, padding=1, bias=spec.bias),
        norm_layer(inner, spec),
        nested,
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(2 * inner, outer, 4, stride=2, padding=1, bias=spec.bias),
        norm_layer(outer, spec),
        *([nn.Dropout(0.5)] if dropout else []),
    ]
