"""InstanceNorm2d → TableNorm in place: what makes any InstanceNorm network measurable and applicable."""

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
from kin_cli.models import resnet
from kin_cli.models import resnet as urust
from kin_cli.norm.fused import Finish, FusedOps
from kin_cli.norm.layer import Field, MeasuredError, Session, TableNorm

RESIDUAL_BLOCKS = (resnet.ResidualBlock, urust.ResidualBlock)
_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_WATCHED = (*_CONVOLUTIONS, nn.InstanceNorm2d, nn.ReLU, nn.ReflectionPad2d)
_PHASES = 4  # of each axis: 3 · 16 outputs; a vector unit has 16 lanes, a tensor core 8 to 64
_FEW, _LARGE = 4, 5


# FROM models.patch: InstanceNorm2d → TableNorm in place: what makes any InstanceNorm network measurable and applicable.


class TableNetwork:
    """A network whose norm layers read one table. Not thread-safe: one forward at a time.

    ``channels`` is ΣC, the channels of all norm layers; a cell of the table is (2, ΣC), layers in the order in which
    the network runs them, as in ``layers`` (name, channels).
    """

    def __init__(
        self, module: nn.Module, session: Session, layers: list[tuple[str, int]], *, reach_px: int | None
    ) -> None:
        self.module, self.layers = module, layers
        self.channels = sum(channels for _, channels in layers)
        self._session, self._reach_px = session, reach_px

    def use(self, ops: FusedOps) -> None:
        """Finish feature maps that way from now on."""
        self._session.ops = ops

    @torch.inference_mode()
    def measure(self, x: Tensor) -> Tensor:
        """Statistics of each sample of a batch (B, 3, H, W): (B, 2, ΣC) float32, means and standard deviations.

        Runs to the last norm layer and no further (Eq. 3-4).
        """
        self._session.begin(None)
        self._session.collected.clear()
        with suppress(MeasuredError):
            self.module(x)
        collected = self._session.collected
        return torch.cat([collected[position] for position in sorted(collected)], dim=2)

    @torch.inference_mode()
    def apply(self, x: Tensor, field: Field) -> Tensor:
        """The network's output (B, 3, h, w) for a batch, normalised with the field's statistics (Eq. 7).

        Smaller than the input by what was used up of a halo, the same on all sides, and never less than the core.
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

    What stands around a norm layer and concerns nothing else goes into it: the convolution in front of it, the ReLU and
    the reflection behind it, the addition of a residual block. The last convolution becomes a ``PhasedConv2d``.

    ``side`` is the extent of a square input that the network accepts: one forward with it finds the order in which the
    layers run. ``eps`` None keeps each layer's own; ``correction`` 0 is the biased variance of InstanceNorm2d, 1 the
    unbiased one of the paper's released code. ``reach_px`` is the radius of the receptive field: residual blocks use up
    a halo of at least that, instead of reflecting its border; None keeps every map's size.

    Raises ModelError where there is no InstanceNorm2d, where one keeps running statistics, or where one runs more than
    once in a forward (a table has one entry per layer).
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
        table_norm.finish = Finish(link.relu is not None, pad, in_place=link.convolution is not None)
        for absorbed in (link.convolution, link.relu, link.pad):
            if absorbed is not None:
                _replace(module, names[absorbed], nn.Identity())
        _replace(module, names[norm], table_norm)
        layers.append((names[norm], norm.num_features))
        first += norm.num_features
    taken = {link.convolution for link in order}
    after = _following(names)
    for layer, name in names.items():
        if isinstance(layer, RESIDUAL_BLOCKS):
            block = TableResidual(layer.body, session, given=layer in after.values(), gives=layer in after)
            _replace(module, name, block)
        elif PhasedConv2d.suits(layer) and layer not in taken:
            _replace(module, name, PhasedConv2d(layer))
    return TableNetwork(module, session, layers, reach_px=reach_px)


def _following(names: dict[nn.Module, str]) -> dict[nn.Module, nn.Module]:
    """The residual block behind each residual block that has one."""
    chains = [list(layer) for layer in names if isinstance(layer, nn.Sequential)]
    pairs = [pair for chain in chains for pair in itertools.pairwise(chain)]
    return {a: b for a, b in pairs if isinstance(a, RESIDUAL_BLOCKS) and isinstance(b, RESIDUAL_BLOCKS)}


class TableResidual(nn.Module):
    """x + body(x), added in the sweep of the body's last layer, a table norm.

    The body reflects a border of one pixel before each of its two 3×3 convolutions. The first border is there already
    where x is ``given`` with it, and this block ``gives`` the next one's with its result. Where a halo shrinks there
    are no borders: the result is smaller by two pixels on every side.
    """

    def __init__(self, body: nn.Sequential, session: Session, *, given: bool, gives: bool) -> None:
        super().__init__()
        border, *front, last = body
        assert isinstance(last, TableNorm)
        if gives:
            last.finish = dataclasses.replace(last.finish, pad=1)
        self.border, self.front, self.last = nn.Identity() if given else border, nn.ModuleList(front), last
        self._session, self._given = session, given

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w)."""
        session, bare = self._session, self._session.shrinks
        residual = x[:, :, 2:-2, 2:-2] if bare else x[:, :, 1:-1, 1:-1] if self._given else x
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
    norms = [layer for layer in names if isinstance(layer, nn.InstanceNorm2d)]
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


