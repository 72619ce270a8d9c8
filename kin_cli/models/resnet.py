"""ResNet generators with the state-dict keys of their projects: encoder, residual blocks, decoder.

``ResnetGenerator`` is that of CycleGAN and of CUT, which differ only in how they change size. CycleGAN (Zhu et al.,
ICCV 2017) strides its convolutions; CUT (Park et al., ECCV 2020) convolves at full size and applies a fixed blur around
the decimation or the zero-insertion (Zhang, ICML 2019). Each direction may use either, which gives four architectures.

``UrustGenerator`` is that of the KIN authors (Kaminyou/URUST), who use it for CycleGAN, CUT and LSeSim alike. It learns
its changes of size: they follow a full-size convolution on the way down and precede one on the way up.

Variants of the first that keep its keys: 3 or 4 halvings (the global generator of pix2pixHD, Wang et al., CVPR 2018),
zero padding in the residual blocks and nearest-neighbour upsampling before a convolution (DeepLIIF), BatchNorm, and no
norm layers at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Literal["instance", "batch", "none"]
Padding = Literal["reflect", "zeros"]


class NormSpec(Protocol):
    """What a spec says about its norm layers."""

    @property
    def norm(self) -> Norm:
        """The kind of all norm layers."""

    @property
    def affine(self) -> bool:
        """Whether they have parameters."""


class FixedNorm(nn.Module):
    """BatchNorm2d in eval mode, (B, C, H, W) to the same shape: a fixed scale and shift per channel."""

    running_mean: Tensor
    running_var: Tensor
    eps = 1e-5

    def __init__(self, channels: int, *, affine: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise with the statistics of the training."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class NoNorm(nn.Identity):
    """In the place of a norm layer, in a network without any: the numbers in the keys count it."""


def norm_layer(channels: int, spec: NormSpec) -> nn.Module:
    """A norm layer of the kind that the spec names."""
    if spec.norm == "batch":
        return FixedNorm(channels, affine=spec.affine)
    return NoNorm() if spec.norm == "none" else nn.InstanceNorm2d(channels, affine=spec.affine)


@dataclass(frozen=True)
class ResnetSpec:
    """The parameters that fix keys and shapes of a ``ResnetGenerator``.

    ``width`` is the number of channels after the first convolution (``ngf``); the blocks have four times as many.
    ``bias`` says whether convolutions in front of a norm layer have one: True for InstanceNorm in the official code;
    ``up_bias`` the same of those on the way up, None as ``bias``. ``padding`` is that of the residual blocks.
    ``halvings`` counts the changes of size each way. ``resize`` is the padding of the convolution after upsampling by
    nearest neighbours; empty: a transposed convolution, or ``antialias_up``.
    """

    width: int = 64
    blocks: int = 9
    antialias_down: bool = False
    antialias_up: bool = False
    affine: bool = False
    dropout: bool = False
    in_channels: int = 3
    out_channels: int = 3
    bias: bool = True
    norm: Norm = "instance"
    padding: Padding = "reflect"
    halvings: int = 2
    resize: Padding | Literal[""] = ""
    up_bias: bool | None = None

    def __post_init__(self) -> None:
        if min(self.width, self.blocks, self.halvings, self.in_channels, self.out_channels) < 1:
            raise ValueError(f"width, blocks, halvings and channels must be at least 1: {self}")
        if self.resize and self.antialias_up:
            raise ValueError(f"either resized or antialiased: {self}")

    @property
    def ends(self) -> Padding:
        """Padding in front of the first and the last convolution: zeros in DeepLIIF, which pads its blocks so, too.

        The file does not show it; networks with BatchNorm or its kind of upsampling are taken for DeepLIIF's.
        """
        deepliif = self.norm == "batch" or self.resize == "reflect"
        return "zeros" if self.padding == "zeros" and deepliif else "reflect"

    @property
    def architecture(self) -> str:
        """Name of the architecture: the project that uses it, and in what the generator differs from it."""
        names = {
            (True, True): "resnet-cut",
            (False, False): "resnet-cyclegan",
            (True, False): "resnet (antialias down only)",
            (False, True): "resnet (antialias up only)",
        }
        different = [
            f"{self.halvings} halvings" if self.halvings != 2 else "",
            "zero padding" if self.padding == "zeros" else "",
            "upsampling by nearest neighbours" if self.resize else "",
            {"instance": "", "batch": "BatchNorm", "none": "no norm layers"}[self.norm],
        ]
        return ", ".join(filter(None, [names[self.antialias_down, self.antialias_up], *different]))

    @property
    def stride(self) -> int:
        """Height and width of inputs must be multiples of this: 2 for every halving."""
        return int(2**self.halvings)


class ResnetGenerator(nn.Module):
    """Translate images (B, in, H, W) in [-1, 1] to (B, out, H, W) in [-1, 1]; H and W multiples of the stride, and
    at least twice it.

    Raises ``ValueError`` for other sizes, for which strided architectures would silently return another size.
    """

    def __init__(self, spec: ResnetSpec) -> None:
        super().__init__()
        self.spec = spec
        width = spec.width
        block = ResidualBlock if (spec.norm, spec.padding) == ("instance", "reflect") else OtherResidualBlock
        self.model = nn.Sequential(
            _end(spec),
            nn.Conv2d(spec.in_channels, width, 7, bias=spec.bias),
            *_norm_relu(width, spec),
            *(layer for n in range(spec.halvings) for layer in _down(2**n * width, spec)),
            *(block(spec.stride * width, spec) for _ in range(spec.blocks)),
            *(layer for n in range(spec.halvings, 0, -1) for layer in _up(2**n * width, spec)),
            _end(spec),
            nn.Conv2d(width, spec.out_channels, 7),  # always has a bias
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Translate a batch."""
        require_multiple(x, self.spec.stride)
        return cast(Tensor, self.model(x))


