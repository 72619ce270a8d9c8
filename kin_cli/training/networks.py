"""The networks that judge a generator: PatchGAN, the projection head of PatchNCE, VGG16 features."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kin_cli.errors import ModelError
from kin_cli.models.resnet import BlurDownsample, ResnetGenerator
from kin_cli.models.weights import read_weights

_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)  # 0: pooling
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


# FROM training.networks: The networks that judge a generator: PatchGAN, the projection head of PatchNCE, VGG16 features.


def initialise(module: nn.Module, *, kind: Literal["normal", "xavier"], gain: float) -> None:
    """Draw the weights of every convolution and linear layer anew, in place; biases become 0."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            if kind == "normal":
                nn.init.normal_(layer.weight, 0.0, gain)
            else:
                nn.init.xavier_normal_(layer.weight, gain=gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Let gradients through the modules but not into them, for graphs that are built inside the block."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al., CVPR 2017): (B, 3, H, W) to one raw score per overlapping patch, (B, 1, h, w).

    ``layers`` halvings, 70-px patches with 3; ``antialias`` halves by blurring, as CUT's does, instead of by striding.
    """

    def __init__(self, width: int, *, layers: int = 3, antialias: bool = False) -> None:
        super().__init__()
        stages: list[nn.Module] = [*_halving(3, width, antialias=antialias, norm=False)]
        channels = width
        for number in range(1, layers):
            wider = width * min(2**number, 8)
            stages += _halving(channels, wider, antialias=antialias, norm=True)
            channels = wider
        wider = width * min(2**layers, 8)
        stages += [nn.Conv2d(channels, wider, 4, padding=1), nn.InstanceNorm2d(wider), nn.LeakyReLU(0.2, inplace=True)]
        self.model = nn.Sequential(*stages, nn.Conv2d(wider, 1, 4, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Score a batch."""
        return cast(Tensor, self.model(x))


def _halving(channels: int, wider: int, *, antialias: bool, norm: bool) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(channels, wider, 4, stride=1 if antialias else 2, padding=1)]
    if norm:
        layers.append(nn.InstanceNorm2d(wider))
    layers.append(nn.LeakyReLU(0.2, inplace=True))
    return [*layers, BlurDownsample(wider)] if antialias else layers


class PatchProjection(nn.Module):
    """CUT's head: features at the same random places of each layer, through a small MLP, to unit length."""

    def __init__(self, channels: Sequence[int], *, dim: int = 256) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(c, dim), nn.ReLU(), nn.Linear(dim, dim)) for c in channels)

    def forward(self, features: Sequence[Tensor], places: Sequence[Tensor]) -> list[Tensor]:
        """Project each layer's (B, C, h, w) at its flat places (N,): (B, N, dim) float32 of unit length."""
        projected = []
        for head, layer, place in zip(self.heads, features, places, strict=True):
            picked = layer.flatten(2)[:, :, place].transpose(1, 2)
            projected.append(F.normalize(head(picked).float(), dim=-1))
        return projected


def random_places(features: Sequence[Tensor], count: int) -> list[Tensor]:
    """For each layer (B, C, h, w) up to ``count`` different flat indices into h·w, from torch's CPU generator."""
    sizes = [layer.shape[-2] * layer.shape[-1] for layer in features]
    # on the CPU so that a seed means the same on every device
    return [torch.randperm(size)[:count].to(layer.device) for size, layer in zip(sizes, features, strict=True)]


