"""Write the reference data beside this file: a tiny generator, a picture, and what the paper makes of them.

    python tests/data/make_reference.py

This is the published method in its plainest form, to compare ``kin`` with. It shares no code with it but the procedural
slide that the picture is cut from: the network is written down once more in plain torch, statistics are taken by hooks
on ``nn.InstanceNorm2d`` while one patch after another runs through it, the table is a NumPy array, and SciPy smooths
it. Equations (3) to (7) are those of Ho et al., "Ultra-high-resolution unpaired stain transformation via kernelized
instance normalization", ECCV 2022.

Run it again only if the reference itself was wrong: other versions of torch may change weights and pixels.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn

from kin_cli.geometry import Box, Size
from kin_cli.slide.synthetic import SampleSlide

FOLDER = Path(__file__).resolve().parent
PATCH, ROWS, COLS, WIDTH, BLOCKS = 32, 5, 6, 4, 2


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        part = [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width)]
        again = [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width)]
        self.conv_block = nn.Sequential(*part, nn.ReLU(), *again)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class Generator(nn.Module):
    """The ResNet generator of CycleGAN, with the official code's names of parameters."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.ReflectionPad2d(3), nn.Conv2d(3, WIDTH, 7), nn.InstanceNorm2d(WIDTH), nn.ReLU()]
        for width in (WIDTH, 2 * WIDTH):
            down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
            layers += [down, nn.InstanceNorm2d(2 * width), nn.ReLU()]
        layers += [ResidualBlock(4 * WIDTH) for _ in range(BLOCKS)]
        for width in (4 * WIDTH, 2 * WIDTH):
            up = nn.ConvTranspose2d(width, width // 2, 3, stride=2, padding=1, output_padding=1)
            layers += [up, nn.InstanceNorm2d(width // 2), nn.ReLU()]
        self.model = nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(WIDTH, 3, 7), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


Statistics = list[np.ndarray]  # (2, channels) of each norm layer: means and standard deviations


def norm_layers(network: nn.Module) -> list[nn.InstanceNorm2d]:
    return [layer for layer in network.modules() if isinstance(layer, nn.InstanceNorm2d)]


def measured(network: nn.Module, patch: Tensor) -> Statistics:
    """Eq. (3) and (4): mean and standard deviation of every feature map in front of a norm layer."""
    found: Statistics = []

    def note(layer: nn.InstanceNorm2d, inputs: tuple[Tensor]) -> None:
        features = inputs[0][0].double()
        var = features.var(dim=(1, 2), unbiased=False)
        found.append(torch.stack([features.mean(dim=(1, 2)), (var + layer.eps).sqrt()]).numpy())

    hooks = [layer.register_forward_pre_hook(note) for layer in norm_layers(network)]
    network(patch)
    for hook in hooks:
        hook.remove()
    return found


def applied(network: nn.Module, patch: Tensor, stats: Statistics) -> Tensor:
    """Eq. (7): the network with the given statistics in its norm layers."""

    def normalize(_: nn.Module, inputs: tuple[Tensor], __: Tensor, *, mean: Tensor, std: Tensor) -> Tensor:
        return (inputs[0] - mean) / std

    hooks = []
    for layer, values in zip(norm_layers(network), stats, strict=True):
        mean, std = (torch.from_numpy(value).float()[None, :, None, None] for value in values)
        hooks.append(layer.register_forward_hook(functools.partial(normalize, mean=mean, std=std)))
    out = network(patch)
    for hook in hooks:
        hook.remove()
    return out


def smoothed(table: list[Statistics], kernel: np.ndarray) -> list[Statistics]:
    """Eq. (5) and (6): every number of the table, over the grid of patches, through the kernel; edges replicated."""
    layers = [np.stack(values).reshape(ROWS, COLS, 2, -1) for values in zip(*table, strict=True)]
    smooth = [ndimage.correlate(layer, kernel[:, :, None, None], mode="nearest") for layer in layers]
    return [[layer[row, col] for layer in smooth] for row in range(ROWS) for col in range(COLS)]


def constant(size: int) -> np.ndarray:
    return np.full((size, size), 1 / size**2)


def gaussian(size: int, std: float = 3.0) -> np.ndarray:
    at = np.arange(size) - size // 2
    kernel = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * std**2))
    return kernel / kernel.sum()


def to_tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def to_pixels(patches: list[Tensor]) -> np.ndarray:
    """Patches in rows put together, rounded to 8 bits."""
    whole = torch.cat(patches).reshape(ROWS, COLS, 3, PATCH, PATCH).permute(0, 3, 1, 4, 2)
    levels = (whole.reshape(ROWS * PATCH, COLS * PATCH, 3) + 1) * 127.5
    return levels.round().clamp(0, 255).numpy().astype(np.uint8)


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    network = Generator().eval()
    network.model[-2].weight *= 1.5  # of the last convolution: a random network's output is pale
    safetensors.torch.save_file(network.state_dict(), FOLDER / "generator.safetensors")
    pixels = SampleSlide(Size(4096, 4096), seed=3).read(0, Box(1800, 1500, COLS * PATCH, ROWS * PATCH))
    Image.fromarray(pixels).save(FOLDER / "picture.png", optimize=True)
    thumbnail = np.asarray(Image.fromarray(pixels).resize((PATCH, PATCH), Image.Resampling.BOX))
    Image.fromarray(thumbnail).save(FOLDER / "thumbnail.png", optimize=True)
    corners = [(row * PATCH, col * PATCH) for row in range(ROWS) for col in range(COLS)]
    patches = [to_tensor(pixels[y : y + PATCH, x : x + PATCH]) for y, x in corners]
    table = [measured(network, patch) for patch in patches]
    whole = [measured(network, to_tensor(thumbnail))] * len(patches)
    statistics = {
        "in": table,
        "tin": whole,
        "constant:3": smoothed(table, constant(3)),
        "gaussian:7": smoothed(table, gaussian(7)),
    }
    outputs = {
        name: to_pixels([applied(network, patch, stats) for patch, stats in zip(patches, by_patch, strict=True)])
        for name, by_patch in statistics.items()
    }
    np.savez_compressed(FOLDER / "outputs.npz", **{name.replace(":", "_"): value for name, value in outputs.items()})


if __name__ == "__main__":
    main()
