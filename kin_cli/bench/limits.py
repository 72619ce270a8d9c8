"""Limits of the device, the work of a generator, and how both are timed.

The limits are the rates of a plain matrix product and of the convolution that takes most of the generator's work.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kin_cli.geometry import Size
from kin_cli.models.architectures import Spec, build

_SIDE = {"cuda": 8192, "cpu": 2048}
_CALLS = {"cuda": 10, "cpu": 1}  # calls per wait, so that the launch of a kernel does not count


@dataclass(frozen=True)
class Timing:
    """Seconds per unit of work: median, fastest and slowest repeat."""

    seconds: float
    fastest: float
    slowest: float
    repeats: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Summarise the seconds of all repeats."""
        return cls(statistics.median(seconds), min(seconds), max(seconds), len(seconds))

    def per(self, units: float) -> Timing:
        """Divide by the number of units in the work."""
        return Timing(self.seconds / units, self.fastest / units, self.slowest / units, self.repeats)


@dataclass(frozen=True)
class Clock:
    """How often and how long to measure."""

    repeats: int
    at_least_s: float


@dataclass(frozen=True)
class Limit:
    """What was computed, its rate in FLOP/s in the median repeat, and its time."""

    what: str
    flop_per_s: float
    timing: Timing


@dataclass(frozen=True)
class Limits:
    """The two limits of one device in the dtype of the run, and the number of devices."""

    product: Limit
    convolution: Limit
    devices: int = 1


@dataclass(frozen=True)
class Layer:
    """A convolution without weights, on the ``meta`` device, its input shape (C, H, W), and its FLOP."""

    module: nn.Conv2d | nn.ConvTranspose2d
    shape: tuple[int, ...]
    flop: int

    @property
    def name(self) -> str:
        """Name of the layer in tables: its channels, kernel and input size."""
        module, (_, height, width) = self.module, self.shape
        kind = "transposed " if isinstance(module, nn.ConvTranspose2d) else ""
        kernel = "×".join(map(str, module.kernel_size))
        return f"{kind}{module.in_channels}→{module.out_channels}, {kernel}, {width}×{height}"


@dataclass(frozen=True)
class Work:
    """FLOP for one input: ``apply`` (pass 2), ``measure`` (pass 1, up to the last norm layer), and the largest layer.

    A multiplication with an addition counts as two. Only convolutions count; other layers are under 1 %.
    """

    apply: int
    measure: int
    largest: Layer


def measure_limits(layer: Layer, *, device: torch.device, dtype: torch.dtype, batch: int, clock: Clock) -> Limits:
    """Measure both limits; the convolution on a channels-last batch of the engine's size, or of 1 on a CPU."""
    return Limits(
        _product(device, dtype, clock), _convolution(layer, device, dtype, 1 if device.type == "cpu" else batch, clock)
    )


def count_work(spec: Spec, size: Size) -> Work:
    """Count the work of a generator on an input of ``size``, from shapes alone: without computing anything."""
    with torch.device("meta"):
        module, x = build(spec).eval(), torch.empty(1, spec.in_channels, size.height, size.width)
    seen: list[tuple[nn.Module, Tensor]] = []
    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.InstanceNorm2d)
    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs: seen.append((layer, inputs[0])))
        for layer in module.modules()
        if isinstance(layer, kinds)
    ]
    whole = _flop(module, x)
    for hook in hooks:
        hook.remove()
    layers = [
        Layer(layer, tuple(at.shape[1:]), _flop(layer, at))
        for layer, at in seen
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
    ]
    last_norm = [layer for layer, _ in seen if isinstance(layer, nn.InstanceNorm2d)][-1]
    last_norm.register_forward_pre_hook(_end)
    return Work(whole, _flop(module, x), _largest(layers))


def repeated(work: Callable[[], object], *, repeats: int, at_least_s: float) -> Timing:
    """Time ``work`` per call: once to warm up, then in each repeat until ``at_least_s`` seconds have passed."""
    work()
    return Timing.of([_one(work, at_least_s) for _ in range(repeats)])


def _product(device: torch.device, dtype: torch.dtype, clock: Clock) -> Limit:
    side, calls = _SIDE[device.type], _CALLS[device.type]
    one, other, out = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))

    def work() -> None:
        for _ in range(calls):
            torch.mm(one, other, out=out)
        _wait(device)

    timing = repeated(work, repeats=clock.repeats, at_least_s=clock.at_least_s).per(calls)
    return Limit(f"{side}×{side} matrices", 2 * side**3 / timing.seconds, timing)


@torch.inference_mode()
def _convolution(layer: Layer, device: torch.device, dtype: torch.dtype, batch: int, clock: Clock) -> Limit:
    module: nn.Module = layer.module.to_empty(device=device).to(dtype)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.02)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in the stubs
    x = torch.randn(batch, *layer.shape, device=device).to(dtype=dtype, memory_format=torch.channels_last)
    calls = _CALLS[device.type]

    def work() -> None:
        with torch.inference_mode():
            for _ in range(calls):
                module(x)
        _wait(device)

    timing = repeated(work, repeats=clock.repeats, at_least_s=clock.at_least_s).per(calls)
    return Limit(f"{layer.name}, batch {batch}", batch * layer.flop / timing.seconds, timing)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _EndError(Exception):
    """Raised to end a forward at the last norm layer."""


def _end(*_: object) -> None:
    raise _EndError


def _flop(module: nn.Module, x: Tensor) -> int:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter, suppress(_EndError):
        module(x)
    return int(counter.get_total_flops())


def _largest(layers: list[Layer]) -> Layer:
    """Return a layer of the kind and shape that takes most FLOP in total, usually that of the residual blocks."""
    spent: defaultdict[str, int] = defaultdict(int)
    for layer in layers:
        spent[layer.name] += layer.flop
    return max(layers, key=lambda layer: spent[layer.name])


def _one(work: Callable[[], object], at_least_s: float) -> float:
    calls, start = 0, time.perf_counter()
    while True:
        work()
        calls += 1
        elapsed = time.perf_counter() - start
        if elapsed >= at_least_s:
            return elapsed / calls