# FROM models.trace: What may be done in one go: which convolution feeds a norm layer and nothing else, and what follows the layer.


@dataclass(frozen=True)
class Link:
    """A norm layer as it ran: the convolution whose output it alone reads, the ReLU and the padding that alone read its
    own output, one after the other; None where that is not so."""

    norm: nn.InstanceNorm2d
    convolution: nn.Conv2d | nn.ConvTranspose2d | None
    relu: nn.ReLU | None
    pad: nn.ReflectionPad2d | None


def links(module: nn.Module, *, side: int, in_channels: int = 3) -> list[Link]:
    """Norm layers in the order in which a forward on a square input of ``side`` px runs them, once per run."""
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
    """Notes for every tensor who reads it: a watched layer's run, by its number, or -1 for anything else."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[tuple[nn.Module, Tensor, Tensor]] = []  # layer, input, output: kept, so that ids stay unique
        self._kept: list[Tensor] = []
        self._readers: defaultdict[int, list[int]] = defaultdict(list)
        self._inside = 0

    def hooks(self, layer: nn.Module) -> list[Any]:
        """Hooks around a watched layer, to be removed after the forward."""
        return [layer.register_forward_pre_hook(self._enter), layer.register_forward_hook(self._leave)]

    def _enter(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._inside += 1
        self._readers[id(inputs[0])].append(len(self.runs))

    def _leave(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._inside -= 1
        self.runs.append((layer, inputs[0], output))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self._inside and isinstance(result, Tensor):
            for value in pytree.tree_leaves((args, kwargs)):
                if isinstance(value, Tensor):
                    self._kept.append(value)
                    self._readers[id(value)].append(-1)
        return result

    def link(self, number: int) -> Link:
        """What is around the norm layer that ran as this number."""
        norm, given, made = self.runs[number]
        assert isinstance(norm, nn.InstanceNorm2d)
        source: list[Any] = [layer for layer, _, output in self.runs if output is given]
        alone = len(source) == 1 and self._readers[id(given)] == [number]
        convolution = source[0] if alone and self._once(source[0], _CONVOLUTIONS) else None
        relu, pad, then = None, None, self._readers[id(made)]
        if then and self._once(layer := self._layer(then[0]), nn.ReLU) and (layer.inplace or len(then) == 1):
            relu = layer
            # done in place it gives its input back: whoever reads that later reads the result
            then = then[1:] if layer.inplace else self._readers[id(self.runs[then[0]][2])]
        if len(then) == 1 and self._once(layer := self._layer(then[0]), nn.ReflectionPad2d):
            pad = layer if len(set(layer.padding)) == 1 else None
        return Link(norm, convolution, relu, pad)

    def _layer(self, number: int) -> Any:
        return self.runs[number][0] if number >= 0 else None

    def _once(self, layer: nn.Module | None, kind: Any) -> bool:
        """The layer is of a kind and ran only here."""
        return isinstance(layer, kind) and sum(other is layer for other, *_ in self.runs) == 1


# FROM models.phases: The last convolution of a generator, 7×7 to three channels, in a shape that hardware has lanes for.


class PhasedConv2d(nn.Module):
    """A convolution to few channels, done for 4×4 neighbouring outputs at once: the same sums, 2 to 3 times faster.

    The kernel, shifted to each of 16 places in a larger one, gives 16 times as many outputs at a stride of 4, which are
    then put beside each other. It multiplies by some zeros, but leaves no lane empty, where three outputs would leave
    most. Inputs whose output is no multiple of 4 are convolved as ever.
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
        """A large kernel, few outputs, nothing special."""
        return (
            isinstance(layer, nn.Conv2d)
            and layer.out_channels <= _FEW
            and min(layer.kernel_size) >= _LARGE
            and (layer.stride, layer.dilation, layer.groups) == ((1, 1), (1, 1), 1)
            and layer.padding == (0, 0)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, O, H - kh + 1, W - kw + 1)."""
        kernel = self.plain.kernel_size
        if any((extent - side + 1) % _PHASES for extent, side in zip(x.shape[2:], kernel, strict=True)):
            out: Tensor = self.plain(x)
            return out
        return F.pixel_shuffle(torch.conv2d(x, self.weight, self.bias, stride=_PHASES), _PHASES)
