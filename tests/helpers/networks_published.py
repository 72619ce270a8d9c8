"""Generators of public codebases, written from their published descriptions, with the keys that those codes save."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]
INSTANCE: Norm = nn.InstanceNorm2d
BATCH: Norm = nn.BatchNorm2d
TRACKED: Norm = partial(nn.InstanceNorm2d, track_running_stats=True)


def no_norm(_channels: int) -> nn.Module:
    return nn.Identity()


class Block(nn.Module):
    """x + chain(x), the chain under any attribute."""

    def __init__(self, attribute: str, *layers: nn.Module) -> None:
        super().__init__()
        self._attribute = attribute
        setattr(self, attribute, nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        return x + getattr(self, self._attribute)(x)


def resnet(
    width: int = 4,
    blocks: int = 2,
    *,
    norm: Norm = INSTANCE,
    bias: bool = True,
    halvings: int = 2,
    padding: str = "reflect",
    dropout: bool = False,
    up: str = "transposed",
    inside: str = "conv_block",
    ends: Callable[[int], nn.Module] = nn.ReflectionPad2d,
) -> nn.Module:
    """The ResNet of CycleGAN; of pix2pixHD's global generator with more halvings; of DeepLIIF with ``up`` resize_conv;
    of PyTorch-GAN's CycleGAN with ``up`` upsample and blocks that keep their layers in ``block``.
    """
    zeros = padding == "zero"
    border = {"reflect": [nn.ReflectionPad2d], "replicate": [nn.ReplicationPad2d], "zero": []}[padding]
    layers: list[nn.Module] = [ends(3), nn.Conv2d(3, width, 7, bias=bias), norm(width), nn.ReLU(True)]
    c = width
    for _ in range(halvings):
        layers += [nn.Conv2d(c, 2 * c, 3, stride=2, padding=1, bias=bias), norm(2 * c), nn.ReLU(True)]
        c *= 2
    for _ in range(blocks):
        first = [*(pad(1) for pad in border), nn.Conv2d(c, c, 3, padding=int(zeros), bias=bias), norm(c), nn.ReLU(True)]
        second = [*(pad(1) for pad in border), nn.Conv2d(c, c, 3, padding=int(zeros), bias=bias), norm(c)]
        layers.append(Block(inside, *first, *([nn.Dropout(0.5)] if dropout else []), *second))
    for _ in range(halvings):
        if up == "transposed":
            layers.append(nn.ConvTranspose2d(c, c // 2, 3, stride=2, padding=1, output_padding=1, bias=bias))
        elif up == "resize_conv":
            layers += [nn.Upsample(scale_factor=2, mode="nearest"), nn.ReflectionPad2d(1), nn.Conv2d(c, c // 2, 3)]
        else:
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(c, c // 2, 3, padding=1)]
        layers += [norm(c // 2), nn.ReLU(True)]
        c //= 2
    net = nn.Module()
    net.model = nn.Sequential(*layers, ends(3), nn.Conv2d(width, 3, 7), nn.Tanh())
    net.forward = net.model.forward  # type: ignore[method-assign]
    return net


class NamedResnet(nn.Module):
    """The ResNet of CycleGAN with a name for each part, as courses write it."""

    def __init__(self, width: int = 4, blocks: int = 3, norm: Norm = INSTANCE) -> None:
        super().__init__()

        def part(convolution: nn.Module, channels: int) -> nn.Sequential:
            return nn.Sequential(convolution, norm(channels), nn.ReLU(True))

        c = width
        self.border = nn.ReflectionPad2d(3)
        self.initial = part(nn.Conv2d(3, c, 7), c)
        self.down1 = part(nn.Conv2d(c, 2 * c, 3, stride=2, padding=1), 2 * c)
        self.down2 = part(nn.Conv2d(2 * c, 4 * c, 3, stride=2, padding=1), 4 * c)
        ends = [[nn.ReflectionPad2d(1), nn.Conv2d(4 * c, 4 * c, 3), norm(4 * c)] for _ in range(2 * blocks)]
        pairs = zip(ends[::2], ends[1::2], strict=True)
        self.residuals = nn.ModuleList(Block("body", *first, nn.ReLU(True), *second) for first, second in pairs)
        self.up1 = part(nn.ConvTranspose2d(4 * c, 2 * c, 3, stride=2, padding=1, output_padding=1), 2 * c)
        self.up2 = part(nn.ConvTranspose2d(2 * c, c, 3, stride=2, padding=1, output_padding=1), c)
        self.last = nn.Conv2d(c, 3, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down2(self.down1(self.initial(self.border(x))))
        for block in self.residuals:
            x = block(x)
        return self.last(self.border(self.up2(self.up1(x)))).tanh()


class UnetBlock(nn.Module):
    """A level of the U-Net of pix2pix; the activation overwrites its input, and so what the skip carries."""

    def __init__(self, outer: int, inner: int, nested: nn.Module | None, norm: Norm, *, bias: bool) -> None:
        super().__init__()
        down = [nn.LeakyReLU(0.2, True), nn.Conv2d(outer, inner, 4, stride=2, padding=1, bias=bias)]
        wide = inner if nested is None else 2 * inner
        up = [nn.ReLU(True), nn.ConvTranspose2d(wide, outer, 4, stride=2, padding=1, bias=bias), norm(outer)]
        self.model = nn.Sequential(*down, *([] if nested is None else [norm(inner), nested]), *up)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.model(x)], 1)


def unet(width: int = 2, downs: int = 5, *, norm: Norm = BATCH, bias: bool = False) -> nn.Module:
    """The U-Net of pix2pix, as BCI trains it with BatchNorm."""
    block: nn.Module | None = None
    for outer, inner in [(8, 8)] * (downs - 4) + [(4, 8), (2, 4), (1, 2)]:
        block = UnetBlock(outer * width, inner * width, block, norm, bias=bias)
    assert block is not None
    net = nn.Module()
    net.model = nn.Module()
    first, last = nn.Conv2d(3, width, 4, stride=2, padding=1, bias=bias), nn.ConvTranspose2d(2 * width, 3, 4, 2, 1)
    net.model.model = nn.Sequential(first, block, nn.ReLU(True), last, nn.Tanh())
    net.forward = net.model.model.forward  # type: ignore[method-assign]
    return net


class FlatUnet(nn.Module):
    """The U-Net of PyTorch-GAN's pix2pix, here with fewer levels: down1 … downN, up1 …, final."""

    def __init__(self, width: int = 2, downs: int = 5) -> None:
        super().__init__()
        wide = [3] + [width * min(8, 2**n) for n in range(downs)]
        self.downs = downs
        for n in range(1, downs + 1):
            layers: list[nn.Module] = [nn.Conv2d(wide[n - 1], wide[n], 4, 2, 1, bias=False)]
            if 1 < n < downs:
                layers.append(nn.InstanceNorm2d(wide[n]))
            self.add_module(f"down{n}", Part(*layers, nn.LeakyReLU(0.2), nn.Dropout(0.5)))
        for n in range(1, downs):
            before = wide[downs] if n == 1 else 2 * wide[downs - n + 1]
            layers = [nn.ConvTranspose2d(before, wide[downs - n], 4, 2, 1, bias=False)]
            self.add_module(f"up{n}", Part(*layers, nn.InstanceNorm2d(wide[downs - n]), nn.ReLU(True), nn.Dropout(0.5)))
        last = nn.Conv2d(2 * width, 3, 4, padding=1)
        self.final = nn.Sequential(nn.Upsample(scale_factor=2), nn.ZeroPad2d((1, 0, 1, 0)), last, nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        kept = [x]
        for n in range(1, self.downs + 1):
            kept.append(self.get_submodule(f"down{n}")(kept[-1]))
        x = kept.pop()
        for n in range(1, self.downs):
            x = torch.cat((self.get_submodule(f"up{n}")(x), kept.pop()), 1)
        return self.final(x)


class Part(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def trained(net: nn.Module, *, seed: int = 0) -> nn.Module:
    """The network in eval mode with random weights, and norm layers that saw some pictures."""
    torch.manual_seed(seed)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=0.1)
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
    with torch.no_grad():
        for _ in range(40):
            net.train()(torch.rand(2, 3, 64, 64) * 2 - 1)
    return net.eval()


def translated(net: nn.Module, picture: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A picture (H, W, 3) uint8 through the network's own forward."""
    x = torch.tensor(picture).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.inference_mode():
        y = net(x)[0].clamp(-1, 1)
    return (y * 127.5 + 128).floor().clamp(0, 255).permute(1, 2, 0).numpy().astype(int)


def patchwise(net: nn.Module, picture: np.ndarray[Any, Any], patch: int) -> np.ndarray[Any, Any]:
    """Every patch of a picture through the network's own forward."""
    out = np.zeros(picture.shape, int)
    for top in range(0, len(picture), patch):
        for left in range(0, picture.shape[1], patch):
            here = np.s_[top : top + patch, left : left + patch]
            out[here] = translated(net, picture[here])
    return out


def hooked_kin(net: nn.Module, picture: np.ndarray[Any, Any], patch: int) -> np.ndarray[Any, Any]:
    """KIN with kernel constant:3, by hooks on the network's InstanceNorm layers; edge cells are replicated."""
    norms = [layer for layer in net.modules() if isinstance(layer, nn.InstanceNorm2d)]
    rows, cols = len(picture) // patch, picture.shape[1] // patch
    tables: dict[nn.Module, Tensor] = {}
    here = (0, 0)

    def measure(layer: nn.Module, inputs: tuple[Tensor, ...], _out: Tensor) -> None:
        var, mean = torch.var_mean(inputs[0][0].double(), dim=(1, 2), correction=0)
        table = tables.setdefault(layer, torch.zeros(rows, cols, 2, len(mean), dtype=torch.float64))
        table[here] = torch.stack([mean, (var + 1e-5).sqrt()])

    def apply(layer: nn.Module, inputs: tuple[Tensor, ...], _out: Tensor) -> Tensor:
        near_rows = [min(max(here[0] + d, 0), rows - 1) for d in (-1, 0, 1)]
        near_cols = [min(max(here[1] + d, 0), cols - 1) for d in (-1, 0, 1)]
        mean, std = tables[layer][near_rows][:, near_cols].mean((0, 1)).float()
        out = (inputs[0] - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
        return out if layer.weight is None else out * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)

    out = np.zeros(picture.shape, int)
    for hook in (measure, apply):
        handles = [layer.register_forward_hook(hook) for layer in norms]
        for here in np.ndindex(rows, cols):
            square = np.s_[here[0] * patch : (here[0] + 1) * patch, here[1] * patch : (here[1] + 1) * patch]
            out[square] = translated(net, picture[square])
        for handle in handles:
            handle.remove()
    return out
