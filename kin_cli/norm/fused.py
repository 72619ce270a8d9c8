"""Fused operations between two convolutions: normalize, add the residual, ReLU, change of size, reflection padding.

    out = pad(resize(relu((x - μ)·γ/σ + β + residual)))

One call replaces up to five layers, because each of them would read and write the whole feature map: between
convolutions, memory traffic costs more time than arithmetic. ``EagerOps`` runs on any device; on a CPU it works in
strips of rows that stay in the cache, so that the map is read and written once. ``gpu.KernelOps`` does the same in one
kernel of a GPU; both must equal ``formula``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

_STRIP_BYTES, _GPU_STRIP_BYTES = 4 << 20, 128 << 20

Resize = Literal["", "down", "up", "nearest"]
"""Halving after a blur with the taps 1 2 1; doubling by bilinear interpolation; doubling by the nearest pixel."""


class Affine(NamedTuple):
    """One scale γ/σ and one shift β - μγ/σ per channel, both (B, C) float32: y = x · scale + shift."""

    scale: Tensor
    shift: Tensor


class Uniform(NamedTuple):
    """One mean and one scale 1/σ per channel: y = (x + offset - mean) · scale · weight + bias.

    ``mean`` and ``scale`` are (B, C) float32; ``weight`` γ, ``bias`` β and ``offset``, the bias that the convolution in
    front left out, are (C,) of any floating dtype, None: 1, 0 and 0.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    offset: Tensor | None = None

    def affine(self) -> Affine:
        """The same as one scale and one shift."""
        mean = self.mean if self.offset is None else self.mean - self.offset.float()
        scale = self.scale if self.weight is None else self.scale * self.weight.float()
        shift = -mean * scale
        return Affine(scale, shift if self.bias is None else shift + self.bias.float())


@dataclass(frozen=True)
class FieldAxis:
    """The two cells around each feature pixel along an axis, and the weight of the second: ``Taps`` as tensors."""

    lower: Tensor
    upper: Tensor
    fraction: Tensor

    @cached_property
    def runs(self) -> tuple[tuple[slice, int, int], ...]:
        """Consecutive pixels between the same two cells: (pixels, lower cell, upper cell)."""
        lower, upper = self.lower.tolist(), self.upper.tolist()
        starts = [i for i in range(len(lower)) if i == 0 or lower[i] != lower[i - 1]]
        stops = [*starts[1:], len(lower)]
        return tuple((slice(a, b), lower[a], max(upper[a:b])) for a, b in zip(starts, stops, strict=True))


class Varying(NamedTuple):
    """A mean and a scale 1/σ for every pixel: y = (x + offset - mean) · scale · weight + bias.

    ``stats`` (B, r, c, 2, C) float32 are the means and scales of the cells, interpolated along ``rows`` and ``cols``;
    ``weight``, ``bias`` and ``offset`` as in ``Uniform``.
    """

    stats: Tensor
    rows: FieldAxis
    cols: FieldAxis
    weight: Tensor | None = None
    bias: Tensor | None = None
    offset: Tensor | None = None

    def weighted(self) -> Tensor:
        """The cells (B, r, c, 2, C) with the offset taken from the means, and the scales times the weight."""
        if self.weight is None and self.offset is None:
            return self.stats
        mean, scale = self.stats.unbind(3)
        mean = mean if self.offset is None else mean - self.offset.float()
        return torch.stack([mean, scale if self.weight is None else scale * self.weight.float()], dim=3)


Values = Uniform | Varying | None
"""What to normalize with; None: the map is normalized already."""


