"""What the device could do: the rate of a plain matrix product, and of the convolution that most of the work is in."""

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
_CALLS = {"cuda": 10, "cpu": 1}  # before waiting: launching a kernel must not count


# FROM bench.limits: What the device could do: the rate of a plain matrix product, and of the convolution that most of the work is in.


@dataclass(frozen=True)
class Limit:
    """A rate in FLOP/s, of the median repeat, and what was computed."""

    what: str
    flop_per_s: float
    timing: Timing


@dataclass(frozen=True)
class Limits:
    """The two limits that a pass is compared with, in the dtype of the run, of one device; there are ``devices``."""

    product: Limit
    convolution: Limit
    devices: int = 1


@dataclass(frozen=True)
class Clock:
    """How long to measure."""

    repeats: int
    at_least_s: float


def measure_limits(layer: Layer, *, device: torch.device, dtype: torch.dtype, batch: int, clock: Clock) -> Limits:
    """Both limits; the convolution on a channels-last batch as large as the engine's, one on a CPU."""
    return Limits(
        _product(device, dtype, clock), _convolution(layer, device, dtype, 1 if device.type == "cpu" else batch, clock)
    )


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


# FROM bench.flops: How much there is to compute: floating-point operations of a generator, counted on shapes alone.


@dataclass(frozen=True)
class Layer:
    """A convolution without its weights: what it takes, (C, H, W), and the module on the ``meta`` device."""

    module: nn.Conv2d | nn.ConvTranspose2d
    shape: tuple[int, ...]
    flop: int

    @property
    def name(self) -> str:
        """For people: channels, kernel, size."""
        module, (_, height, width) = self.module, self.shape
        kind = "transposed " if isinstance(module, nn.ConvTranspose2d) else ""
        kernel = "×".join(map(str, module.kernel_size))
        return f"{kind}{module.in_channels}→{module.out_channels}, {kernel}, {width}×{height}"


@dataclass(frozen=True)
class Work:
    """FLOP of one input: of pass 2, of pass 1, which ends at the last norm layer, and the layer that most goes into.

    A multiplication and an addition count as two; only convolutions count, norm layers and the like are under 1 %.
    """

    apply: int
    measure: int
    largest: Layer


class _EndError(Exception):
    """The last norm layer is reached."""


def count_work(spec: Spec, size: Size) -> Work:
    """The work of a generator on an input of ``size``. Takes no memory and no time to speak of."""
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


def _end(*_: object) -> None:
    raise _EndError


def _flop(module: nn.Module, x: Tensor) -> int:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter, suppress(_EndError):
        module(x)
    return int(counter.get_total_flops())


def _largest(layers: list[Layer]) -> Layer:
    """A layer of the shape on which most is spent in all, as in the residual blocks."""
    spent: defaultdict[str, int] = defaultdict(int)
    for layer in layers:
        spent[layer.name] += layer.flop
    return max(layers, key=lambda layer: spent[layer.name])


# FROM bench.timing: Timing a piece of work: a warm-up, repeats of at least some length, the median.


@dataclass(frozen=True)
class Timing:
    """Seconds per unit of work: the median of the repeats, the fastest and the slowest."""

    seconds: float
    fastest: float
    slowest: float
    repeats: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """From one number for each repeat."""
        return cls(statistics.median(seconds), min(seconds), max(seconds), len(seconds))

    def per(self, units: float) -> Timing:
        """The same for a unit of which the work had ``units``."""
        return Timing(self.seconds / units, self.fastest / units, self.slowest / units, self.repeats)


def repeated(work: Callable[[], object], *, repeats: int, at_least_s: float) -> Timing:
    """Seconds per call of ``work``, which is called once before to warm up, then in each repeat until time is up."""
    work()
    return Timing.of([_one(work, at_least_s) for _ in range(repeats)])


def _one(work: Callable[[], object], at_least_s: float) -> float:
    calls, start = 0, time.perf_counter()
    while True:
        work()
        calls += 1
        elapsed = time.perf_counter() - start
        if elapsed >= at_least_s:
            return elapsed / calls
