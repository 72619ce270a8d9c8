"""Fréchet inception distance (FID) of two sets of tiles in the features of InceptionV3; lower is better.

M. Heusel et al., "GANs trained by a two time-scale update rule converge to a local Nash equilibrium", NIPS 2017. Tiles
are resized to 299 pixels as pytorch-fid and the KIN authors do it, bilinear and not antialiased; other ways of resizing
give other values (antialiased: about half). The distance is biased upwards for small sets, so that it is reported with
the number of tiles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from scipy import linalg
from torch import Tensor, nn

from kin_cli.errors import ModelError
from kin_cli.geometry import Doubles, Pixels

PUBLIC_FILE = "pt_inception-2015-12-05-6726825d.pth"
PUBLIC_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
FEATURES = 2048
WHERE_FROM = f"give the public file {PUBLIC_FILE} (95,628,359 bytes, from the releases of mseitzer/pytorch-fid)"
PREPROCESSING = "bilinear to 299×299, not antialiased, scaled to [-1, 1], as pytorch-fid"
FEW_TILES = FEATURES
"""With fewer tiles than features, the bias dominates the distance."""

_SIDE_PX = 299
_BATCH = {"cpu": 2, "cuda": 32}


class FeatureExtractor:
    """InceptionV3 with the weights of a file, on a device. Used by one thread at a time.

    Memory bound: the network's weights (96 MB), and 60 MB for each tile of a batch.

    Attributes:
        path: the weight file.
        batch: number of tiles per batch: 2 on a CPU, 32 on a GPU.
        sha256: digest of the file.
        public: True if the file is the published one; only then is FID comparable with values from elsewhere.

    Raises:
        ModelError: the file is missing, holds code, or is not exactly the weights of this network.
    """

    def __init__(self, path: Path, *, device: torch.device | None = None) -> None:
        self.path = path
        self._device = device or torch.device("cpu")
        self.batch = _BATCH.get(self._device.type, 2)
        self.sha256, state = _read(path)
        self.public = self.sha256 == PUBLIC_SHA256
        with torch.device("meta"):
            self._network = InceptionV3()
        known = self._network.state_dict()
        # Older files lack the batch counters, which only training uses.
        counters = {name: torch.tensor(0) for name in known if name.endswith("num_batches_tracked")}
        state = {**counters, **state}
        wrong = sorted(known.keys() ^ state.keys())
        wrong += sorted(name for name in known.keys() & state.keys() if known[name].shape != state[name].shape)
        if wrong:
            raise ModelError(
                f"{path}: not the weights of FID's InceptionV3, see {wrong[0]} ({len(wrong)} in all)", WHERE_FROM
            )
        self._network.load_state_dict(state, assign=True)
        self._network.float().eval().requires_grad_(False).to(self._device)

    @torch.inference_mode()
    def features(self, tiles: Sequence[Pixels]) -> Doubles:
        """Return the features (n, 2048) of n tiles (h, w, 3) of equal size."""
        batch = torch.from_numpy(np.stack(tiles)).to(self._device).permute(0, 3, 1, 2).float() / 255
        batch = F.interpolate(batch, size=(_SIDE_PX, _SIDE_PX), mode="bilinear", align_corners=False)
        found: Doubles = self._network(2 * batch - 1).double().cpu().numpy()
        return found


class FeatureSums:
    """Mean and covariance of a set of feature vectors, accumulated in parts.

    Memory bound: 34 MB for any number of tiles: the vectors themselves while they are fewer than their dimensions,
    then the sums of the vectors and of their products.
    """

    def __init__(self, dimensions: int = FEATURES) -> None:
        self.count = 0
        self._dimensions = dimensions
        self._rows: list[Doubles] | None = []
        self._sum = np.zeros(dimensions)
        self._products = np.zeros((0, 0))

    def add(self, features: Doubles) -> None:
        """Add feature vectors (n, d)."""
        self.count += len(features)
        self._sum += features.sum(axis=0)
        if self._rows is None:
            self._products += features.T @ features
            return
        self._rows.append(features)
        if self.count >= self._dimensions:
            rows = np.concatenate(self._rows)
            self._products, self._rows = rows.T @ rows, None

    @property
    def mean(self) -> Doubles:
        """Mean of the vectors, (d,)."""
        return self._sum / self.count

    @property
    def root(self) -> Doubles | None:
        """Matrix A (n, d) with AᵀA = the unbiased covariance; None once only the sums are kept."""
        if self._rows is None:
            return None
        root: Doubles = (np.concatenate(self._rows) - self.mean) / np.sqrt(self.count - 1)
        return root

    @property
    def covariance(self) -> Doubles:
        """Unbiased covariance of the vectors, (d, d)."""
        if (root := self.root) is not None:
            return np.asarray(root.T @ root)
        covariance = np.outer(self.mean, -self.count * self.mean)
        covariance += self._products
        return np.divide(covariance, self.count - 1, out=covariance)


class Extractor(Protocol):
    """A network that turns tiles into feature vectors, ``batch`` of them at a time."""

    batch: int

    def features(self, tiles: Sequence[Pixels]) -> Doubles:
        """Return the features (n, d) of n tiles (h, w, 3) of equal size."""
        ...


class Features(Protocol):
    """What is kept of a set of feature vectors."""

    def add(self, features: Doubles) -> None:
        """Add feature vectors (n, d)."""
        ...


class FeatureTiles:
    """Features of tiles that are added one by one; the network runs on batches of them, and ``kept`` take them all."""

    halo_px = 0

    def __init__(self, extractor: Extractor, kept: Sequence[Features]) -> None:
        self._extractor, self._kept = extractor, tuple(kept)
        self._waiting: list[Pixels] = []

    def measure(self, tile: Pixels) -> Pixels:
        """Return the tile unchanged: the network runs in ``add``, on one thread."""
        return tile

    def add(self, tile: Pixels) -> None:
        """Add a tile, and run the network when a batch is full."""
        self._waiting.append(tile)
        if len(self._waiting) == self._extractor.batch:
            self._flush()

    def finish(self) -> None:
        """Run the network on the tiles that wait for a full batch."""
        self._flush()

    def _flush(self) -> None:
        if self._waiting:
            features = self._extractor.features(self._waiting)
            for kept in self._kept:
                kept.add(features)
            self._waiting = []


class FidTiles(FeatureTiles):
    """Feature sums of tiles that are added one by one."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        self._sums = FeatureSums()
        super().__init__(extractor, [self._sums])

    @property
    def sums(self) -> FeatureSums:
        """Sums over all tiles added so far."""
        self.finish()
        return self._sums