@dataclass(frozen=True)
class Finish:
    """The layers that follow the norm: a ReLU, a change of size, and reflection padding by ``pad`` pixels.

    ``in_place``: if the size stays, the result may overwrite the input.
    """

    relu: bool = False
    pad: int = 0
    in_place: bool = False
    resize: Resize = ""

    def sides(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result for a map of this size."""
        if self.resize == "down":
            height, width = -(-height // 2), -(-width // 2)
        elif self.resize:
            height, width = 2 * height, 2 * width
        return height + 2 * self.pad, width + 2 * self.pad


class FusedOps(Protocol):
    """Fused operations on feature maps (B, C, H, W) of any floating dtype, computed in float32.

    ``folds``: a single sample with uniform statistics may be normalized by the weights of the convolution in front,
    with other roundings. ``adds_bias``: the bias of that convolution may be left to the fused operation.
    """

    folds: bool
    adds_bias: bool

    def measured(
        self, x: Tensor, *, correction: int, eps: float, offset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Statistics of x + offset per sample and channel, both (B, 2, C) float32: mean and σ; mean and 1/σ.

        σ = √(var + eps); 1/σ is 0 where σ is.
        """

    def __call__(self, x: Tensor, values: Values, finish: Finish, *, residual: Tensor | None = None) -> Tensor:
        """Normalize, add the residual, apply ``finish``: (B, C, H', W') in the dtype of ``x``; see ``Finish.sides``."""


class EagerOps:
    """Fused operations on any device. Memory bound on a CPU: the result and a few strips of 4 MiB."""

    folds, adds_bias = True, False

    def measured(
        self, x: Tensor, *, correction: int, eps: float, offset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See ``FusedOps``."""
        mean, var = self.moments(x, correction)
        mean = mean if offset is None else mean + offset.float()
        std = torch.sqrt(var + eps)
        return torch.stack([mean, std], dim=1), torch.stack([mean, torch.where(std > 0, 1 / std, 0)], dim=1)

    def moments(self, x: Tensor, correction: int) -> tuple[Tensor, Tensor]:
        """Mean and variance (B, C) float32 of every channel; on a CPU faster than torch.var_mean, and as exact."""
        if x.device.type != "cpu":  # one sample at a time: with more, torch would sum in another order
            parts = [torch.var_mean(sample.float(), dim=(1, 2), correction=correction) for sample in x]
            return torch.stack([mean for _, mean in parts]), torch.stack([var for var, _ in parts])
        pixels, count = x.permute(0, 2, 3, 1), x.shape[2] * x.shape[3]
        fractions, means, variances = [], [], []
        for part in _strips(x):  # each strip is read once; strips are combined as in Chan et al., 1979
            strip = pixels[:, part].float()
            means.append(strip.mean(2).mean(1))
            variances.append((strip - means[-1][:, None, None]).square_().mean(2).mean(1))
            fractions.append((part.stop - part.start) / x.shape[2])
        fraction, each = torch.tensor(fractions)[:, None, None], torch.stack(means)
        mean = (fraction * each).sum(0)
        var = (fraction * (torch.stack(variances) + (each - mean).square_())).sum(0)
        return mean, var * (count / (count - correction) if count > correction else float("nan"))

    def __call__(self, x: Tensor, values: Values, finish: Finish, *, residual: Tensor | None = None) -> Tensor:
        """See ``FusedOps``."""
        if not finish.resize:
            return self._swept(x, values, finish, residual, pad=finish.pad)
        # a blur needs a border of one pixel
        y = self._swept(x, values, finish, residual, pad=int(finish.resize == "down"))
        return _reflected_around(_resized(y, finish.resize), finish.pad)

    def _swept(self, x: Tensor, values: Values, finish: Finish, residual: Tensor | None, *, pad: int) -> Tensor:
        height, width = x.shape[2:]
        if pad:
            size = (x.shape[0], x.shape[1], height + 2 * pad, width + 2 * pad)
            out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        else:
            out = x if finish.in_place else torch.empty_like(x)
        inside = out[:, :, pad : pad + height, pad : pad + width].permute(0, 2, 3, 1)
        pixels = x.permute(0, 2, 3, 1)
        added = None if residual is None else residual.permute(0, 2, 3, 1)
        for part in _strips(x):
            for cols, y in _normalized(pixels, values, part):
                if added is not None:
                    y = y + added[:, part, cols]  # not in place: y may be the input
                if finish.relu:
                    y = y.clamp(min=0)
                inside[:, part, cols] = y
        return _reflected(out, pad)


def _strips(x: Tensor) -> Iterator[slice]:
    """Slices of rows of (B, C, H, W) that fit the cache; larger ones on a GPU, which needs few and large kernels."""
    batch, channels, height, width = x.shape
    step = max(1, (_STRIP_BYTES if x.device.type == "cpu" else _GPU_STRIP_BYTES) // (4 * batch * channels * width))
    return (slice(first, min(first + step, height)) for first in range(0, height, step))


def _normalized(pixels: Tensor, values: Values, part: slice) -> Iterator[tuple[slice, Tensor]]:
    """Normalize the rows ``part`` of (B, H, W, C) in runs of columns: yield (columns, (B, rows, columns, C))."""
    if values is None:
        yield slice(None), pixels[:, part]
    elif isinstance(values, Uniform):
        scale, shift = (value[:, None, None] for value in values.affine())
        yield slice(None), torch.addcmul(shift, pixels[:, part].float(), scale)
    else:
        rows, cols, stats = values.rows, values.cols, values.weighted()
        bias = None if values.bias is None else values.bias.float()
        upper = stats[:, rows.upper[part]]  # (B, rows, c, 2, C)
        lines = torch.lerp(stats[:, rows.lower[part]], upper, rows.fraction[part, None, None, None])
        for run, left, right in cols.runs:
            field = lines[:, :, left, :, None]  # (B, rows, 2, 1, C)
            if right != left:
                field = torch.addcmul(field, lines[:, :, right, :, None] - field, cols.fraction[run, None])
            mean, scale = field.unbind(2)
            y = torch.sub(pixels[:, part, run], mean).mul_(scale)
            yield run, y if bias is None else y.add_(bias)


def _reflected(out: Tensor, pad: int) -> Tensor:
    """Fill the border of a map with the reflection of its inside; for tiny maps, by torch's own reflection padding.

    That raises the error of ReflectionPad2d if the map is smaller than the border.
    """
    if pad and min(out.shape[2:]) <= 3 * pad:
        return F.pad(out[:, :, pad:-pad, pad:-pad], (pad, pad, pad, pad), mode="reflect")
    for axis in (2, 3):
        last = out.shape[axis] - 1
        for i in range(pad):
            out.select(axis, i).copy_(out.select(axis, 2 * pad - i))
            out.select(axis, last - i).copy_(out.select(axis, last - 2 * pad + i))
    return out


def _resized(y: Tensor, resize: Resize) -> Tensor:
    """Change the size of a map (B, C, H, W), which for "down" has a border of one pixel."""
    if resize == "down":
        row = torch.tensor([1.0, 2.0, 1.0])
        taps = (row[:, None] * row / 16).to(dtype=y.dtype, device=y.device)
        return F.conv2d(y, taps.repeat(y.shape[1], 1, 1, 1), stride=2, groups=y.shape[1])
    if resize == "up":
        return F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
    return F.interpolate(y, scale_factor=2, mode="nearest") if resize else y


def _reflected_around(y: Tensor, pad: int) -> Tensor:
    return F.pad(y, (pad, pad, pad, pad), mode="reflect") if pad else y


def formula(x: Tensor, values: Values, finish: Finish, residual: Tensor | None = None) -> Tensor:
    """What every implementation must equal, written down in torch's own words."""
    y = x.float()
    if isinstance(values, Uniform):
        affine = values.affine()
        y = y * affine.scale[:, :, None, None] + affine.shift[:, :, None, None]
    elif values is not None:
        mean, scale = _interpolated(values).permute(3, 0, 4, 1, 2).unbind(0)
        y = (y - mean) * scale
        if values.bias is not None:
            y = y + values.bias.float()[:, None, None]
    if residual is not None:
        y = y + residual
    if finish.relu:
        y = y.relu()
    y = _resized(_reflected_around(y, int(finish.resize == "down")), finish.resize)
    return _reflected_around(y.to(x.dtype), finish.pad)


def _interpolated(values: Varying) -> Tensor:
    """The cells at every pixel: (B, H, W, 2, C)."""
    rows, cols, stats = values.rows, values.cols, values.weighted()
    down, across = rows.fraction[:, None, None, None], cols.fraction[:, None, None]

    def line(row: Tensor) -> Tensor:
        first, second = stats[:, row[:, None], cols.lower[None]], stats[:, row[:, None], cols.upper[None]]
        return first + (second - first) * across

    top = line(rows.lower)
    return top + (line(rows.upper) - top) * down