class ResidualBlock(nn.Module):
    """x + conv_block(x), (B, C, h, w) to the same shape; conv_block has two 3×3 convolutions."""

    def __init__(self, channels: int, spec: ResnetSpec) -> None:
        super().__init__()
        # without dropout no layer at all: each layer shifts the numbers in the keys of those behind it
        dropout = [nn.Dropout(0.5)] if spec.dropout else []
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=spec.bias),
            *_norm_relu(channels, spec),
            *dropout,
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=spec.bias),
            nn.InstanceNorm2d(channels, affine=spec.affine),
        )

    @property
    def body(self) -> nn.Sequential:
        """The layers whose result is added to the input; the last is a norm."""
        return self.conv_block

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual."""
        return x + cast(Tensor, self.conv_block(x))


class OtherResidualBlock(nn.Module):
    """A residual block with the same keys for other paddings and norm layers than those of ``ResidualBlock``."""

    def __init__(self, channels: int, spec: ResnetSpec) -> None:
        super().__init__()
        zeros = spec.padding == "zeros"

        def convolution() -> list[nn.Module]:
            layer = nn.Conv2d(channels, channels, 3, padding=int(zeros), bias=spec.bias)
            return [layer] if zeros else [nn.ReflectionPad2d(1), layer]

        dropout = [nn.Dropout(0.5)] if spec.dropout else []
        front = [*convolution(), *_norm_relu(channels, spec), *dropout]
        self.conv_block = nn.Sequential(*front, *convolution(), norm_layer(channels, spec))

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual."""
        return x + cast(Tensor, self.conv_block(x))


class BlurDownsample(nn.Module):
    """Blur with the binomial filter of 3 taps and halve: (B, C, H, W) to (B, C, ⌈H/2⌉, ⌈W/2⌉)."""

    filt: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.border = nn.ReflectionPad2d(1)
        self.register_buffer("filt", binomial((1.0, 2.0, 1.0), channels))

    def forward(self, x: Tensor) -> Tensor:
        """Blur with reflected borders and keep every second pixel, the first included."""
        return F.conv2d(self.border(x), self.filt, stride=2, groups=x.shape[1])


class BlurUpsample(nn.Module):
    """Double and blur with the binomial filter of 4 taps, borders replicated: (B, C, H, W) to (B, C, 2H, 2W).

    With a zero inserted after every pixel, the taps 1 3 3 1 weight the two nearest pixels by 1/4 and 3/4: this is
    bilinear interpolation.
    """

    filt: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        # only for the keys of official checkpoints, whose filter is scaled by 4 for three zeros per pixel
        self.register_buffer("filt", binomial((1.0, 3.0, 3.0, 1.0), channels, total=4.0))

    def forward(self, x: Tensor) -> Tensor:
        """Interpolate: the same result, several times cheaper than a depthwise transposed convolution."""
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def binomial(taps: tuple[float, ...], channels: int, *, total: float = 1.0) -> Tensor:
    """The outer product of ``taps`` with itself, scaled to sum ``total``, per channel: (channels, 1, n, n) float32."""
    row = np.array(taps, np.float32)
    kernel = np.outer(row, row)
    # in NumPy: on the meta device, where checkpoints are read, torch.outer and repeat import torch's compiler, a second
    return torch.tensor(np.tile(kernel * np.float32(total / kernel.sum()), (channels, 1, 1, 1)))


def require_multiple(x: Tensor, stride: int) -> None:
    """Raise ``ValueError`` unless height and width of ``x`` (B, C, H, W) are multiples of ``stride``."""
    height, width = x.shape[-2:]
    if height % stride or width % stride:
        raise ValueError(f"the generator needs height and width in multiples of {stride}, got {height}×{width}")


