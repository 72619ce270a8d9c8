"""A small classifier of patches, trained in minutes on a CPU: a judge for the downstream check."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from kin_cli.metrics.colour import Floats, Pixels
from kin_cli.models.images import to_tensor

_INPUT_PX = 128
_WIDTHS = (16, 32, 64, 64)
_BATCH = 32
_RATE = 2e-3


class PatchClassifier:
    """Four strided convolutions, averaged over the patch, to one score per class. Patches are those of ``shrunk``."""

    def __init__(self, classes: int, *, seed: int = 0) -> None:
        self._classes, self._seed = classes, seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._network = _network(classes)

    def fit(self, patches: Sequence[Pixels], labels: Sequence[int], *, epochs: int = 20) -> None:
        """Learn from patches and their classes, each turned and mirrored at random; rare classes weigh more."""
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
                    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                    optimizer.step()
                    schedule.step()
        self._network.eval()

    @torch.inference_mode()
    def probabilities(self, patches: Sequence[Pixels]) -> Floats:
        """Of each class, (n, classes) float64; rows sum to 1."""
        parts = [self._network(part).double().softmax(1) for part in torch.split(to_tensor(patches), _BATCH)]
        found: Floats = torch.cat(parts).numpy()
        return found


def _network(classes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for width in _WIDTHS:
        layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.BatchNorm2d(width, momentum=0.3), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def shrunk(patch: Pixels) -> Pixels:
    """A square patch (h, w, 3) averaged over areas to 128 px where it is larger: a step in colour remains one."""
    if patch.shape[0] <= _INPUT_PX:
        return patch
    image = torch.from_numpy(np.ascontiguousarray(patch)).permute(2, 0, 1)[None].float()
    small = F.interpolate(image, size=(_INPUT_PX, _INPUT_PX), mode="area").round().to(torch.uint8)
    found: Pixels = small[0].permute(1, 2, 0).contiguous().numpy()
    return found


def _oriented(batch: Tensor) -> Tensor:
    """All patches of a batch in one of the eight orientations."""
    turned = torch.rot90(batch, int(torch.randint(4, ())), (2, 3))
    return turned.flip(3) if torch.rand(()) < 0.5 else turned


def accuracy(probabilities: Floats, labels: NDArray[np.intp]) -> float:
    """Share of patches whose likeliest class is theirs; NaN of none."""
    return float((probabilities.argmax(1) == labels).mean()) if len(labels) else float("nan")


def auc(probabilities: Floats, labels: NDArray[np.intp]) -> float:
    """Area under the ROC curve, of several classes the mean of each against the others; NaN where only one occurs.

    It is the probability that a patch of the class scores higher than another, ties counting half (Mann and Whitney).
    """
    present = np.unique(labels)
    if len(present) < 2:
        return float("nan")
    areas = [roc_area(probabilities[labels == c, c], probabilities[labels != c, c]) for c in present]
    return float(np.mean(areas))


def roc_area(inside: Floats, outside: Floats) -> float:
    """The probability that a score (n,) of ``inside`` is above one (m,) of ``outside``, ties counting half."""
    ordered = np.sort(outside)
    below = np.searchsorted(ordered, inside, "left") + np.searchsorted(ordered, inside, "right")
    return float(below.mean() / (2 * len(outside)))
