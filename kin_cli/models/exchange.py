"""Exchange of InstanceNorm2d for table norms, in place: makes any InstanceNorm network ready for both passes.

``exchange_norms`` traces one forward pass to learn in which order the norm layers run and which layers stand around
them, and fuses what only a norm layer uses: convolution → norm → ReLU → reflection padding, and the residual addition.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from kin_cli.errors import ModelError
from kin_cli.models.resnet import (
    BlurDownsample,
    BlurUpsample,
    FixedNorm,
    NoNorm,
    ResidualBlock,
    UrustResidualBlock,
)
from kin_cli.norm.fused import Finish, FusedOps, Resize
from kin_cli.norm.layer import Field, MeasuredError, Session, TableNorm

RESIDUAL_BLOCKS = (ResidualBlock, UrustResidualBlock)
_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_RESIZERS = (BlurDownsample, BlurUpsample, nn.Upsample)
_WATCHED = (*_CONVOLUTIONS, nn.InstanceNorm2d, nn.ReLU, nn.ReflectionPad2d, *_RESIZERS)
_PHASES = 4  # per axis: 3 · 16 outputs at once, for vector units of 16 lanes and tensor cores of 8 to 64
_MAX_PHASED_OUTPUTS, _MIN_PHASED_KERNEL = 4, 5
_ELSEWHERE = -1  # reader of a tensor that is not a watched layer


class TableNetwork:
    """A network whose norm layers share one table. Not thread-safe: one forward at a time.

    ``layers`` lists the norm layers as (name, channels) in the order in which they run. ``channels`` is ΣC over them;
    the statistics of a patch are (2, ΣC), in this order.
    """

    def __init__(
        self, module: nn.Module, session: Session, layers: list[tuple[str, int]], *, reach_px: int | None
    ) -> None:
        self.module, self.layers = module, layers
        self.channels = sum(channels for _, channels in layers)
        self.in_channels = 3
        self._session, self._reach_px = session, reach_px

    def use(self, ops: FusedOps, *, in_channels: int = 3) -> None:
        """Set the implementation of the fused operations, which also makes the borders that stand alone.

        The first convolution takes ``in_channels`` from now on, the fourth and later with weight 0, if a norm follows.
        """
        self._session.ops = ops
        for name, layer in list(self.module.named_modules()):
            if type(layer) is nn.ReflectionPad2d and len(set(layer.padding)) == 1:
                _replace(self.module, name, FusedPad(layer.padding[0], self._session))
            stem = layer.convolution if isinstance(layer, TableNorm) and layer.position == 0 else None
            if isinstance(stem, nn.Conv2d) and stem.in_channels == self.in_channels < in_channels:
                weight = F.pad(stem.weight, (0, 0, 0, 0, 0, in_channels - self.in_channels))
                stem.weight = nn.Parameter(weight, requires_grad=False)
                stem.in_channels = self.in_channels = in_channels

    @torch.inference_mode()
    def measure(self, x: Tensor) -> Tensor:
        """Means and standard deviations of each sample of a batch (B, 3, H, W): (B, 2, ΣC) float32 (Eq. 3-4).

        Stops at the last norm layer; without any it does not run.
        """
        if not self.layers:
            return x.new_zeros((len(x), 2, 0), dtype=torch.float32)
        self._session.begin(None)
        self._session.collected.clear()
        with suppress(MeasuredError):
            self.module(x)
        collected = self._session.collected
        return torch.cat([collected[position] for position in sorted(collected)], dim=2)

    @torch.inference_mode()
    def apply(self, x: Tensor, field: Field) -> Tensor:
        """Run the network on a batch (B, 3, H, W), normalized with the field's statistics (Eq. 7): (B, 3, h, w).

        The output is smaller than the input by the part of the halo that was consumed, the same on all sides; it always
        contains the window.
        """
        self._session.begin(field, reach_px=self._reach_px)
        try:
            out: Tensor = self.module(x)
        finally:
            self._session.begin(None)
        return out


def exchange_norms(
    module: nn.Module,
    *,
    side: int = 64,
    in_channels: int = 3,
    eps: float | None = None,
    correction: int = 0,
    reach_px: int | None = None,
) -> TableNetwork:
    """Replace every InstanceNorm2d of a network by a table norm, in place, and put the network in eval mode.

    Ops used only by a norm layer are fused into it: the convolution in front, the ReLU, the change of size and the
    reflection padding behind, the addition of a residual block. The last convolution becomes a ``PhasedConv2d``.

    ``side`` is the side in pixels of a square input that the network accepts; one forward pass with it finds the order
    of the layers. ``eps`` None keeps each layer's own. ``correction`` 0 is the biased variance of InstanceNorm2d, 1 the
    unbiased one of the paper's released code. ``reach_px`` is the radius of the receptive field: if the halo is at
    least as wide, the convolutions of residual blocks run unpadded and consume the halo. None: they never do.

    Raises ``ModelError`` if there is no InstanceNorm2d, if one keeps running statistics, or if one runs more than once
    in a forward (a table has one entry per layer).
    """
    module.eval().requires_grad_(False)
    names = {layer: name for name, layer in module.named_modules()}
    order = _execution_order(module, names, side=side, in_channels=in_channels)
    session, first, layers = Session(last=len(order) - 1), 0, []
    for position, link in enumerate(order):
        norm = link.norm
        table_norm = TableNorm(norm, session, position=position, first=first)
        table_norm.eps = norm.eps if eps is None else eps
        table_norm.correction = correction
        table_norm.convolution = link.convolution
        pad = 0 if link.pad is None else link.pad.padding[0]
        finish = Finish(link.relu is not None, pad, in_place=link.convolution is not None, resize=_kind(link.resize))
        table_norm.finish = finish
        for absorbed in (link.convolution, link.relu, link.resize, link.pad):
            if absorbed is not None:
                _replace(module, names[absorbed], nn.Identity())
        _replace(module, names[norm], table_norm)
        layers.append((names[norm], norm.num_features))
        first += norm.num_features
    fused = {link.convolution for link in order}
    after = _following(names)
    for layer, name in names.items():
        if isinstance(layer, RESIDUAL_BLOCKS):
            behind = after.get(layer)
            pads_next = isinstance(behind, RESIDUAL_BLOCKS)
            block = TableResidual(layer.body, session, padded=layer in after.values(), pads_next=pads_next)
            if behind is not None and not pads_next:
                block.last.finish = dataclasses.replace(block.last.finish, resize=_kind(behind))
                _replace(module, names[behind], nn.Identity())
            _replace(module, name, block)
        elif PhasedConv2d.suits(layer) and layer not in fused:
            _replace(module, name, PhasedConv2d(layer))
    return TableNetwork(module, session, layers, reach_px=reach_px)


def _following(names: dict[nn.Module, str]) -> dict[nn.Module, nn.Module]:
    """For each residual block that is directly followed by another, or by a change of size: what follows."""
    chains = [list(layer) for layer in names if isinstance(layer, nn.Sequential)]
    pairs = [pair for chain in chains for pair in itertools.pairwise(chain)]
    return {a: b for a, b in pairs if isinstance(a, RESIDUAL_BLOCKS) and (isinstance(b, RESIDUAL_BLOCKS) or _kind(b))}


def _kind(layer: nn.Module | None) -> Resize:
    """Which change of size of the fused operations a layer is; empty if none."""
    if isinstance(layer, BlurDownsample):
        return "down"
    if isinstance(layer, BlurUpsample):
        return "up"
    if not isinstance(layer, nn.Upsample) or layer.mode != "nearest" or layer.size is not None:
        return ""
    factor: object = layer.scale_factor
    return "nearest" if factor in (2.0, (2.0, 2.0)) else ""


class FusedPad(nn.ReflectionPad2d):
    """Reflection padding by the fused operations, channels-last: (B, C, H, W) to (B, C, H + 2 pad, W + 2 pad)."""

    def __init__(self, pad: int, session: Session) -> None:
        super().__init__(pad)
        self._session = session

    def forward(self, x: Tensor) -> Tensor:
        """Pad."""
        return self._session.ops(x, None, Finish(pad=self.padding[0]))


class TableResidual(nn.Module):
    """x + body(x), with the addition fused into the body's last layer, a table norm.

    The body pads by one reflected pixel before each of its two 3×3 convolutions. The first padding is left out if x
    comes ``padded`` by the block before; ``pads_next`` pads the result for the block after. If the halo shrinks nothing
    is padded, and the result is smaller by two pixels on every side.
    """

    def __init__(self, body: nn.Sequential, session: Session, *, padded: bool, pads_next: bool) -> None:
        super().__init__()
        border, *front, last = body
        assert isinstance(last, TableNorm)
        if pads_next:
            last.finish = dataclasses.replace(last.finish, pad=1)
        self.border, self.front, self.last = nn.Identity() if padded else border, nn.ModuleList(front), last
        self._session, self._padded = session, padded

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual: (B, C, h, w) to (B, C, h, w), or to (B, C, h - 4, w - 4) if the halo shrinks."""
        session, bare = self._session, self._session.shrinks
        residual = x[:, :, 2:-2, 2:-2] if bare else x[:, :, 1:-1, 1:-1] if self._padded else x
        step = session.stride(x.shape[2]) if bare else 0
        x = x if bare else self.border(x)
        for layer in self.front:
            if isinstance(layer, TableNorm):
                session.margin_px -= step
                x = layer(x, bare=bare)
            elif not (bare and isinstance(layer, nn.ReflectionPad2d)):
                x = layer(x)
        session.margin_px -= step
        out: Tensor = self.last(x, residual=residual, bare=bare)
        return out


