"""A small classifier of patches for the downstream check, trained in minutes on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from kin_cli.geometry import Doubles, Pixels
from kin_cli.training.patches import to_tensor

_INPUT_PX = 128
_WIDTHS = (16, 32, 64, 64)
_BATCH = 32
_RATE = 2e-3


class PatchClassifier:
    """Four strided convolutions, averaged over the patch, to one score per class. Patches come from ``shrunk``."""

    def __init__(self, classes: int, *, seed: int = 0) -> None:
        self._classes, self._seed = classes, seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._network = _network(classes)

    def fit(self, patches: Sequence[Pixels], labels: Sequence[int], *, epochs: int = 20) -> None:
        """Train on patches and their classes, turned and mirrored at random; rare classes weigh more."""
        inputs, wanted = to_tensor(patches), torch.tensor(labels)
        counts = torch.bincount(wanted, minlength=self._classes).clamp(min=1)
        weight = len(wanted) / (self._classes * counts.float())
        steps = epochs * -(-len(wanted) // _BATCH)
        optimizer = torch.optim.AdamW(self._network.parameters(), lr=_RATE, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps + 1)
        self._network.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed + 1)
            for _ in range(epochs):
                for part in torch.split(torch.randperm(len(wanted)), _BATCH):
                    loss = F.cross_entropy(self._network(_oriented(inputs[part])), wanted[part], weight=weight)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
        self._network.eval()

    @torch.inference_mode()
    def probabilities(self, patches: Sequence[Pixels]) -> Doubles:
        """Probability of each class, (n, classes) float64; rows sum to 1."""
        parts = [self._network(part).double().softmax(1) for part in torch.split(to_tensor(patches), _BATCH)]
        stacked: Doubles = torch.cat(parts).numpy()
        return stacked


def _network(classes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for width in _WIDTHS:
        layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.BatchNorm2d(width, momentum=0.3), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def shrunk(patch: Pixels) -> Pixels:
    """A square patch (h, w, 3), area-averaged to 128 px if it is larger; a step in colour remains one."""
    if patch.shape[0] <= _INPUT_PX:
        return patch
    image = torch.from_numpy(np.ascontiguousarray(patch)).permute(2, 0, 1)[None].float()
    small = F.interpolate(image, size=(_INPUT_PX, _INPUT_PX), mode="area").round().to(torch.uint8)
    found: Pixels = small[0].permute(1, 2, 0).contiguous().numpy()
    return found


def _oriented(batch: Tensor) -> Tensor:
    """A batch in one of the eight orientations, the same for all patches."""
    turned = torch.rot90(batch, int(torch.randint(4, ())), (2, 3))
    return turned.flip(3) if torch.rand(()) < 0.5 else turned


def accuracy(probabilities: Doubles, labels: NDArray[np.intp]) -> float:
    """Fraction of patches whose most probable class is the right one; NaN for no patches."""
    return float((probabilities.argmax(1) == labels).mean()) if len(labels) else float("nan")


def auc(probabilities: Doubles, labels: NDArray[np.intp]) -> float:
    """Area under the ROC curve, mean over classes of one against the others; NaN if only one class occurs."""
    present = np.unique(labels)
    if len(present) < 2:
        return float("nan")
    areas = [roc_area(probabilities[labels == c, c], probabilities[labels != c, c]) for c in present]
    return float(np.mean(areas))


def roc_area(inside: Doubles, outside: Doubles) -> float:
    """Probability that a score of ``inside`` (n,) exceeds one of ``outside`` (m,); ties count half (Mann, Whitney)."""
    ordered = np.sort(outside)
    below = np.searchsorted(ordered, inside, "left") + np.searchsorted(ordered, inside, "right")
    return float(below.mean() / (2 * len(outside)))