def forward_with_features(model: nn.Sequential, x: Tensor, *, layers: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """Output of a generator's ``model`` and what the layers of these indices returned, in the order of the network."""
    features = []
    for index, layer in enumerate(model):
        x = layer(x)
        if index in layers:
            features.append(_kept(x, model, index))
    return x, features


def encode(model: nn.Sequential, x: Tensor, *, layers: Sequence[int]) -> list[Tensor]:
    """The same features without running the network beyond the last of them."""
    return forward_with_features(cast(nn.Sequential, model[: max(layers) + 1]), x, layers=layers)[1]


def _kept(x: Tensor, model: nn.Sequential, index: int) -> Tensor:
    # a ReLU that works in place would overwrite what was just kept
    following = model[index + 1] if index + 1 < len(model) else None
    return x.clone() if getattr(following, "inplace", False) else x


class VggFeatures(nn.Module):
    """The convolutions of VGG16 without gradients of their own: images in [-1, 1] to features after chosen ReLUs.

    ``layers`` count the 13 ReLUs from 0. Keys are torchvision's (``features.N.weight``).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, layers: Sequence[int]) -> None:
        super().__init__()
        self.layers = tuple(sorted(layers))
        stages: list[nn.Module] = []
        channels, relus = 3, 0
        for width in _VGG16:
            if width == 0:
                stages.append(nn.MaxPool2d(2))
            elif relus <= self.layers[-1]:
                stages += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels, relus = width, relus + 1
        self.features = nn.Sequential(*stages)
        convolutions = [stage.out_channels for stage in stages if isinstance(stage, nn.Conv2d)]
        self.channels = tuple(convolutions[layer] for layer in self.layers)
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_IMAGENET_STD)[:, None, None], persistent=False)
        self.requires_grad_(False)

    def load(self, path: Path) -> None:
        """Take the weights of a file with torchvision's keys; a whole classifier's is fine. Raises ``ModelError``."""
        if not path.is_file():
            raise ModelError(f"{path}: no such file", "--vgg takes torchvision's vgg16 file; it is not downloaded")
        tensors = read_weights(path).tensors
        state = {name: tensors[name] for name in self.state_dict() if name in tensors}
        try:
            self.load_state_dict(state)
        except RuntimeError:
            raise ModelError(
                f"{path} does not hold the weights of VGG16", "torchvision's vgg16 file has keys features.0.weight …"
            ) from None

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features of a batch (B, 3, H, W), one tensor (B, C, h, w) per layer."""
        x = (x * 0.5 + 0.5 - self.mean) / self.std
        kept, relus = [], 0
        for stage in self.features:
            x = stage(x)
            if isinstance(stage, nn.ReLU):
                if relus in self.layers:
                    kept.append(x)
                relus += 1
        return kept


# FROM training.pool: Earlier fakes, kept so that a discriminator does not forget them.


class ImagePool:
    """Up to ``size`` earlier fakes, so that a discriminator sees more than the last (Shrivastava et al., CVPR 2017).

    Kept on the CPU as 8-bit, as real patches are: a quarter of the memory and of the checkpoint.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.images: list[Tensor] = []

    def query(self, fakes: Tensor) -> Tensor:
        """Each fake of a batch, or half of the time, once the pool is full, an earlier one that it replaces."""
        if self.size == 0:
            return fakes
        return torch.stack([self._swap(fake) for fake in fakes])

    def _swap(self, fake: Tensor) -> Tensor:
        stored = _as_bytes(fake)
        if len(self.images) < self.size:
            self.images.append(stored)
            return fake
        if torch.rand(()) < 0.5:
            return fake
        index = int(torch.randint(self.size, ()))
        earlier, self.images[index] = self.images[index], stored
        return (earlier.to(fake) / 127.5) - 1.0


def _as_bytes(image: Tensor) -> Tensor:
    return ((image.detach().float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()


# FROM training.average: The exponential moving average of a generator, which is what a run hands out.


class Ema:
    """A generator whose parameters follow another's: p ← d p + (1 - d) p', d = min(decay, (1 + n) / (10 + n)).

    The shorter memory of the first updates n lets the random start be forgotten.
    """

    def __init__(self, generator: ResnetGenerator, decay: float) -> None:
        self.module = copy.deepcopy(generator).eval().requires_grad_(False)
        self._decay, self._updates = decay, 0

    @torch.no_grad()
    def update(self, generator: ResnetGenerator) -> None:
        """Follow the generator by one step."""
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        for mine, theirs in zip(self.module.parameters(), generator.parameters(), strict=True):
            mine.lerp_(theirs, 1.0 - decay)
        self._updates += 1

    def restore(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Continue after ``updates`` updates."""
        self.module.load_state_dict(state)
        self._updates = updates
