"""Compute devices, the precision of a generator on them, and the host's memory if the device is a CPU."""

from __future__ import annotations

import ctypes
import sys
from typing import Literal

import torch

from kin_cli.errors import DeviceError, LostDeviceError

Precision = Literal["fp32", "bf16", "fp16"]
FAST_DEVICES = ("cpu", "cuda")
"""Kinds of devices with fused operations; ``PLAIN_DEVICES`` run the network as it is, in float32."""
PLAIN_DEVICES = ("mps", "xpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # parameters of mallopt, from malloc.h
_LARGEST_INT = 2**31 - 1


def ready_devices(names: str) -> tuple[torch.device, ...]:
    """Resolve the devices of a run, as ``resolve_devices`` does, and prepare this process's memory if they are CPUs.

    Call this before the first thread starts; see ``keep_freed_memory``.
    """
    devices = resolve_devices(names)
    if devices[0].type == "cpu":
        keep_freed_memory()
    return devices


def resolve_devices(names: str) -> tuple[torch.device, ...]:
    """The devices of a comma-separated list such as ``cuda:0,cuda:1``; ``cuda:all`` is every GPU.

    Raises ``DeviceError`` if one is missing, or if they are of different kinds, whose pixels would differ.
    """
    listed = [name.strip() for name in names.split(",")]
    if listed == ["cuda:all"]:
        listed = [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cuda"]
    devices = tuple(resolve_device(name) for name in listed)
    if len({device.type for device in devices}) > 1:
        raise DeviceError(f"devices '{names}' are of different kinds", "their results differ: use one kind")
    return devices


def resolve_device(name: str) -> torch.device:
    """The device named ``auto``, ``cpu``, ``cuda:1``, ``mps`` or the like. Raises ``DeviceError`` if it is missing."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    others = [kind for kind in PLAIN_DEVICES if _has(torch.device(kind))]
    hint = "known here: " + ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), *others])
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"device '{name}' is not known", hint) from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise LostDeviceError(f"device '{name}' is not there", hint)
    if device.type in PLAIN_DEVICES and not _has(device):
        raise DeviceError(f"device '{name}' is not there, or this torch was built without it", hint)
    if device.type not in FAST_DEVICES + PLAIN_DEVICES:
        raise DeviceError(f"device '{name}' is not supported", hint)
    return device


def resolve_precision(name: str, device: torch.device) -> Precision:
    """The precision of this name; ``auto`` is fp32 on a CPU, bf16 on a GPU that supports it, fp16 on other GPUs.

    Raises ``DeviceError`` for another than fp32 on a device that runs the plain network.
    """
    if device.type in PLAIN_DEVICES:
        if name not in ("auto", "fp32"):
            raise DeviceError(f"device '{device}' computes in float32 alone here", "leave out --precision")
        return "fp32"
    if name in ("fp32", "bf16", "fp16"):
        return name  # type: ignore[return-value]  # mypy does not narrow a str by membership
    if device.type == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def _has(device: torch.device) -> bool:
    """Whether a device of ``PLAIN_DEVICES`` can be used."""
    if device.type == "mps":
        return torch.backends.mps.is_available()
    xpu = getattr(torch, "xpu", None)
    return xpu is not None and bool(xpu.is_available()) and (device.index or 0) < xpu.device_count()


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next feature map, instead of returning it to the kernel at once.

    A network on a CPU allocates the same few sizes over and over. For maps above 32 MiB, zeroing each allocation afresh
    took a quarter of the time. The peak rises by up to a quarter, once. Does nothing with another C library.

    Call this before the first thread starts: a thread otherwise gets a heap of its own, of at most 64 MiB, which glibc
    always returns.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
