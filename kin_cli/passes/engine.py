"""The device that runs a generator: uint8 images in, statistics or uint8 images out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kin_cli.errors import DeviceError
from kin_cli.models.checkpoint import Generator
from kin_cli.models.patch import patch
from kin_cli.norm.layer import Field
from kin_cli.norm.lookup import Lookup

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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


@dataclass(frozen=True)
class Convention:
    """How statistics are taken: ``correction`` 0 biased, 1 unbiased; ``eps`` None is each layer's own."""

    correction: int = 0
    eps: float | None = None


class Engine:
    """A patched generator on a device. Used by one thread at a time.

    Memory bound: the network's activations for one batch of windows; nothing is kept between calls.
    """

    def __init__(
        self, generator: Generator, *, device: torch.device, precision: Precision, convention: Convention
    ) -> None:
        self.device, self._dtype = device, _DTYPES[precision]
        # 16 patches of the deepest feature map: enough for reflection padding in every known layout.
        side = max(64, 2 * generator.stride)
        network = patch(generator.module, side=side, eps=convention.eps, correction=convention.correction)
        network.module.to(device=device, dtype=self._dtype)
        network.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in the stubs
        self._network = network
        self.channels, self.layers, self.stride = network.channels, network.layers, generator.stride

    def measure(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Statistics of each image (H, W, 3), all of one size: (B, 2, ΣC), means and standard deviations."""
        parts = [self._network.measure(batch) for batch in self._batches(images)]
        stats: NDArray[np.float32] = torch.cat(parts).cpu().numpy()
        return stats

    def apply(
        self, images: Sequence[NDArray[np.uint8]], cells: NDArray[np.float32], lookup: Lookup
    ) -> list[NDArray[np.uint8]]:
        """Translated windows without their halo.

        images: windows (H, W, 3) of one size, halo included; cells: (B, r, c, 2, ΣC), what each window reads, or
        (B, 1, 1, 2, ΣC) where the statistics are the same everywhere.
        """
        halo, (height, width) = lookup.halo_px, images[0].shape[:2]
        patches = ((height - 2 * halo) // lookup.patch_px, (width - 2 * halo) // lookup.patch_px)
        table = torch.from_numpy(np.ascontiguousarray(cells)).to(self.device)
        out: list[NDArray[np.uint8]] = []
        for batch in self._batches(images):
            field = Field(table[len(out) : len(out) + len(batch)], lookup, patches)
            y = self._network.apply(batch, field)[:, :, halo : height - halo, halo : width - halo]
            out.extend(_to_bytes(y).cpu().numpy())
        return out

    def _batches(self, images: Sequence[NDArray[np.uint8]]) -> list[Tensor]:
        """Network inputs in [-1, 1]: the whole batch on a GPU.

        On a CPU one image at a time: a batch gains nothing there, and a convolution may add in another order for
        another batch size, which would make the bytes of the output depend on it.
        """
        step = 1 if self.device.type == "cpu" else len(images)
        return [self._to_input(images[first : first + step]) for first in range(0, len(images), step)]

    def _to_input(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        x = torch.from_numpy(np.stack(images)).to(self.device)  # (B, H, W, 3)
        x = x.permute(0, 3, 1, 2).to(torch.float32).mul_(2 / 255).sub_(1)
        return x.to(dtype=self._dtype, memory_format=torch.channels_last)


def _to_bytes(y: Tensor) -> Tensor:
    """[-1, 1] (B, 3, H, W) to uint8 (B, H, W, 3), rounded half up as the authors do; NaN becomes 0."""
    grey = y.float().clamp(-1, 1).mul_(127.5).add_(128).nan_to_num_(0)
    return grey.clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
