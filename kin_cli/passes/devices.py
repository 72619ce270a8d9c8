"""Which devices run a generator, and in which precision."""

from __future__ import annotations

import ctypes
import sys
from typing import Literal

import torch

from kin_cli.errors import DeviceError

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h
_LARGEST = 2**31 - 1


# FROM passes.devices: Which devices run a generator, and in which precision.


def resolve_devices(names: str) -> tuple[torch.device, ...]:
    """The devices of a comma-separated list such as ``cuda:0,cuda:1``; ``cuda:all`` is every GPU.

    Raises DeviceError where one is not there or they are not of one kind, which would not give the same pixels.
    """
    listed = [name.strip() for name in names.split(",")]
    if listed == ["cuda:all"]:
        listed = [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cuda"]
    devices = tuple(resolve_device(name) for name in listed)
    if len({device.type for device in devices}) > 1:
        raise DeviceError(f"devices '{names}' are of different kinds", "their results differ: use one kind")
    return devices


def resolve_device(name: str) -> torch.device:
    """The device of a name such as ``auto``, ``cpu``, ``cuda``, ``cuda:1``; DeviceError where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hint = "known here: " + ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"device '{name}' is not known", hint) from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"device '{name}' is not there", hint)
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"device '{name}' is not supported", hint)
    return device


def resolve_precision(name: str, device: torch.device) -> Precision:
    """``auto`` is bf16 on a GPU that has it, fp16 on another GPU, fp32 on a CPU."""
    if name in ("fp32", "bf16", "fp16"):
        return name  # type: ignore[return-value]  # mypy does not narrow a str by membership
    if device.type == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def ready_devices(names: str) -> tuple[torch.device, ...]:
    """The devices of a run, as ``resolve_devices`` reads them, and this process's memory made ready for CPUs.

    To be called before the first thread; see ``keep_freed_memory``.
    """
    devices = resolve_devices(names)
    if devices[0].type == "cpu":
        keep_freed_memory()
    return devices


# FROM pipeline.allocation: How this process's memory is given back to the system: not at once.


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next feature map of that size, instead of returning each to the kernel.

    A network on a CPU asks for the same few sizes over and over; having each zeroed anew took a quarter of the time for
    maps above 32 MiB. To be called before the first thread, which gets a heap of its own otherwise, of at most 64 MiB,
    and glibc always returns that. The peak rises by up to a quarter, once. Does nothing with another C library.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST)
