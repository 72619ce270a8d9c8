"""What ``kin bench`` times: the whole translation, a plain loop for comparison, and each stage by itself.

The stages run the same code as a translation. All times are per patch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image

from kin_cli.bench.limits import Clock, Timing, Work, count_work, repeated
from kin_cli.concurrency import prefetch
from kin_cli.geometry import Cell, Floats, Pixels, Size
from kin_cli.models.architectures import Spec
from kin_cli.norm.lookup import Lookup
from kin_cli.passes.engine import Engine, EnginePool
from kin_cli.plan import Plan
from kin_cli.progress import SilentProgress
from kin_cli.pyramid.levels import build_levels, pad_tile
from kin_cli.settings import Settings
from kin_cli.slide.open import open_slide
from kin_cli.store.blobs import BlobStore
from kin_cli.translation import translate

_HELD = 64  # patches kept in memory
_BATCHES = {"cpu": 1, "cuda": 16}  # batches per device and call; on a GPU, copying and computing overlap


def end_to_end(settings: Settings, *, patches: int, repeats: int) -> tuple[Timing, dict[str, Any]]:
    """Time ``kin translate`` per patch, from slide to verified file; also return the record of the last run."""
    seconds, record = [], {}
    for _ in range(repeats):
        start = perf_counter()
        record = translate(settings, SilentProgress())
        seconds.append(perf_counter() - start)
        for file in (settings.output.path, settings.output.record_path):
            file.unlink()
    return Timing.of(seconds).per(patches), record


def plain_loops(plan: Plan, folder: Path, clock: Clock) -> tuple[Timing, Timing]:
    """Time the plain loop per patch: read, scale, forward, scale back and save as PNG, one patch after the other.

    Batch 1, float32, PyTorch's own InstanceNorm with each patch's statistics. The second timing is the work that
    kernelized normalization needs: every patch read and run twice, and saved once.
    """
    module = copy.deepcopy(plan.generator.module).to(plan.device)
    cells = cycle(plan.grid)

    def one(cell: Cell, *, save: bool = True) -> None:
        pixels = plan.view.read(plan.grid.box(cell))
        x = torch.from_numpy(pixels).to(plan.device).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            y = module(x)[0]
        levels = ((y.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        if save:
            Image.fromarray(np.ascontiguousarray(levels)).save(folder / f"{cell.row}_{cell.col}.png")

    def two(cell: Cell) -> None:
        one(cell, save=False)
        one(cell)

    def timed(work: Callable[[Cell], None]) -> Timing:
        return repeated(lambda: work(next(cells)), repeats=clock.repeats, at_least_s=2 * clock.at_least_s)

    return timed(one), timed(two)


def estimated_seconds(plan: Plan) -> float:
    """Estimate the time of both passes by timing the network on a patch of the slide, twice after a first, untimed run.

    Reading and writing run beside the network and are not counted. Memory bound: that of pass 1 for one patch.
    """
    grid = plan.grid
    cells = plan.measured_cells or list(grid)[:1]
    batch = [plan.view.read(grid.box(cells[len(cells) // 2]))]
    engine = plan.engines().first
    lookup = Lookup(grid.step, 0, "nearest")
    stats = np.broadcast_to(np.float32(1), (1, *(len(lookup.span(1)),) * 2, 2, plan.generator.channels))

    def once() -> float:
        start = perf_counter()
        engine.apply(batch, np.ascontiguousarray(stats), lookup)
        return perf_counter() - start

    once()
    seconds = min(once(), once())
    return sum(count * cost for count, cost in plan.outlook().values()) * seconds / len(plan.devices)


def _spec(plan: Plan) -> Spec:
    spec = plan.generator.spec
    assert spec is not None, "the command takes no network of one's own"
    return spec


@dataclass(frozen=True)
class Stage:
    """Time of a stage per patch (per pixels of a patch), and its FLOP per patch if it is a pass."""

    name: str
    timing: Timing
    flop: int | None = None


@dataclass(frozen=True)
class Bench:
    """The stages of a plan without a halo, and of a plan with seamless windows (None: not measured).

    Memory bound: 64 patches, and two batches of windows with the network's features of one.
    """

    plan: Plan
    seamless: Plan | None
    folder: Path
    clock: Clock

    @cached_property
    def engines(self) -> EnginePool:
        """The generator on its devices."""
        return self.plan.engines()

    @cached_property
    def work(self) -> Work:
        """FLOP of a patch."""
        return count_work(_spec(self.plan), Size(self.plan.grid.step, self.plan.grid.step))

    @cached_property
    def patches(self) -> list[Pixels]:
        """Up to 64 patches of the slide in reading order, repeated if that is less than a batch."""
        grid = self.plan.grid
        cells = list(grid)[:_HELD]
        read = [self.plan.view.read(grid.box(cell)) for cell in cells]
        return (read * -(-self.plan.batch // len(read)))[: max(self.plan.batch, len(read))]

    def stages(self) -> list[Callable[[], Stage | None]]:
        """Return the measurements of all stages in order; a measurement returns None if there is no such stage."""
        return [self.read, self.measure, self.apply, self.apply_seamless, self.encode, self.pyramid]

    def read(self) -> Stage:
        """Time reading from the slide by all threads; the slide is opened afresh for each repeat."""
        plan, seconds = self.plan, []
        boxes = [plan.grid.box(cell) for cell in list(plan.grid)[: 4 * _HELD]]
        for _ in range(self.clock.repeats + 1):
            with open_slide(plan.view.slide.path) as slide:
                view = replace(plan.view, slide=slide)
                start = perf_counter()
                for _pixels in prefetch(view.read, boxes, workers=plan.workers, ahead=2 * plan.workers):
                    pass
                seconds.append(perf_counter() - start)
        return Stage("read", Timing.of(seconds[1:]).per(len(boxes)))

    def measure(self) -> Stage:
        """Time pass 1 on batches of patches in memory, or of their middle if it measures only that."""
        side = self.plan.settings.norm.measured_px
        middle = self.plan.grid.middle(Cell(0, 0), side).slices()
        batch = [np.ascontiguousarray(pixels[middle]) for pixels in self.patches[: self.plan.batch]]
        flop = count_work(_spec(self.plan), Size(side, side)).measure
        return Stage("measure", self._passes(lambda engine: engine.measure(batch)).per(len(batch)), flop)

    def apply(self) -> Stage:
        """Time pass 2 on the same batches, with patches as windows."""
        plan, batch = self.plan, self.patches[: self.plan.batch]
        stats = self._stats_of(plan.lookup, (1, 1), len(batch))
        timing = self._passes(lambda engine: engine.apply(batch, stats, plan.lookup)).per(len(batch))
        return Stage("apply", timing, self.work.apply)

    def apply_seamless(self) -> Stage | None:
        """Time pass 2 in a window of ``--seamless``, per patch of output; FLOP do not include those of the halo."""
        plan = self.seamless
        if plan is None:
            return None
        window = next(plan.windows.blocks(lambda _: False)).windows[0]
        batch, patches = [plan.view.read(window.read)] * plan.batch, window.rows * window.cols
        stats = self._stats_of(plan.lookup, (window.rows, window.cols), len(batch))
        timing = self._passes(lambda engine: engine.apply(batch, stats, plan.lookup)).per(len(batch) * patches)
        return Stage("apply, seamless", timing, self.work.apply)

    def encode(self) -> Stage:
        """Time encoding of translated tiles by all threads."""
        plan, tiles = self.plan, self._tiles

        def work() -> None:
            for _payload in prefetch(plan.codec.encode, tiles, workers=plan.workers, ahead=2 * plan.workers):
                pass

        return Stage("encode", self._repeated(work).per(self._tile_patches(len(tiles))))

    def pyramid(self) -> Stage | None:
        """Time the reduced levels, from encoded tiles in a store; None for an image that has none."""
        plan, layout = self.plan, self.plan.layout
        if not layout.reduced_count:
            return None
        payloads = [plan.codec.encode(tile) for tile in self._tiles]
        seconds = []
        for number in range(self.clock.repeats):
            with BlobStore(self.folder, f"levels{number}", capacity=layout.tile_count) as store:
                for place, key in enumerate(layout.keys(0)):
                    store.put(key, payloads[place % len(payloads)])
                start = perf_counter()
                build_levels(store, layout, codec=plan.codec, workers=plan.workers)
                seconds.append(perf_counter() - start)
        return Stage("levels", Timing.of(seconds).per(self._tile_patches(len(layout.grid(0)))))

    @cached_property
    def _tiles(self) -> list[Pixels]:
        plan, batch = self.plan, self.patches[: self.plan.batch]
        tile = plan.layout.tile
        outputs = self.engines.first.apply(batch, self._stats_of(plan.lookup, (1, 1), len(batch)), plan.lookup)
        return [pad_tile(pixels[:tile, :tile], tile) for pixels in outputs] * max(1, 16 // len(outputs))

    def _tile_patches(self, tiles: int) -> float:
        return tiles * (self.plan.layout.tile / self.plan.grid.step) ** 2

    def _stats_of(self, lookup: Lookup, patches: tuple[int, int], batch: int) -> Floats:
        """Means and scales (B, rows, cols, 2, C) for windows of ``patches``: those of one patch in every cell."""
        rows, cols = (len(lookup.span(count)) for count in patches)
        stats: Floats = np.tile(self._stats, (batch, rows, cols, 1, 1))
        return stats

    @cached_property
    def _stats(self) -> Floats:
        stats: Floats = self.engines.first.measure(self.patches[:1])[0].copy()
        np.divide(1.0, stats[1], out=stats[1], where=stats[1] > 0)
        return stats

    def _passes(self, work: Callable[[Engine], object]) -> Timing:
        """Time ``work`` per batch, while all devices process one batch after the other, as in a translation."""
        batches = len(self.engines.engines) * _BATCHES[self.plan.device.type]

        def run() -> None:
            for _done in self.engines.run(lambda engine, _: work(engine), range(batches), progress=SilentProgress()):
                pass

        return self._repeated(run).per(batches)

    def _repeated(self, work: Callable[[], object]) -> Timing:
        return repeated(work, repeats=self.clock.repeats, at_least_s=self.clock.at_least_s)
