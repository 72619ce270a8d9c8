"""The layer that stands in for InstanceNorm2d: it measures statistics (Eq. 3-4) or applies those of a table (Eq. 7)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kin_cli.norm.lookup import Lookup

_CHUNK_BYTES = 32 << 20


class MeasuredError(Exception):
    """Raised by the last norm layer while measuring: nothing after it is needed. Caught by ``models.patch``."""


@dataclass(frozen=True)
class Field:
    """What a batch of windows is normalised with.

    cells: (B, r, c, 2, C) float32, means and scales of the cells that the windows read; patches: the windows' extent
    (rows, cols) in patches. With a single cell (r = c = 1) ``lookup`` is not used: the statistics are uniform.
    """

    cells: Tensor
    lookup: Lookup
    patches: tuple[int, int]


@dataclass
class Session:
    """What the norm layers of one network share during a forward: where to leave statistics or where to read them."""

    collected: dict[int, Tensor] = field(default_factory=dict)
    current: Field | None = None
    last: int = -1
    _weights: dict[tuple[Lookup, int, int, torch.device], Tensor] = field(default_factory=dict)

    def matrix(self, features: int, patches: int, device: torch.device) -> Tensor:
        """Sampling matrix (features, r) of the present field along one axis, kept for the next batch."""
        assert self.current is not None
        key = (self.current.lookup, features, patches, device)
        if key not in self._weights:
            self._weights[key] = torch.from_numpy(self.current.lookup.weights(features, patches)).to(device)
        return self._weights[key]


class TableNorm(nn.Module):
    """Instance normalisation with statistics from a table: y = (x - mean) · scale · weight + bias.

    While no field is set it measures: the batch's own statistics are left with the session, as (B, 2, C) float32, and
    used, so that it equals InstanceNorm2d. ``correction`` 0 is the biased variance that the networks were trained
    with, 1 the unbiased one of the paper's released code; ``eps`` is added to the variance before the root.
    """

    def __init__(self, norm: nn.InstanceNorm2d, session: Session, *, position: int, first: int) -> None:
        super().__init__()
        self.channels, self.eps, self.correction = norm.num_features, norm.eps, 0
        self.position, self.slice = position, slice(first, first + norm.num_features)
        self._session = session
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        """Measure or apply, as the session says; the result has the dtype of ``x``."""
        current = self._session.current
        if current is None:
            return self._measure(x)
        cells = current.cells[..., self.slice]  # (B, r, c, 2, C)
        if cells.shape[1] == cells.shape[2] == 1:
            return self._normalise(x, cells[:, 0, 0, 0, :, None, None], cells[:, 0, 0, 1, :, None, None])
        return self._apply_field(x, cells, current.patches)

    def _measure(self, x: Tensor) -> Tensor:
        mean, var = _moments(x.float(), self.correction)  # (B, C)
        std = torch.sqrt(var + self.eps)
        self._session.collected[self.position] = torch.stack([mean, std], dim=1)
        if self.position == self._session.last:
            raise MeasuredError
        scale = torch.where(std > 0, 1 / std, 0)
        return self._normalise(x, mean[..., None, None], scale[..., None, None])

    def _normalise(self, x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        if self.weight is not None:
            scale = scale * self.weight.float()[:, None, None]
        shift = -mean * scale
        if self.bias is not None:
            shift = shift + self.bias.float()[:, None, None]
        return torch.addcmul(shift, x.float(), scale).to(x.dtype)

    def _apply_field(self, x: Tensor, cells: Tensor, patches: tuple[int, int]) -> Tensor:
        """Normalise with a mean and a scale for every pixel; cells is (B, r, c, 2, C).

        Memory bound: the field is made for as many rows at a time as fit 32 MiB.
        """
        batch, channels, height, width = x.shape
        rows = self._session.matrix(height, patches[0], x.device)
        cols = self._session.matrix(width, patches[1], x.device)
        lines = torch.einsum("hr,brckn->bhkcn", rows, cells)  # (B, H, 2, c, C)
        step = max(1, _CHUNK_BYTES // (batch * 2 * width * channels * 4))
        out = torch.empty_like(x)
        for first in range(0, height, step):
            part = slice(first, first + step)
            mean, scale = (cols @ lines[:, part]).unbind(2)  # each (B, step, W, C), as channels-last maps lie in memory
            y = (x[:, :, part].permute(0, 2, 3, 1).float() - mean).mul_(scale)
            if self.weight is not None:
                y.mul_(self.weight.float())
            if self.bias is not None:
                y.add_(self.bias.float())
            out[:, :, part] = y.permute(0, 3, 1, 2)
        return out


def _moments(x: Tensor, correction: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of every channel of every sample, both (B, C)."""
    if x.is_cuda:
        var, mean = torch.var_mean(x, dim=(2, 3), correction=correction)
        return mean, var
    # On a CPU this is six times faster than var_mean over channels-last maps, and as exact: torch sums in a cascade.
    pixels, count = x.permute(0, 2, 3, 1), x.shape[2] * x.shape[3]
    mean = pixels.mean(2).mean(1)
    var = (pixels - mean[:, None, None]).square_().mean(2).mean(1)
    return mean, var * (count / (count - correction) if count > correction else float("nan"))
