"""The first and the last convolution in their possible forms, in ms per patch: python benchmarks/ends.py --device cuda

First, 7×7 from 3 channels: as it is; from 8 channels, five of them 0; space-to-depth, 4×4 at stride 1 from 12 channels
(half the resolution, four times the outputs). Last, 7×7 to 3 channels: as it is; to 8 channels; in 16 phases (10×10 at
stride 4 to 48 channels). Work counts what a form multiplies, zeros included.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

from kin_cli.bench.limits import Clock, repeated
from kin_cli.passes.devices import DTYPES, ready_devices, resolve_precision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--patch-size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()
    device = ready_devices(options.device)[0]
    dtype = DTYPES[resolve_precision(options.precision, device)]
    batch, calls = (options.batch_size, 10) if device.type == "cuda" else (1, 1)
    side, width, clock = options.patch_size, options.width, Clock(3, 0.1)
    forms = {  # layer, side of its input
        "first, 3 channels": (nn.Conv2d(3, width, 7), side + 6),
        "first, 8 channels": (nn.Conv2d(8, width, 7), side + 6),
        "first, space to depth": (nn.Conv2d(12, 4 * width, 4), side // 2 + 3),
        "last, 3 channels": (nn.Conv2d(width, 3, 7), side + 6),
        "last, 8 channels": (nn.Conv2d(width, 8, 7), side + 6),
        "last, 16 phases": (nn.Conv2d(width, 48, 10, stride=4), side + 6),
    }
    for name, (layer, extent) in forms.items():
        layer.to(device=device, dtype=dtype).to(memory_format=torch.channels_last)
        x = torch.randn(batch, layer.in_channels, extent, extent, device=device).to(dtype)
        x = x.to(memory_format=torch.channels_last)

        def work(layer: nn.Conv2d = layer, x: torch.Tensor = x) -> None:
            with torch.inference_mode():
                for _ in range(calls):
                    layer(x)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        timing = repeated(work, repeats=clock.repeats, at_least_s=clock.at_least_s).per(calls * batch)
        made = ((extent - layer.kernel_size[0]) // layer.stride[0] + 1) ** 2 * layer.out_channels
        gflop = 2 * made * layer.in_channels * layer.kernel_size[0] ** 2 / 1e9
        print(f"{name}: {1000 * timing.seconds:.3f} ms, {gflop:.1f} GFLOP", flush=True)


if __name__ == "__main__":
    main()
