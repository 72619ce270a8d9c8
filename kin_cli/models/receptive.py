"""How far the network looks: the halo of real pixels that makes a window's inner pixels independent of its border.

Norm layers do not count: under KIN their statistics come from the table.
"""

from __future__ import annotations

import copy
import dataclasses
from functools import lru_cache

import torch
from torch import nn

from kin_cli.models.layouts import Spec, build
from kin_cli.models.unet import UnetSpec

_MAX_STRIP_PX = 1 << 14


@lru_cache
def halo_px(spec: Spec) -> int:
    """Largest distance in pixels between an input pixel and an output pixel that it can change.

    A U-Net of n halvings has a closed form: n convolutions of 4 taps and stride 2 down and n up reach 3 · (2ⁿ - 1)
    pixels, 765 for ``unet_256``. All others are measured, as ``measured_radius_px`` does, at a width of 1.
    """
    if isinstance(spec, UnetSpec):
        return 3 * (spec.stride - 1)
    narrow = dataclasses.replace(spec, width=1, in_channels=1, out_channels=1, affine=False)
    with torch.device("meta"):
        module = build(narrow)
    return measured_radius_px(module, stride=spec.stride, in_channels=1)


def measured_radius_px(module: nn.Module, *, stride: int, in_channels: int = 3) -> int:
    """Largest distance over which a convolutional network (B, C, H, W) → (B, C', H, W) carries an impulse, in pixels.

    In a copy without InstanceNorm every weight is positive, in float64, so that nothing cancels and the response is
    non-zero exactly where the receptive field reaches. Impulses at every phase of ``stride`` are tried, along x;
    kernels are taken to be square. The module may be on the ``meta`` device.

    Raises ``ValueError`` where the response reaches the border of every strip tried (16,384 px wide).
    """
    probe = _positive_copy(module)
    height, width = max(8, stride), 64 * stride
    while width <= _MAX_STRIP_PX:
        impulses = torch.zeros(stride, in_channels, height, width, dtype=torch.float64)
        columns = [width // 2 + phase for phase in range(stride)]
        for phase, column in enumerate(columns):
            impulses[phase, :, height // 2, column] = 1.0
        with torch.inference_mode():
            response = probe(impulses).ne(0).any(dim=2).any(dim=1)  # (stride, width)
        if not response[:, [0, -1]].any():
            reached = [row.nonzero().flatten() for row in response]
            return max(max(c - int(hit[0]), int(hit[-1]) - c) for c, hit in zip(columns, reached, strict=True))
        width *= 2
    raise ValueError(f"the receptive field of the network is wider than {_MAX_STRIP_PX} px")


def _positive_copy(module: nn.Module) -> nn.Module:
    probe = copy.deepcopy(module).to_empty(device="cpu").double().eval()
    for name, layer in list(probe.named_modules()):
        if isinstance(layer, nn.InstanceNorm2d):
            parent, _, attribute = name.rpartition(".")
            setattr(probe.get_submodule(parent), attribute, nn.Identity())
    with torch.no_grad():
        for tensor in (*probe.parameters(), *probe.buffers()):
            # kernels small enough that Tanh does not saturate, large enough that nothing underflows; biases 0
            tensor.fill_(1.0 / tensor[0].numel() if tensor.dim() > 1 else 0.0)
    return probe
