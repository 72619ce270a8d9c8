"""Time per operator and shape: python benchmarks/profile_layers.py [--device cuda]

Profiles both passes of the engine on random patches with ``torch.profiler`` and prints a table for each. A row is an
operator on inputs of one shape: in these networks, one layer or a few equal layers.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from kin_cli.bench.run import RandomGenerator
from kin_cli.models.architectures import build
from kin_cli.models.checkpoint import load_generator, save_generator
from kin_cli.norm.lookup import Lookup
from kin_cli.passes.devices import ready_devices, resolve_precision
from kin_cli.passes.engine import Engine


def table(name: str, work: Callable[[], object], *, device: torch.device, calls: int, rows: int) -> None:
    """Profile ``calls`` calls and print their operators, slowest first."""
    work()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities, record_shapes=True) as found:
        for _ in range(calls):
            work()
    print(f"\n{name}, {calls} calls")
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    averages = found.key_averages(group_by_input_shape=True)
    print(averages.table(sort_by=order, row_limit=rows, max_shapes_column_width=60))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architecture", default="cut", choices=["cut", "cyclegan", "urust"])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--patch-size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--rows", type=int, default=30)
    options = parser.parse_args()
    device = ready_devices(options.device)[0]
    spec = RandomGenerator(options.architecture, options.width, options.blocks).spec
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "random.safetensors"
        torch.manual_seed(0)
        save_generator(build(spec), file, spec=spec)
        generator = load_generator(file)
    precision = resolve_precision(options.precision, device)
    engine = Engine(generator, device=device, precision=precision, kernels=options.kernels and device.type == "cuda")
    side = options.patch_size
    images = list(np.random.default_rng(0).integers(0, 255, (options.batch_size, side, side, 3), np.uint8))
    stats = engine.measure(images)
    stats[:, 1] = 1 / np.maximum(stats[:, 1], 1e-6)
    scales, lookup = np.ascontiguousarray(stats[:, None, None]), Lookup(side, 0, "nearest")
    kind = {"device": device, "calls": options.calls, "rows": options.rows}
    kernels = "kernels" if options.kernels else "torch's operators"
    print(f"{options.architecture}, width {options.width}, {options.blocks} blocks, {precision}, {kernels}", end=", ")
    print(f"batch {options.batch_size}")
    table("measure (pass 1)", lambda: engine.measure(images), **kind)
    table("apply (pass 2)", lambda: engine.apply(images, scales, lookup), **kind)


if __name__ == "__main__":
    main()
