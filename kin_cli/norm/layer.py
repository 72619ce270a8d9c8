"""The layer that stands in for InstanceNorm2d: it measures statistics (Eq. 3-4) or applies those of a table (Eq. 7)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kin_cli.norm.fused import Affine, EagerOps, FieldAxis, Finish, FusedOps, Varying
from kin_cli.norm.lookup import Lookup


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

    @property
    def uniform(self) -> bool:
        """Every pixel of a window has the same statistics."""
        return self.cells.shape[1] == self.cells.shape[2] == 1


@dataclass
class Session:
    """What the norm layers of one network share during a forward: where to leave statistics or where to read them.

    ``margin_px`` is how far the present feature maps reach beyond the windows' cores: the halo, or less where it
    ``shrinks``: layers that need not then let their maps lose a border instead of making one up.
    """

    collected: dict[int, Tensor] = field(default_factory=dict)
    current: Field | None = None
    last: int = -1
    ops: FusedOps = field(default_factory=EagerOps)
    margin_px: int = 0
    shrinks: bool = False
    _axes: dict[tuple[Lookup, int, int, int, torch.device], FieldAxis] = field(default_factory=dict)

    def begin(self, current: Field | None, *, reach_px: int | None = None) -> None:
        """Set what the next forward normalises with, None to measure. A halo of at least ``reach_px`` may shrink."""
        halo = 0 if current is None else current.lookup.halo_px
        self.current, self.margin_px = current, halo
        self.shrinks = reach_px is not None and halo >= max(1, reach_px)

    def stride(self, features: int) -> int:
        """Pixels per feature of a map with so many rows."""
        assert self.current is not None
        return int(self.current.lookup.stride(features, self.current.patches[0], margin_px=self.margin_px))

    def axis(self, features: int, patches: int, device: torch.device) -> FieldAxis:
        """Where ``features`` pixels along one axis read the present field; kept for the next batch."""
        assert self.current is not None
        key = (self.current.lookup, self.margin_px, features, patches, device)
        if key not in self._axes:
            taps = self.current.lookup.taps(features, patches, margin_px=self.margin_px)
            self._axes[key] = FieldAxis(*(torch.from_numpy(values).to(device) for values in taps))
        return self._axes[key]


class TableNorm(nn.Module):
    """Instance normalisation with statistics from a table: y = (x - mean) · scale · weight + bias.

    While no field is set it measures: the batch's own statistics are left with the session, as (B, 2, C) float32, and
    used, so that it equals InstanceNorm2d. ``correction`` 0 is the biased variance that the networks were trained
    with, 1 the unbiased one of the paper's released code; ``eps`` is added to the variance before the root.

    ``convolution`` is the one in front of it, if that is part of this layer: where a single sample has uniform
    statistics, mean and scale go into its weights and there is nothing left to normalise. ``finish`` is what follows.
    """

    def __init__(self, norm: nn.InstanceNorm2d, session: Session, *, position: int, first: int) -> None:
        super().__init__()
        self.channels, self.eps, self.correction = norm.num_features, norm.eps, 0
        self.position, self.slice = position, slice(first, first + norm.num_features)
        self.weight, self.bias = norm.weight, norm.bias
        self.convolution: nn.Conv2d | nn.ConvTranspose2d | None = None
        self.finish = Finish()
        self._session = session

    def forward(self, x: Tensor, residual: Tensor | None = None, *, bare: bool = False) -> Tensor:  # (B, C, H, W)
        """Measure or apply, as the session says; the result has the dtype of ``x``, and no border if ``bare``."""
        ops, current = self._session.ops, self._session.current
        if current is None:
            return self._measure(self._convolved(x), residual)
        finish = dataclasses.replace(self.finish, pad=0) if bare else self.finish
        cells = current.cells[..., self.slice]  # (B, r, c, 2, C)
        if not current.uniform:
            x = self._convolved(x)
            return ops(x, self._varying(x, cells, current.patches), finish, residual=residual)
        values = self._affine(*cells[:, 0, 0].unbind(1))
        if self.convolution is None or len(cells) > 1:
            return ops(self._convolved(x), values, finish, residual=residual)
        return ops(_folded(self.convolution, x, values), None, finish, residual=residual)

    def _convolved(self, x: Tensor) -> Tensor:
        return x if self.convolution is None else self.convolution(x)

    def _measure(self, x: Tensor, residual: Tensor | None) -> Tensor:
        mean, var = self._session.ops.moments(x, self.correction)
        std = torch.sqrt(var + self.eps)
        self._session.collected[self.position] = torch.stack([mean, std], dim=1)
        if self.position == self._session.last:
            raise MeasuredError
        values = self._affine(mean, torch.where(std > 0, 1 / std, 0))
        return self._session.ops(x, values, self.finish, residual=residual)

    def _affine(self, mean: Tensor, scale: Tensor) -> Affine:
        """(B, C) each."""
        if self.weight is not None:
            scale = scale * self.weight.float()
        shift = -mean * scale
        return Affine(scale, shift if self.bias is None else shift + self.bias.float())

    def _varying(self, x: Tensor, cells: Tensor, patches: tuple[int, int]) -> Varying:
        if self.weight is not None:
            mean, scale = cells.unbind(3)
            cells = torch.stack([mean, scale * self.weight.float()], dim=3)
        rows = self._session.axis(x.shape[2], patches[0], x.device)
        cols = self._session.axis(x.shape[3], patches[1], x.device)
        return Varying(cells, rows, cols, None if self.bias is None else self.bias.float())


def _folded(convolution: nn.Conv2d | nn.ConvTranspose2d, x: Tensor, values: Affine) -> Tensor:
    """The convolution of one sample (1, C, H, W), normalised: its weights scaled per output channel, its bias moved."""
    scale, shift = values.scale[0], values.shift[0]
    bias = shift if convolution.bias is None else shift + convolution.bias.float() * scale
    if isinstance(convolution, nn.ConvTranspose2d):
        weight = (convolution.weight * scale[:, None, None]).to(x.dtype)
        return F.conv_transpose2d(
            x,
            weight,
            bias.to(x.dtype),
            convolution.stride,
            convolution.padding,  # type: ignore[arg-type]  # the words "same" and "valid" are Conv2d's alone
            convolution.output_padding,
            convolution.groups,
            convolution.dilation,
        )
    weight = (convolution.weight * scale[:, None, None, None]).to(x.dtype)
    convolved: Tensor = convolution._conv_forward(x, weight, bias.to(x.dtype))
    return convolved
