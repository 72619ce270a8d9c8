"""What the host does for a GPU, in ms of one core per patch of 512 px: python benchmarks/host.py

Needs no GPU: reading, the table, copies in memory and encoding are what they are with one, and kernels are launched
with a driver that does nothing. Prints each stage, and the fraction of 8 cores that it takes if the GPU needs the given
times per patch. Seamless windows are cheaper: fewer launches and cells per patch.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch.nn import functional as F

from kin_cli.geometry import Box, Cell, Grid, Pixels, Size
from kin_cli.norm.fused import FieldAxis, Finish, Uniform, Varying
from kin_cli.norm.gpu import KernelOps
from kin_cli.norm.kernel import Kernel
from kin_cli.norm.lookup import Lookup
from kin_cli.norm.table import SmoothedTable, StatTable
from kin_cli.passes.apply import TileSink, TileStores
from kin_cli.passes.engine import Transfer
from kin_cli.passes.windows import WindowGrid
from kin_cli.progress import SilentProgress
from kin_cli.pyramid.codec import Codec
from kin_cli.pyramid.levels import PyramidLayout, build_levels
from kin_cli.sample import write_sample
from kin_cli.settings import OutputSettings
from kin_cli.slide.open import open_slide
from kin_cli.slide.tissue import tissue_mask
from kin_cli.slide.view import open_view
from kin_cli.store.blobs import BlobStore

PATCH = 512
CHANNELS = 5248  # of all norms: width 64, nine blocks
CONVOLUTIONS, NORMS = 24, 23
CONVOLUTION_MS = 0.03  # to launch one by cuDNN; not measured here


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure-ms", type=float, default=1.4, help="what a GPU takes per patch in pass 1")
    parser.add_argument("--apply-ms", type=float, default=1.25, help="and in pass 2")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = stages(Path(folder), options.size, options.batch_size, options.repeats)
    paces = {"measure": options.measure_ms, "apply": options.apply_ms}
    for name, pace in paces.items():
        parts = {stage: ms for (pass_, stage), ms in found.items() if pass_ == name}
        total = sum(parts.values())
        for stage, ms in [*parts.items(), ("all", total)]:
            print(
                f"{name:>8}, {stage:<28}{ms:7.3f} ms per patch, {100 * ms / (8 * pace):5.1f} % of 8 cores", flush=True
            )


def stages(folder: Path, side: int, batch: int, repeats: int) -> dict[tuple[str, str], float]:
    """Milliseconds of one core per patch for each pass and stage."""
    slide_file = folder / "slide.tif"
    size = Size(side, side)
    write_sample(OutputSettings(slide_file), size, seed=0, workers=None, progress=SilentProgress())
    grid = Grid(size, PATCH)
    cells = list(grid)

    def least(work: Callable[[], object], patches: int) -> float:
        spent = []
        for _ in range(repeats):
            start = time.process_time()
            work()
            spent.append(time.process_time() - start)
        return 1000 * min(spent) / patches

    found: dict[tuple[str, str], float] = {}
    pixels: list[Pixels] = []

    def read() -> None:
        pixels.clear()
        with open_slide(slide_file) as slide:
            view = open_view(slide)
            pixels.extend(view.read(grid.box(cell)) for cell in cells)

    found["measure", "reading"] = found["apply", "reading"] = least(read, len(cells))
    transfer = Transfer(torch.device("cpu"))
    stats = np.random.default_rng(0).random((batch, 2, CHANNELS), np.float32) + 0.1

    def copied(arrays: list[Any], back: torch.Tensor) -> None:
        transfer.send(arrays)().clone()
        back.numpy().copy()

    sent = pixels[:batch]
    found["measure", "copies"] = least(lambda: copied(sent, torch.from_numpy(stats)), batch)
    lookup = Lookup(PATCH, 0, "nearest")
    around = np.tile(stats[:, None, None], (1, *(len(lookup.span(1)),) * 2, 1, 1))

    def there_and_back() -> None:
        copied(sent, torch.from_numpy(np.stack(sent)))
        copied([around], torch.zeros(batch))

    found["apply", "copies"] = least(there_and_back, batch)
    found["measure", "table"], found["apply", "cells"] = table_and_cells(folder, least)
    found["measure", "launching"], found["apply", "launching"] = (ms / batch for ms in launching(repeats))
    with open_slide(slide_file) as slide:
        tiles, levels = encoding(folder, slide, grid, pixels, repeats)
    found["apply", "tiles, their checks, JPEG"] = tiles
    found["apply", "levels above, after the pass"] = levels
    return found


def table_and_cells(folder: Path, least: Callable[[Callable[[], object], int], float]) -> tuple[float, float]:
    """Storing statistics in the table; smoothing them, gaussian:7, for a pass in plain windows."""
    rows, cols = 14, 40
    made = np.random.default_rng(0).random((2, CHANNELS), np.float32) + 0.1
    with BlobStore(folder, "statistics", capacity=rows * cols) as store:
        table = StatTable(store, rows=rows, cols=cols, channels=CHANNELS)
        places = [Cell(row, col) for row in range(rows) for col in range(cols)]
        start = time.process_time()
        for cell in places:
            table.write(cell, made)
        stored = 1000 * (time.process_time() - start) / len(places)

        def smooth() -> None:
            smoothed = SmoothedTable(table, np.ones((rows, cols), np.float32), Kernel.parse("gaussian:7"))
            for cell in places:
                smoothed.block(range(cell.row, cell.row + 1), range(cell.col, cell.col + 1))

        return stored, least(smooth, len(places))


def encoding(folder: Path, slide: Any, grid: Grid, pixels: list[Pixels], repeats: int) -> tuple[float, float]:
    """Per patch: checking, encoding and storing its tiles; the levels above, with their tiles."""
    view, layout = open_view(slide), PyramidLayout(grid.size, PATCH)
    windows = WindowGrid(grid, layout.grid(0), np.ones((grid.rows, grid.cols), bool), window_px=PATCH, block_px=PATCH,
                         halo_px=0)  # fmt: skip
    mask, spent = tissue_mask(view, "none"), []
    for number in range(repeats):
        names = ("tiles", "partial", "background")
        capacities = (layout.tile_count, len(layout.grid(0)), len(layout.grid(0)))
        stores = [
            BlobStore(folder, f"{name}{number}", capacity=most) for name, most in zip(names, capacities, strict=True)
        ]
        codec = Codec("jpeg", 85, "420")
        sink = TileSink(windows, layout, codec, TileStores(*stores), mask)
        start = time.process_time()
        for cell, made in zip(grid, pixels, strict=True):
            box: Box = windows.tiles.clipped(cell)
            sink.keep((cell, made), source=lambda box=box: view.read(box))
        middle = time.process_time()
        build_levels(stores[0], layout, codec=codec, workers=1)
        spent.append((middle - start, time.process_time() - middle))
        for store in stores:
            store.close()
    tiles, levels = (1000 * min(each) / len(pixels) for each in zip(*spent, strict=True))
    return tiles, levels


@contextmanager
def no_gpu() -> Iterator[None]:
    """A driver for Triton that compiles for sm_90 and launches nothing."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    utils = SimpleNamespace(
        load_binary=lambda *_: (0, 0, 32, 0, 1024), get_device_properties=lambda _: {"max_shared_mem": 227 << 10},
        unload_module=lambda _: None,
    )  # fmt: skip
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", 90, 32), get_current_device=lambda: 0,
            get_current_stream=lambda _: 0, launcher_cls=lambda *_: lambda *_: None, utils=utils,
        )
    )  # fmt: skip
    yield


