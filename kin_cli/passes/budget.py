"""How much memory a pass takes on a device: the size of windows and of batches."""

from __future__ import annotations

import torch

from kin_cli.models.checkpoint import Generator
from kin_cli.passes.devices import Precision

# The window changes the pixels, so it depends on the kind of device, but not on the memory that is free at the moment.
_WINDOW_BYTES = {"cpu": 3 << 30, "cuda": 6 << 30}
# On a CPU larger windows gain a tenth by a smaller fraction of halo, but lose more because their maps leave the caches.
_WINDOW_PX = {"cpu": 1024, "cuda": 2048}
_BATCH_BYTES = 3 << 29
_MAX_BATCH = 8  # at width 64 the smallest maps of 8 patches are 2,048 tiles of 128 × 128 numbers for some 132 units
# Usable part of a GPU's memory. Not of what is free at the moment: the batch decides in which order convolutions sum.
_DEVICE_FRACTION = 0.35


def activation_bytes(generator: Generator, side_px: int, precision: Precision) -> int:
    """Upper estimate of the peak memory of a forward pass on a window of ``side_px``, halo included.

    At the widest layer of full resolution three maps are alive: a convolution's input, its output, and a padded copy of
    the output. A fourth accounts for memory lost by the allocator.
    """
    if generator.width is None:
        return int((generator.bytes_per_px or 0) * side_px**2)
    widest = 2 * generator.width if "cyclegan" not in generator.architecture else generator.width
    return 4 * widest * side_px**2 * (4 if precision == "fp32" else 2)


def auto_window(generator: Generator, *, patch_px: int, halo_px: int, device: str, precision: Precision) -> int:
    """Side of a window: one patch if there is no halo, else the largest whose activations fit the memory bound."""
    window = patch_px
    while halo_px and 2 * window <= _WINDOW_PX.get(device, _WINDOW_PX["cpu"]):
        if activation_bytes(generator, 2 * window + 2 * halo_px, precision) > _WINDOW_BYTES.get(
            device, _WINDOW_BYTES["cpu"]
        ):
            break
        window *= 2
    return window


def auto_batch(generator: Generator, side_px: int, *, device: torch.device, precision: Precision) -> int:
    """Windows of ``side_px`` per batch: 1, on an NVIDIA GPU up to 8, if their activations fit into its memory."""
    if device.type != "cuda":
        return 1
    allowed = min(_BATCH_BYTES, int(_DEVICE_FRACTION * torch.cuda.get_device_properties(device).total_memory))
    # the padded copy is the only copy that kernels make, so that three maps are alive
    return max(1, min(_MAX_BATCH, allowed // (activation_bytes(generator, side_px, precision) * 3 // 4)))