def _execution_order(module: nn.Module, names: dict[nn.Module, str], *, side: int, in_channels: int) -> list[Link]:
    """The norm layers in running order. Raises ``ModelError`` if a table cannot hold their statistics."""
    norms = [layer for layer in names if isinstance(layer, nn.InstanceNorm2d)]
    if not norms and any(isinstance(layer, FixedNorm | NoNorm) for layer in names):
        return []  # every pixel is normalized alike
    if not norms:
        raise ModelError("the network has no InstanceNorm2d layer", "kernelized instance normalization replaces those")
    for norm in norms:
        if norm.track_running_stats:
            raise ModelError(
                f"norm layer '{names[norm]}' keeps running statistics",
                "train with track_running_stats=False, or drop them",
            )
    order = links(module, side=side, in_channels=in_channels)
    ran = [link.norm for link in order]
    for norm in ran:
        if ran.count(norm) > 1:
            raise ModelError(f"norm layer '{names[norm]}' runs more than once", "give each place a layer of its own")
    if not ran:
        raise ModelError(
            "no InstanceNorm2d layer of the network runs in a forward", "pass the generator, not a wrapper"
        )
    return order


def _replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(parent), attribute, layer)


class PhasedConv2d(nn.Module):
    """A convolution to few channels that computes 4×4 neighbouring outputs at once: the same sums, 2 to 3 times faster.

    For the last convolution of a generator, 7×7 to three channels. The kernel is copied to 16 shifted positions in a
    larger kernel, which gives 16 times as many channels at stride 4; pixel shuffling puts them side by side. This
    multiplies by some zeros, but fills all lanes of the hardware, most of which three channels would leave empty. If
    height or width of the output is not a multiple of 4, the plain convolution runs.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.plain = convolution
        weight = convolution.weight  # (O, C, kh, kw)
        out, channels, height, width = weight.shape
        phased = weight.new_zeros(out, _PHASES, _PHASES, channels, height + _PHASES - 1, width + _PHASES - 1)
        for row in range(_PHASES):
            for col in range(_PHASES):
                phased[:, row, col, :, row : row + height, col : col + width] = weight
        self.weight = nn.Parameter(phased.flatten(0, 2), requires_grad=False)
        bias = convolution.bias
        self.bias = None if bias is None else nn.Parameter(bias.repeat_interleave(_PHASES**2), requires_grad=False)

    @staticmethod
    def suits(layer: nn.Module) -> bool:
        """Whether the layer is an unpadded convolution with a large kernel, few outputs, and stride and dilation 1."""
        return (
            isinstance(layer, nn.Conv2d)
            and layer.out_channels <= _MAX_PHASED_OUTPUTS
            and min(layer.kernel_size) >= _MIN_PHASED_KERNEL
            and (layer.stride, layer.dilation, layer.groups) == ((1, 1), (1, 1), 1)
            and layer.padding == (0, 0)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, H, W) to (B, O, H - kh + 1, W - kw + 1)."""
        kernel = self.plain.kernel_size
        if any((extent - side + 1) % _PHASES for extent, side in zip(x.shape[2:], kernel, strict=True)):
            out: Tensor = self.plain(x)
            return out
        return F.pixel_shuffle(torch.conv2d(x, self.weight, self.bias, stride=_PHASES), _PHASES)