def launching(repeats: int) -> tuple[float, float]:
    """Milliseconds per batch in pass 1 and in pass 2: the kernels through Triton's Python, convolutions as assumed."""
    try:
        import triton  # noqa: F401
    except ImportError:
        print("Triton is not installed: launching is left out")
        return 0.0, 0.0
    x = torch.zeros(2, 64, 8, 8, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    values = Uniform(torch.zeros(2, 64), torch.ones(2, 64))
    axis = FieldAxis(torch.zeros(8, dtype=torch.int64), torch.ones(8, dtype=torch.int64), torch.zeros(8))
    field = Varying(torch.zeros(2, 2, 2, 2, 64), axis, axis)
    levels, patch = torch.zeros(2, 8, 8, 3, dtype=torch.uint8), 8
    with no_gpu(), torch.inference_mode():
        ops = KernelOps()
        calls: dict[str, Callable[[], object]] = {
            "sums": lambda: ops.measured(x, correction=0, eps=1e-5, offset=values.mean[0]),
            "sweep": lambda: ops(x, values, Finish(True, 1), residual=x),
            "field": lambda: ops(x, field, Finish(True, 1), residual=x),
            "input": lambda: ops.to_input(levels, channels=8, dtype=torch.bfloat16),
            "bytes": lambda: ops.to_bytes(x[:, :3], patch),
            "convolution on a CPU, 8 px": lambda: F.conv2d(x.float(), torch.zeros(64, 64, 1, 1)),
        }
        ms = {name: per_call(call, repeats) for name, call in calls.items()}
    print("launching, µs per call:", ", ".join(f"{name} {1000 * each:.0f}" for name, each in ms.items()))
    convolutions = CONVOLUTIONS * CONVOLUTION_MS
    measure = convolutions + NORMS * (ms["sums"] + ms["sweep"]) + ms["input"]
    return measure, convolutions + NORMS * max(ms["sweep"], ms["field"]) + 4 * ms["sweep"] + ms["input"] + ms["bytes"]


def per_call(call: Callable[[], object], repeats: int, calls: int = 1000) -> float:
    """Milliseconds of one core, the least of ``repeats``."""
    call()
    spent = []
    for _ in range(repeats):
        start = time.process_time()
        for _ in range(calls):
            call()
        spent.append(time.process_time() - start)
    return 1000 * min(spent) / calls


if __name__ == "__main__":
    main()
