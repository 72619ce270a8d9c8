"""Fused operations between two convolutions: normalize, add the residual, ReLU, reflection padding.

    out = pad(relu((x - μ)·γ/σ + β + residual))

One call replaces up to four layers, because each of them would read and write the whole feature map: between
convolutions, memory traffic costs more time than arithmetic. ``EagerOps`` runs on any device; on a CPU it works in
strips of rows that stay in the cache, so that the map is read and written once. ``CompiledOps`` lets torch's compiler
make one kernel of each formula.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

_STRIP_BYTES = 4 << 20
# Variants of one compiled function: one for each kind of layer and each shape at the edge of the slide; torch allows 8.
_COMPILED_VARIANTS = 64


class Affine(NamedTuple):
    """One scale γ/σ and one shift β - μγ/σ per channel, both (B, C) float32: y = x · scale + shift."""

    scale: Tensor
    shift: Tensor


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
    """A mean and a scale for every pixel: y = (x - mean) · scale + bias, with scale = γ/σ and bias = β.

    ``stats`` (B, r, c, 2, C) float32 are the means and scales of the cells, interpolated along ``rows`` and ``cols``.
    """

    stats: Tensor
    rows: FieldAxis
    cols: FieldAxis
    bias: Tensor | None


@dataclass(frozen=True)
class Finish:
    """The layers that follow the norm: a ReLU, and reflection padding by ``pad`` pixels.

    ``in_place``: without padding, the result may overwrite the input.
    """

    relu: bool = False
    pad: int = 0
    in_place: bool = False


class FusedOps(Protocol):
    """Fused operations on feature maps (B, C, H, W) of any floating dtype, computed in float32."""

    def moments(self, x: Tensor, correction: int) -> tuple[Tensor, Tensor]:
        """Mean and variance of every channel of every sample, both (B, C) float32."""

    def __call__(
        self, x: Tensor, values: Affine | Varying | None, finish: Finish, *, residual: Tensor | None = None
    ) -> Tensor:
        """Normalize, add the residual, apply ``finish``: (B, C, H + 2 pad, W + 2 pad) in the dtype of ``x``.

        ``values`` None: ``x`` is normalized already.
        """


class EagerOps:
    """Fused operations on any device. Memory bound on a CPU: the result and a few strips of 4 MiB."""

    def moments(self, x: Tensor, correction: int) -> tuple[Tensor, Tensor]:
        """Mean and variance per channel, see ``FusedOps``; on a CPU faster than torch.var_mean, and as exact."""
        if x.device.type != "cpu":
            var, mean = torch.var_mean(x.float(), dim=(2, 3), correction=correction)
            return mean, var
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

    def __call__(
        self, x: Tensor, values: Affine | Varying | None, finish: Finish, *, residual: Tensor | None = None
    ) -> Tensor:
        """See ``FusedOps``."""
        pad, height, width = finish.pad, *x.shape[2:]
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
    """Slices of rows of (B, C, H, W) that fit the cache; on a GPU all rows, because it needs few and large kernels."""
    batch, channels, height, width = x.shape
    step = height if x.device.type != "cpu" else max(1, _STRIP_BYTES // (4 * batch * channels * width))
    return (slice(first, min(first + step, height)) for first in range(0, height, step))


def _normalized(pixels: Tensor, values: Affine | Varying | None, part: slice) -> Iterator[tuple[slice, Tensor]]:
    """Normalize the rows ``part`` of (B, H, W, C) in runs of columns: yield (columns, (B, rows, columns, C))."""
    if values is None:
        yield slice(None), pixels[:, part]
    elif isinstance(values, Affine):
        scale, shift = values.scale[:, None, None], values.shift[:, None, None]
        yield slice(None), torch.addcmul(shift, pixels[:, part].float(), scale)
    else:
        rows, cols = values.rows, values.cols
        upper = values.stats[:, rows.upper[part]]  # (B, rows, c, 2, C)
        lines = torch.lerp(values.stats[:, rows.lower[part]], upper, rows.fraction[part, None, None, None])
        for run, left, right in cols.runs:
            field = lines[:, :, left, :, None]  # (B, rows, 2, 1, C)
            if right != left:
                field = torch.addcmul(field, lines[:, :, right, :, None] - field, cols.fraction[run, None])
            mean, scale = field.unbind(2)
            y = torch.sub(pixels[:, part, run], mean).mul_(scale)
            yield run, y if values.bias is None else y.add_(values.bias)


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


def affine_formula(x: Tensor, values: Affine | None, residual: Tensor | None, *, relu: bool, pad: int) -> Tensor:
    """The fused formula with one scale and one shift per channel, for the compiler."""
    y = x.float()
    if values is not None:
        y = y * values.scale[:, :, None, None] + values.shift[:, :, None, None]
    return _finished(y, residual, relu=relu, pad=pad, dtype=x.dtype)


def varying_formula(
    x: Tensor,
    stats: Tensor,
    axes: tuple[Tensor, ...],
    bias: Tensor | None,
    residual: Tensor | None,
    *,
    relu: bool,
    pad: int,
) -> Tensor:
    """The fused formula with interpolated statistics, for the compiler; ``axes``: those of rows, then of columns."""
    top, bottom, down, left, right, across = axes
    down, across = down[:, None, None, None], across[:, None, None]

    def line(row: Tensor) -> Tensor:  # (B, H, W, 2, C)
        first, second = stats[:, row[:, None], left[None]], stats[:, row[:, None], right[None]]
        return first + (second - first) * across

    field = line(top) + (line(bottom) - line(top)) * down
    mean, scale = field.permute(3, 0, 4, 1, 2).unbind(0)
    y = (x.float() - mean) * scale
    if bias is not None:
        y = y + bias[:, None, None]
    return _finished(y, residual, relu=relu, pad=pad, dtype=x.dtype)


def _finished(y: Tensor, residual: Tensor | None, *, relu: bool, pad: int, dtype: torch.dtype) -> Tensor:
    if residual is not None:
        y = y + residual
    if relu:
        y = y.relu()
    y = y.to(dtype)
    return F.pad(y, (pad, pad, pad, pad), mode="reflect") if pad else y


def _moments_formula(x: Tensor, correction: int) -> tuple[Tensor, Tensor]:
    var, mean = torch.var_mean(x.float(), dim=(2, 3), correction=correction)
    return mean, var


class CompiledOps:
    """Fused operations compiled by ``torch.compile`` to one kernel each, which takes seconds per kernel at first use.

    If compiling fails, ``failed`` is called with the compiler's message, and ``EagerOps`` takes over for good.
    """

    def __init__(self, failed: Callable[[str], None]) -> None:
        self._failed = failed
        self._broken, self._eager = False, EagerOps()
        torch._dynamo.config.recompile_limit = _COMPILED_VARIANTS
        self._moments = torch.compile(_moments_formula)
        self._affine, self._varying = torch.compile(affine_formula), torch.compile(varying_formula)

    def moments(self, x: Tensor, correction: int) -> tuple[Tensor, Tensor]:
        """See ``FusedOps``."""
        if not self._broken:
            try:
                return self._moments(x, correction)
            except Exception as error:  # the compiler raises many kinds
                self._give_up(error)
        return self._eager.moments(x, correction)

    def __call__(
        self, x: Tensor, values: Affine | Varying | None, finish: Finish, *, residual: Tensor | None = None
    ) -> Tensor:
        """See ``FusedOps``."""
        if not self._broken:
            try:
                return self._kernel(x, values, finish, residual)
            except Exception as error:
                self._give_up(error)
        return self._eager(x, values, finish, residual=residual)

    def _kernel(self, x: Tensor, values: Affine | Varying | None, finish: Finish, residual: Tensor | None) -> Tensor:
        relu, pad = finish.relu, finish.pad
        if isinstance(values, Varying):
            axes = tuple(t for a in (values.rows, values.cols) for t in (a.lower, a.upper, a.fraction))
            return self._varying(x, values.stats, axes, values.bias, residual, relu=relu, pad=pad)
        return self._affine(x, values, residual, relu=relu, pad=pad)

    def _give_up(self, error: Exception) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            raise error
        self._broken = True
        self._failed(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