@dataclass(frozen=True)
class Link:
    """A norm layer and the layers to fuse with it: convolution → norm → ReLU → resize → padding; None: there is none.

    The norm must be the only reader of the convolution's output, and each later layer of the output before it.
    """

    norm: nn.InstanceNorm2d
    convolution: nn.Conv2d | nn.ConvTranspose2d | None
    relu: nn.ReLU | None
    resize: nn.Module | None
    pad: nn.ReflectionPad2d | None


def links(module: nn.Module, *, side: int, in_channels: int = 3) -> list[Link]:
    """The norm layers in the order in which a forward pass on ``side`` × ``side`` px runs them; one entry per run."""
    first = next(module.parameters())
    watch = _Watch()
    hooks = [hook for layer in module.modules() if isinstance(layer, _WATCHED) for hook in watch.hooks(layer)]
    try:
        with torch.inference_mode(), watch:
            module(torch.zeros(1, in_channels, side, side, dtype=first.dtype, device=first.device))
    finally:
        for hook in hooks:
            hook.remove()
    return [watch.link(number) for number, (layer, *_) in enumerate(watch.runs) if isinstance(layer, nn.InstanceNorm2d)]


class _Watch(TorchFunctionMode):
    """During one traced forward pass, records which layers consume each tensor.

    A consumer is an index into ``runs``, or ``_ELSEWHERE`` if it is not a watched layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[
            tuple[nn.Module, Tensor, Tensor]
        ] = []  # (layer, input, output); kept, so that the ids stay unique
        self._kept: list[Tensor] = []
        self._readers: defaultdict[int, list[int]] = defaultdict(list)
        self._inside = 0

    def hooks(self, layer: nn.Module) -> list[Any]:
        """Register hooks around a watched layer; remove them after the forward."""
        return [layer.register_forward_pre_hook(self._enter), layer.register_forward_hook(self._leave)]

    def _enter(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._inside += 1
        if self._inside == 1:  # and not a layer within a watched one
            self._readers[id(inputs[0])].append(len(self.runs))

    def _leave(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._inside -= 1
        if not self._inside:
            self.runs.append((layer, inputs[0], output))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self._inside and isinstance(result, Tensor):
            for value in pytree.tree_leaves((args, kwargs)):
                if isinstance(value, Tensor):
                    self._kept.append(value)
                    self._readers[id(value)].append(_ELSEWHERE)
        return result

    def link(self, number: int) -> Link:
        """The norm layer of ``runs[number]`` and the layers to fuse with it."""
        norm, given, made = self.runs[number]
        assert isinstance(norm, nn.InstanceNorm2d)
        source: list[Any] = [layer for layer, _, output in self.runs if output is given]
        alone = len(source) == 1 and self._readers[id(given)] == [number]
        convolution = source[0] if alone and self._once(source[0], _CONVOLUTIONS) else None
        relu, resize, pad, then = None, None, None, self._readers[id(made)]
        if then and self._once(layer := self._layer(then[0]), nn.ReLU) and (layer.inplace or len(then) == 1):
            relu = layer
            # an in-place ReLU returns its input: later readers of that tensor read the result
            then = then[1:] if layer.inplace else self._readers[id(self.runs[then[0]][2])]
        if len(then) == 1 and self._once(layer := self._layer(then[0]), _RESIZERS) and _kind(layer):
            resize, then = layer, self._readers[id(self.runs[then[0]][2])]
        if len(then) == 1 and self._once(layer := self._layer(then[0]), nn.ReflectionPad2d):
            pad = layer if len(set(layer.padding)) == 1 else None
        return Link(norm, convolution, relu, resize, pad)

    def _layer(self, number: int) -> Any:
        return self.runs[number][0] if number >= 0 else None

    def _once(self, layer: nn.Module | None, kind: Any) -> bool:
        """Whether the layer is of this kind and ran only once."""
        return isinstance(layer, kind) and sum(other is layer for other, *_ in self.runs) == 1
