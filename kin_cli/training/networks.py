"""Networks beside the generator: PatchGAN, PatchNCE's projection head, VGG16 features, image pool, EMA."""

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
from kin_cli.training.smooth_norm import plain_norms

_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)  # 0: pooling
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


def initialise(module: nn.Module, *, kind: Literal["normal", "xavier"], gain: float) -> None:
    """Redraw the weights of every convolution and linear layer, in place, and set biases to 0."""
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
    """In graphs built inside the ``with`` block, pass gradients through the modules but not into their parameters."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al., CVPR 2017): images (B, 3, H, W) to raw scores (B, 1, h, w), one per receptive field.

    The receptive field is 70 px for 3 downsampling ``layers``. With ``antialias`` they blur, as in CUT, instead of
    striding.
    """

    def __init__(self, width: int, *, layers: int = 3, antialias: bool = False) -> None:
        super().__init__()
        stages: list[nn.Module] = _downsampling(3, width, antialias=antialias, norm=False)
        channels = width
        for number in range(1, layers):
            wider = width * min(2**number, 8)
            stages += _downsampling(channels, wider, antialias=antialias, norm=True)
            channels = wider
        wider = width * min(2**layers, 8)
        stages += [nn.Conv2d(channels, wider, 4, padding=1), nn.InstanceNorm2d(wider), nn.LeakyReLU(0.2, inplace=True)]
        self.model = nn.Sequential(*stages, nn.Conv2d(wider, 1, 4, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Score a batch."""
        return cast(Tensor, self.model(x))


def _downsampling(channels: int, wider: int, *, antialias: bool, norm: bool) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(channels, wider, 4, stride=1 if antialias else 2, padding=1)]
    if norm:
        layers.append(nn.InstanceNorm2d(wider))
    layers.append(nn.LeakyReLU(0.2, inplace=True))
    return [*layers, BlurDownsample(wider)] if antialias else layers


class PatchProjection(nn.Module):
    """CUT's projection head: features at given places pass a small MLP per layer and are scaled to unit length.

    ``channels`` are those of the layers; 256 is the paper's ``dim`` (Park et al., ECCV 2020).
    """

    def __init__(self, channels: Sequence[int], *, dim: int = 256) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(c, dim), nn.ReLU(), nn.Linear(dim, dim)) for c in channels)

    def forward(self, features: Sequence[Tensor], places: Sequence[Tensor]) -> list[Tensor]:
        """Project each layer (B, C, h, w) at its flat places (N,) to unit vectors (B, N, dim) float32."""
        projected = []
        for head, layer, place in zip(self.heads, features, places, strict=True):
            picked = layer.flatten(2)[:, :, place].transpose(1, 2)
            projected.append(F.normalize(head(picked).float(), dim=-1))
        return projected


def random_places(features: Sequence[Tensor], count: int) -> list[Tensor]:
    """Up to ``count`` distinct flat indices into h·w for each layer (B, C, h, w), from torch's CPU generator."""
    sizes = [layer.shape[-2] * layer.shape[-1] for layer in features]
    # on the CPU, so that a seed gives the same places on every device
    return [torch.randperm(size)[:count].to(layer.device) for size, layer in zip(sizes, features, strict=True)]


def forward_with_features(model: nn.Sequential, x: Tensor, *, layers: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """Output of a generator's ``model``, and the features of the ``layers`` (indices), in the order of the network."""
    features = []
    for index, layer in enumerate(model):
        x = layer(x)
        if index in layers:
            features.append(_protected(x, model, index))
    return x, features


def encode(model: nn.Sequential, x: Tensor, *, layers: Sequence[int]) -> list[Tensor]:
    """The features of ``forward_with_features`` alone; layers after the last of them are not run."""
    return forward_with_features(cast(nn.Sequential, model[: max(layers) + 1]), x, layers=layers)[1]


def _protected(x: Tensor, model: nn.Sequential, index: int) -> Tensor:
    # an in-place ReLU would overwrite the features
    following = model[index + 1] if index + 1 < len(model) else None
    return x.clone() if getattr(following, "inplace", False) else x


class VggFeatures(nn.Module):
    """The convolutions of VGG16, not trained: images in [-1, 1] to the features after some of its ReLUs.

    ``layers`` are numbers of ReLUs, 0 to 12. Keys are torchvision's (``features.N.weight``).
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
        """Load weights with torchvision's keys; the file may hold the whole classifier.

        Raises:
            ModelError: The file is absent, unreadable, or holds other weights.
        """
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


class ImagePool:
    """Up to ``size`` earlier translations for a discriminator, so that it does not forget them.

    Shrivastava et al., CVPR 2017. They are kept on the CPU as uint8, which real patches are anyway: a quarter of the
    memory and of the state file.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.images: list[Tensor] = []

    def query(self, fakes: Tensor) -> Tensor:
        """Return the ``fakes`` (B, 3, H, W); in a full pool each is swapped for an earlier one half of the time."""
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


class Ema:
    """Exponential moving average of a generator: p ← d p + (1 - d) p', d = min(decay, (1 + n) / (10 + n)).

    The smaller decay of the first updates n lets the random start fade. A run saves this generator as its result.
    """

    def __init__(self, generator: ResnetGenerator, decay: float) -> None:
        self.module = copy.deepcopy(generator).eval().requires_grad_(False)
        plain_norms(self.module)
        self._decay, self._updates = decay, 0

    @torch.no_grad()
    def update(self, generator: ResnetGenerator) -> None:
        """Average in the generator's present parameters."""
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        for average, parameter in zip(self.module.parameters(), generator.parameters(), strict=True):
            average.lerp_(parameter, 1.0 - decay)
        self._updates += 1

    def restore(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Take the state after ``updates`` updates."""
        self.module.load_state_dict(state)
        self._updates = updates