def _end(spec: ResnetSpec) -> nn.Module:
    return nn.ZeroPad2d(3) if spec.ends == "zeros" else nn.ReflectionPad2d(3)


def _norm_relu(channels: int, spec: ResnetSpec) -> tuple[nn.Module, ...]:
    return norm_layer(channels, spec), nn.ReLU(inplace=True)


def _down(channels: int, spec: ResnetSpec) -> tuple[nn.Module, ...]:
    stride = 1 if spec.antialias_down else 2
    convolution = nn.Conv2d(channels, 2 * channels, 3, stride=stride, padding=1, bias=spec.bias)
    blur = (BlurDownsample(2 * channels),) if spec.antialias_down else ()
    return convolution, *_norm_relu(2 * channels, spec), *blur


def _up(channels: int, spec: ResnetSpec) -> tuple[nn.Module, ...]:
    narrow, bias = channels // 2, spec.bias if spec.up_bias is None else spec.up_bias
    if spec.antialias_up or spec.resize:
        inside = spec.resize != "reflect"
        convolution = nn.Conv2d(channels, narrow, 3, padding=int(inside), bias=bias)
        wider = BlurUpsample(channels) if spec.antialias_up else nn.Upsample(scale_factor=2, mode="nearest")
        border = () if inside else (nn.ReflectionPad2d(1),)
        return wider, *border, convolution, *_norm_relu(narrow, spec)
    transposed = nn.ConvTranspose2d(channels, narrow, 3, stride=2, padding=1, output_padding=1, bias=bias)
    return transposed, *_norm_relu(narrow, spec)


@dataclass(frozen=True)
class UrustSpec:
    """The parameters that fix keys and shapes of a ``UrustGenerator``; ``width`` as in ``ResnetSpec``."""

    width: int = 64
    blocks: int = 9
    affine: bool = False
    in_channels: int = 3
    out_channels: int = 3

    def __post_init__(self) -> None:
        if min(self.width, self.blocks, self.in_channels, self.out_channels) < 1:
            raise ValueError(f"width, blocks and channels must be at least 1: {self}")

    @property
    def architecture(self) -> str:
        """Name of the architecture: the project that uses it."""
        return "urust"

    @property
    def stride(self) -> int:
        """Height and width of inputs must be multiples of this: two downsamplings by 2."""
        return 4


class UrustGenerator(nn.Module):
    """Translate images (B, in, H, W) in [-1, 1] to (B, out, H, W) in [-1, 1]; H and W multiples of 4, at least 8.

    Raises ``ValueError`` for other sizes.
    """

    def __init__(self, spec: UrustSpec) -> None:
        super().__init__()
        self.spec = spec
        width, affine = spec.width, spec.affine
        # the attributes have the authors' names, because these are the keys
        self.reflectionpad = nn.ReflectionPad2d(3)
        self.block1 = nn.Sequential(
            nn.Conv2d(spec.in_channels, width, 7), nn.InstanceNorm2d(width, affine=affine), nn.ReLU(inplace=True)
        )
        self.downsampleblock2 = DownBlock(width, affine=affine)
        self.downsampleblock3 = DownBlock(2 * width, affine=affine)
        self.resnetblocks4 = nn.Sequential(*(UrustResidualBlock(4 * width, affine=affine) for _ in range(spec.blocks)))
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
    """Double the channels, halve the size: (B, C, H, W) to (B, 2C, H/2, W/2)."""

    def __init__(self, channels: int, *, affine: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.instancenorm = nn.InstanceNorm2d(2 * channels, affine=affine)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = LearnedDownsample(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise, halve the size."""
        return cast(Tensor, self.downsample(self.relu(self.instancenorm(self.conv(x)))))


class UpBlock(nn.Module):
    """Halve the channels, double the size: (B, C, H, W) to (B, C/2, 2H, 2W)."""

    def __init__(self, channels: int, *, affine: bool) -> None:
        super().__init__()
        self.upsample = LearnedUpsample(channels)
        self.conv = nn.Conv2d(channels, channels // 2, 3, padding=1)
        self.instancenorm = nn.InstanceNorm2d(channels // 2, affine=affine)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Double the size, convolve, normalise."""
        return cast(Tensor, self.relu(self.instancenorm(self.conv(self.upsample(x)))))


class UrustResidualBlock(nn.Module):
    """x + model(x), (B, C, h, w) to the same shape; model has two 3×3 convolutions."""

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
        """The layers whose result is added to the input; the last is a norm."""
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
        """Halve the size."""
        return cast(Tensor, self.conv(self.reflectionpad(x)))


class LearnedUpsample(nn.Module):
    """A transposed 4×4 convolution with replicated borders: (B, C, H, W) to (B, C, 2H, 2W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.ReplicationPad2d(1), nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=3)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Double the size."""
        return cast(Tensor, self.model(x))
