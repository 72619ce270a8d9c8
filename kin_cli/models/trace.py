"""What may be done in one go: which convolution feeds a norm layer and nothing else, and what follows the layer."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_WATCHED = (*_CONVOLUTIONS, nn.InstanceNorm2d, nn.ReLU, nn.ReflectionPad2d)


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
