"""InstanceNorm in training as KIN will do it: by statistics that are partly the patch's own, partly the slides'.

Trained with InstanceNorm, a generator learns to use the statistics of a patch as a cue. KIN averages statistics over
neighbouring patches, so that the cue is another one. Here each patch is normalised by a random mixture between its own
statistics (InstanceNorm) and their moving average over earlier patches (nearly TIN): KIN's lie between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MEMORY = 0.04  # share of a new patch in the moving average: about 25 to 50 patches count, as in KIN's 7 × 7
_LEAST = 0.25  # least share of the moving average in a mixture


class SmoothNorm(nn.InstanceNorm2d):
    """InstanceNorm2d without weights, but for the first ``smoothed`` images of a batch by mixed statistics.

    The moving averages are buffers, in the state of a run. No gradient flows through them.
    """

    mean: Tensor
    std: Tensor
    seen: Tensor

    def __init__(self, norm: nn.InstanceNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps)
        self.smoothed = 0
        self.share = torch.ones(())
        self.register_buffer("mean", torch.zeros(norm.num_features))
        self.register_buffer("std", torch.ones(norm.num_features))
        self.register_buffer("seen", torch.zeros((), dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        """Normalize a batch."""
        count = self.smoothed
        if count == 0:
            return F.instance_norm(x, eps=self.eps)
        mixed = self._mixed(x[:count])
        if count == len(x):
            return mixed
        return torch.cat([mixed, F.instance_norm(x[count:], eps=self.eps)])

    def _mixed(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            # one by one: of one image, batch norm's statistics are those of InstanceNorm
            pairs = [torch.batch_norm_update_stats(one, None, None, 0.0) for one in x[:, None]]
            mean = torch.stack([mean.float() for mean, _ in pairs])  # (B, C)
            std = (torch.stack([var.float() for _, var in pairs]) + self.eps).sqrt()
            memory = torch.where(self.seen, _MEMORY, 1.0)
            self.mean.lerp_(mean.mean(0), memory)
            self.std.lerp_(std.mean(0), memory)
            self.seen.fill_(True)
            share = self.share.to(x.device)[:, None]
            mixed_mean, mixed_std = torch.lerp(mean, self.mean, share), torch.lerp(std, self.std, share)
            scale = (std / mixed_std)[..., None, None].to(x.dtype)
            shift = ((mean - mixed_mean) / mixed_std)[..., None, None].to(x.dtype)
        return F.instance_norm(x, eps=self.eps) * scale + shift


def smooth_norms(network: nn.Module) -> None:
    """Replace every InstanceNorm2d by a ``SmoothNorm``, in place."""
    _replace(network, nn.InstanceNorm2d, SmoothNorm)


def plain_norms(network: nn.Module) -> None:
    """Replace every ``SmoothNorm`` by an InstanceNorm2d, in place."""
    _replace(network, SmoothNorm, lambda norm: nn.InstanceNorm2d(norm.num_features, norm.eps))


def _replace(network: nn.Module, kind: type[nn.Module], made: Callable[[nn.InstanceNorm2d], nn.Module]) -> None:
    for name, layer in list(network.named_modules()):
        if isinstance(layer, kind) and isinstance(layer, nn.InstanceNorm2d):
            parent, _, last = name.rpartition(".")
            setattr(network.get_submodule(parent), last, made(layer))


@contextmanager
def smoothed(generator: nn.Module, count: int) -> Iterator[None]:
    """Within the ``with`` block the first ``count`` images of a batch are patches whose statistics are mixed."""
    norms = [layer for layer in generator.modules() if isinstance(layer, SmoothNorm)]
    if norms:
        share = _LEAST + (1.0 - _LEAST) * torch.rand(count)
        for norm in norms:
            norm.smoothed, norm.share = count, share
    try:
        yield
    finally:
        for norm in norms:
            norm.smoothed = 0
