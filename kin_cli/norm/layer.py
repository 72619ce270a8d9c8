"""The layer that replaces InstanceNorm2d: y = (x - μ) · γ/σ + β, in pass 1 and in pass 2.

Pass 1 measures (Eq. 3-4): μ and σ are those of the batch's own samples, over all pixels of a channel. Pass 2 applies
(Eq. 7): μ and 1/σ come from the smoothed table, interpolated at every pixel of the window.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kin_cli.norm.fused import Affine, EagerOps, FieldAxis, Finish, FusedOps, Uniform, Varying
from kin_cli.norm.lookup import Lookup


class MeasuredError(Exception):
    """Raised by the last norm layer in pass 1, because no later layer is needed; ``models.exchange`` catches it."""


@dataclass(frozen=True)
class Field:
    """Statistics for a batch of windows of one size.

    stats: (B, r, c, 2, ΣC) float32, means and scales (1/σ) of the cells around each window; patches: size of a window
    (rows, cols) in patches. With r = c = 1 the statistics are uniform, and ``lookup`` is not used.
    """

    stats: Tensor
    lookup: Lookup
    patches: tuple[int, int]

    @property
    def uniform(self) -> bool:
        """Whether all pixels of a window have the same statistics."""
        return self.stats.shape[1] == self.stats.shape[2] == 1


@dataclass
class Session:
    """State shared by the norm layers of one network during a forward pass.

    In pass 1 ``current`` is None and the layers store their statistics in ``collected`` (position: (B, 2, C)); in pass
    2 they read ``current``. ``margin_px`` is the part of the halo that the present feature map still covers. If the
    halo ``shrinks``, convolutions of residual blocks run unpadded and consume it; else borders are reflected.
    """

    collected: dict[int, Tensor] = field(default_factory=dict)
    current: Field | None = None
    last: int = -1
    ops: FusedOps = field(default_factory=EagerOps)
    margin_px: int = 0
    shrinks: bool = False
    _axes: dict[tuple[Lookup, int, int, int, torch.device], FieldAxis] = field(default_factory=dict)

    def begin(self, current: Field | None, *, reach_px: int | None = None) -> None:
        """Set the statistics of the next forward, None to measure. A halo of at least ``reach_px`` shrinks."""
        halo = 0 if current is None else current.lookup.halo_px
        self.current, self.margin_px = current, halo
        self.shrinks = reach_px is not None and halo >= max(1, reach_px)

    def stride(self, features: int) -> int:
        """Image pixels per feature of the present map, which has ``features`` rows."""
        assert self.current is not None
        return int(self.current.lookup.stride(features, self.current.patches[0], margin_px=self.margin_px))

    def axis(self, features: int, patches: int, device: torch.device) -> FieldAxis:
        """Interpolation of the statistics along one axis of a map of ``features`` pixels; cached for the next batch."""
        assert self.current is not None
        key = (self.current.lookup, self.margin_px, features, patches, device)
        if key not in self._axes:
            taps = self.current.lookup.taps(features, patches, margin_px=self.margin_px)
            self._axes[key] = FieldAxis(*(torch.from_numpy(values).to(device) for values in taps))
        return self._axes[key]


class TableNorm(nn.Module):
    """Instance normalization of (B, C, H, W), measuring its statistics or taking them from a table.

        y = (x - μ) · γ/σ + β

    γ, β    ``weight`` and ``bias`` (C,) of the replaced layer; 1 and 0 if it has none
    pass 1  no field is set: μ and σ = √(var + eps) are those of each sample and channel (Eq. 3-4). The session keeps
            them as (B, 2, C) float32, and y equals the output of InstanceNorm2d. ``correction`` 0 is the biased
            variance, with which the networks were trained; 1 the unbiased one of the paper's released code
    pass 2  a field is set: μ and 1/σ are this layer's channels of its statistics (Eq. 7), one value per channel if the
            field is uniform, else interpolated at every pixel

    ``convolution``, if set, is the layer in front, run as part of this one: for a single sample with uniform statistics
    μ and σ are folded into its weights, and no map is normalized. ``finish`` holds the layers that follow.
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
        """Measure or apply, as the session says. The result has the dtype of ``x``; ``bare`` leaves out the padding."""
        ops, current = self._session.ops, self._session.current
        if current is None:
            return self._measure(x, residual)
        finish = dataclasses.replace(self.finish, pad=0) if bare else self.finish
        stats = current.stats[..., self.slice]  # (B, r, c, 2, C)
        if current.uniform and self.convolution is not None and len(stats) == 1 and ops.folds:
            values = Uniform(stats[:, 0, 0, 0], stats[:, 0, 0, 1], self.weight, self.bias)
            return ops(_folded(self.convolution, x, values.affine()), None, finish, residual=residual)
        x, offset = self._convolved(x)
        if current.uniform:
            values = Uniform(stats[:, 0, 0, 0], stats[:, 0, 0, 1], self.weight, self.bias, offset)
            return ops(x, values, finish, residual=residual)
        rows = self._session.axis(x.shape[2], current.patches[0], x.device)
        cols = self._session.axis(x.shape[3], current.patches[1], x.device)
        return ops(x, Varying(stats, rows, cols, self.weight, self.bias, offset), finish, residual=residual)

    def _convolved(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The output of the convolution in front, and its bias if that is still to be added."""
        if self.convolution is None:
            return x, None
        if not self._session.ops.adds_bias or self.convolution.bias is None:
            return self.convolution(x), None
        return _convolution(self.convolution, x, self.convolution.weight, None), self.convolution.bias

    def _measure(self, x: Tensor, residual: Tensor | None) -> Tensor:
        ops = self._session.ops
        x, offset = self._convolved(x)
        stats, scales = ops.measured(x, correction=self.correction, eps=self.eps, offset=offset)
        self._session.collected[self.position] = stats
        if self.position == self._session.last:
            raise MeasuredError
        values = Uniform(scales[:, 0], scales[:, 1], self.weight, self.bias, offset)
        return ops(x, values, self.finish, residual=residual)


def _folded(convolution: nn.Conv2d | nn.ConvTranspose2d, x: Tensor, values: Affine) -> Tensor:
    """Convolve and normalize one sample (1, C, H, W): weights scaled per output channel, bias scaled and shifted."""
    scale, shift = values.scale[0], values.shift[0]
    bias = shift if convolution.bias is None else shift + convolution.bias.float() * scale
    shape = (-1, 1, 1) if isinstance(convolution, nn.ConvTranspose2d) else (-1, 1, 1, 1)
    return _convolution(convolution, x, (convolution.weight * scale.view(shape)).to(x.dtype), bias.to(x.dtype))


def _convolution(convolution: nn.Conv2d | nn.ConvTranspose2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Run a convolution with another weight and bias."""
    if isinstance(convolution, nn.ConvTranspose2d):
        return F.conv_transpose2d(
            x,
            weight,
            bias,
            convolution.stride,
            convolution.padding,  # type: ignore[arg-type]  # the words "same" and "valid" are Conv2d's alone
            convolution.output_padding,
            convolution.groups,
            convolution.dilation,
        )
    convolved: Tensor = convolution._conv_forward(x, weight, bias)
    return convolved
