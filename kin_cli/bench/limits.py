"""What the device could do: the rate of a plain matrix product, and of the convolution that most of the work is in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from kin_cli.bench.flops import Layer
from kin_cli.bench.timing import Timing, repeated

_SIDE = {"cuda": 8192, "cpu": 2048}
_CALLS = {"cuda": 10, "cpu": 1}  # before waiting: launching a kernel must not count


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
