"""How much a network may see at once: estimates of its memory, and the windows and batches chosen from them."""

from __future__ import annotations

import torch

from kin_cli.models.checkpoint import Generator
from kin_cli.passes.devices import Precision

# A window is part of what decides the pixels, so it depends on the kind of device, never on what is free just now.
_WINDOW_BYTES = {"cpu": 3 << 30, "cuda": 6 << 30}
# On a CPU larger maps gain a tenth by their smaller share of halo, and lose more by leaving every cache.
_WINDOW_PX = {"cpu": 1024, "cuda": 2048}
_BATCH_BYTES = 3 << 29
_BATCH = 8  # more gained nothing: each patch is work enough to fill a GPU
_FREE_SHARE = 0.7  # of a device that others may use, too


def activation_bytes(generator: Generator, side_px: int, precision: Precision) -> int:
    """Upper estimate of a forward's peak memory on a window of ``side_px``.

    At the widest place of full resolution a convolution's input, its output and a padded copy of that are alive: three
    maps. The fourth is what the allocator loses between them.
    """
    widest = 2 * generator.width if "cyclegan" not in generator.layout else generator.width
    return 4 * widest * side_px**2 * (4 if precision == "fp32" else 2)


def auto_window(generator: Generator, *, patch_px: int, halo_px: int, device: str, precision: Precision) -> int:
    """One patch without a halo; with one, the largest window that is worth it and whose activations stay in bounds."""
    window = patch_px
    while halo_px and 2 * window <= _WINDOW_PX[device]:
        if activation_bytes(generator, 2 * window + 2 * halo_px, precision) > _WINDOW_BYTES[device]:
            break
        window *= 2
    return window


def auto_batch(generator: Generator, side_px: int, *, device: torch.device, precision: Precision) -> int:
    """Windows of ``side_px`` at a time: one on a CPU, on a GPU up to 8 whose activations fit what is free."""
    if device.type == "cpu":
        return 1
    free, _total = torch.cuda.mem_get_info(device)
    allowed = min(_BATCH_BYTES, int(_FREE_SHARE * free))
    return max(1, min(_BATCH, allowed // activation_bytes(generator, side_px, precision)))