def frechet_distance(one: FeatureSums, other: FeatureSums) -> float:
    """Squared Fréchet distance of the normal distributions fitted to two sets; NaN if one has fewer than two members.

    |m₁ - m₂|² + tr C₁ + tr C₂ - 2 tr √(C₁ C₂). With C₁ = AᵀA and C₂ = BᵀB, the last trace is the sum of the singular
    values of A Bᵀ, a small matrix for small sets. Memory bound: 170 MB for two sets of at least 2048 members.
    """
    if min(one.count, other.count) < 2:
        return float("nan")
    difference = one.mean - other.mean
    first, second = one.root, other.root
    if first is not None and second is not None:
        total = (first**2).sum() + (second**2).sum()
        cross = linalg.svdvals(first @ second.T).sum()
    else:
        total = np.trace(one.covariance) + np.trace(other.covariance)
        cross = _cross_trace(one.covariance, other.covariance)
    return float(difference @ difference + total - 2 * cross)


def _cross_trace(first: Doubles, second: Doubles) -> float:
    """Compute tr √(C₁ C₂) as tr √(√C₁ C₂ √C₁): same eigenvalues, but symmetric. Overwrites ``first``."""
    values, vectors = linalg.eigh(first, overwrite_a=True, check_finite=False)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    del vectors
    return float(np.sqrt(linalg.eigvalsh(root @ second @ root, overwrite_a=True).clip(min=0)).sum())


def _read(path: Path) -> tuple[str, dict[str, torch.Tensor]]:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file", WHERE_FROM) from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}", WHERE_FROM) from None
    except MemoryError:
        raise
    except Exception:  # a damaged file can make the reader raise anything
        raise ModelError(f"{path}: not loaded: not a PyTorch file, damaged, or it contains code", WHERE_FROM) from None
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"{path}: holds no state dict", WHERE_FROM)
    return digest.hexdigest(), dict(state)


class Unit(nn.Module):
    """Convolution without bias, batch norm, ReLU; zero-padded to keep the size unless ``bare``.

    ``channels`` is (input, output); ``kernel`` is a side or (height, width), in pixels.
    """

    def __init__(
        self, channels: tuple[int, int], kernel: int | tuple[int, int], *, stride: int = 1, bare: bool = False
    ) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (0, 0) if bare else (height // 2, width // 2)
        self.conv = nn.Conv2d(*channels, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels[1], eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, channels[1], H', W')."""
        return F.relu(self.bn(self.conv(x)))


def _mean3(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class BlockA(nn.Module):
    """Branches with kernels 1×1, 5×5, and 3×3 twice, and a 3×3 mean."""

    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Unit((inputs, 64), 1)
        self.branch5x5_1 = Unit((inputs, 48), 1)
        self.branch5x5_2 = Unit((48, 64), 5)
        self.branch3x3dbl_1 = Unit((inputs, 64), 1)
        self.branch3x3dbl_2 = Unit((64, 96), 3)
        self.branch3x3dbl_3 = Unit((96, 96), 3)
        self.branch_pool = Unit((inputs, pooled), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, 224 + pooled, H, W)."""
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(_mean3(x))], 1)


