"""The whole translation, and beside it what one would write without a second thought."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image

from kin_cli.bench.limits import Clock
from kin_cli.bench.timing import Timing, repeated
from kin_cli.geometry import Cell
from kin_cli.models.checkpoint import load_generator
from kin_cli.pipeline.reporting import SilentReporter
from kin_cli.plan import Plan
from kin_cli.settings import Settings
from kin_cli.translate import translate


def end_to_end(settings: Settings, *, patches: int, repeats: int) -> tuple[Timing, dict[str, Any]]:
    """Seconds per patch of ``kin translate`` as a whole, slide to verified file, and the record of the last run."""
    seconds, record = [], {}
    for _ in range(repeats):
        start = perf_counter()
        record = translate(settings, SilentReporter())
        seconds.append(perf_counter() - start)
        for file in (settings.output.path, settings.output.record_path):
            file.unlink()
    return Timing.of(seconds).per(patches), record


def plain_loops(plan: Plan, folder: Path, clock: Clock) -> tuple[Timing, Timing]:
    """Seconds per patch of the plain loop: read, scale, forward, scale back and save as PNG, one after the other.

    Batch 1, float32, the generator as PyTorch runs it, its InstanceNorm with each patch's own statistics. The second
    timing is of the work that kernelized normalization takes: every patch read and run twice, and saved once.
    """
    module = load_generator(plan.settings.model).module.to(plan.device)
    cells = cycle(plan.grid)

    def one(cell: Cell, *, save: bool = True) -> None:
        pixels = plan.view.read(plan.grid.box(cell))
        x = torch.from_numpy(pixels).to(plan.device).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            y = module(x)[0]
        grey = ((y.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        if save:
            Image.fromarray(np.ascontiguousarray(grey)).save(folder / f"{cell.row}_{cell.col}.png")

    def two(cell: Cell) -> None:
        one(cell, save=False)
        one(cell)

    def timed(work: Callable[[Cell], None]) -> Timing:
        return repeated(lambda: work(next(cells)), repeats=clock.repeats, at_least_s=2 * clock.at_least_s)

    return timed(one), timed(two)