class BlockB(nn.Module):
    """Downsampling by 2, from 35 to 17 pixels."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = Unit((inputs, 384), 3, stride=2, bare=True)
        self.branch3x3dbl_1 = Unit((inputs, 64), 1)
        self.branch3x3dbl_2 = Unit((64, 96), 3)
        self.branch3x3dbl_3 = Unit((96, 96), 3, stride=2, bare=True)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, 480 + inputs, H', W')."""
        twice = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), twice, F.max_pool2d(x, 3, stride=2)], 1)


class BlockC(nn.Module):
    """Branches with 7×7 kernels, separated into rows and columns."""

    def __init__(self, width: int) -> None:
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.branch1x1 = Unit((768, 192), 1)
        self.branch7x7_1 = Unit((768, width), 1)
        self.branch7x7_2 = Unit((width, width), row)
        self.branch7x7_3 = Unit((width, 192), column)
        self.branch7x7dbl_1 = Unit((768, width), 1)
        self.branch7x7dbl_2 = Unit((width, width), column)
        self.branch7x7dbl_3 = Unit((width, width), row)
        self.branch7x7dbl_4 = Unit((width, width), column)
        self.branch7x7dbl_5 = Unit((width, 192), row)
        self.branch_pool = Unit((768, 192), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, 768, H, W)."""
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), seven, twice, self.branch_pool(_mean3(x))], 1)


class BlockD(nn.Module):
    """Downsampling by 2, from 17 to 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = Unit((768, 192), 1)
        self.branch3x3_2 = Unit((192, 320), 3, stride=2, bare=True)
        self.branch7x7x3_1 = Unit((768, 192), 1)
        self.branch7x7x3_2 = Unit((192, 192), (1, 7))
        self.branch7x7x3_3 = Unit((192, 192), (7, 1))
        self.branch7x7x3_4 = Unit((192, 192), 3, stride=2, bare=True)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, 1280, H', W')."""
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([three, seven, F.max_pool2d(x, 3, stride=2)], 1)


class BlockE(nn.Module):
    """Branches that end in a 1×3 and a 3×1 kernel side by side, and a 3×3 mean or maximum."""

    def __init__(self, inputs: int, *, maximum: bool) -> None:
        super().__init__()
        row, column = (1, 3), (3, 1)
        self._maximum = maximum
        self.branch1x1 = Unit((inputs, 320), 1)
        self.branch3x3_1 = Unit((inputs, 384), 1)
        self.branch3x3_2a = Unit((384, 384), row)
        self.branch3x3_2b = Unit((384, 384), column)
        self.branch3x3dbl_1 = Unit((inputs, 448), 1)
        self.branch3x3dbl_2 = Unit((448, 384), 3)
        self.branch3x3dbl_3a = Unit((384, 384), row)
        self.branch3x3dbl_3b = Unit((384, 384), column)
        self.branch_pool = Unit((inputs, 192), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, 2048, H, W)."""
        three = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self._maximum else _mean3(x)
        forks = [self.branch3x3_2a(three), self.branch3x3_2b(three)]
        forks += [self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice)]
        return torch.cat([self.branch1x1(x), *forks, self.branch_pool(pooled)], 1)


class InceptionV3(nn.Module):
    """InceptionV3 as FID uses it: the network that TensorFlow published in December 2015, without its classifier.

    C. Szegedy et al., "Rethinking the Inception architecture for computer vision", CVPR 2016. Modules are named as in
    the public weight file. Differences from torchvision's network: 3×3 means leave the padding out, the last block
    takes maxima instead of means, and there are 1008 classes. ``fc`` is not used, but it is in the weight file.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Unit((3, 32), 3, stride=2, bare=True)
        self.Conv2d_2a_3x3 = Unit((32, 32), 3, bare=True)
        self.Conv2d_2b_3x3 = Unit((32, 64), 3)
        self.Conv2d_3b_1x1 = Unit((64, 80), 1, bare=True)
        self.Conv2d_4a_3x3 = Unit((80, 192), 3, bare=True)
        self.Mixed_5b = BlockA(192, pooled=32)
        self.Mixed_5c = BlockA(256, pooled=64)
        self.Mixed_5d = BlockA(288, pooled=64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b = BlockC(128)
        self.Mixed_6c = BlockC(160)
        self.Mixed_6d = BlockC(160)
        self.Mixed_6e = BlockC(192)
        self.Mixed_7a = BlockD()
        self.Mixed_7b = BlockE(1280, maximum=False)
        self.Mixed_7c = BlockE(2048, maximum=True)
        self.fc = nn.Linear(FEATURES, 1008)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, 2048) of images (B, 3, H, W), -1 to 1; H and W at least 75, by convention 299."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean(dim=(2, 3))
