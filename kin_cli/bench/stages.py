"""Timing a piece of work: a warm-up, repeats of at least some length, the median."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from kin_cli.bench.limits import Clock, Timing, Work, count_work, repeated
from kin_cli.concurrency import prefetch
from kin_cli.geometry import Cell, Size
from kin_cli.models.checkpoint import load_generator
from kin_cli.norm.lookup import Lookup
from kin_cli.passes.engine import Engine, EnginePool
from kin_cli.plan import Plan
from kin_cli.progress import SilentProgress
from kin_cli.pyramid.levels import build_levels, pad_tile
from kin_cli.settings import Settings
from kin_cli.slide.open import open_slide
from kin_cli.store.blobs import BlobStore
from kin_cli.translate import translate

Pixels = NDArray[np.uint8]
_HELD = 64  # patches kept in memory to measure with
_BATCHES = {"cpu": 1, "cuda": 16}  # for each device; on a GPU their copies and their work overlap


# FROM bench.loops: The whole translation, and beside it what one would write without a second thought.


def end_to_end(settings: Settings, *, patches: int, repeats: int) -> tuple[Timing, dict[str, Any]]:
    """Seconds per patch of ``kin translate`` as a whole, slide to verified file, and the record of the last run."""
    seconds, record = [], {}
    for _ in range(repeats):
        start = perf_counter()
        record = translate(settings, SilentProgress())
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


# FROM bench.stages: The stages of a translation one by one, each through the very code that translates, each timed per patch.


@dataclass(frozen=True)
class Stage:
    """A stage's time per patch (per patch's worth of pixels), and what it computes there, if it is a pass."""

    name: str
    timing: Timing
    flop: int | None = None


@dataclass(frozen=True)
class Bench:
    """The stages of a plan, which has no halo, and of one with the seamless windows, None to leave that out.

    Memory bound: 64 patches, and two batches of windows with what the network makes of one.
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
        """What a patch costs."""
        return count_work(self.plan.generator.spec, Size(self.plan.grid.step, self.plan.grid.step))

    @cached_property
    def patches(self) -> list[Pixels]:
        """Patches of the slide in reading order, at least a batch of them."""
        grid = self.plan.grid
        cells = list(grid)[:_HELD]
        read = [self.plan.view.read(grid.box(cell)) for cell in cells]
        return (read * -(-self.plan.batch // len(read)))[: max(self.plan.batch, len(read))]

    def stages(self) -> list[Callable[[], Stage | None]]:
        """All stages, in the order of a pixel's way; None is one that does not occur."""
        return [self.read, self.measure, self.apply, self.apply_seamless, self.encode, self.pyramid]

    def read(self) -> Stage:
        """Reading from the slide, opened anew for each repeat, by all threads."""
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
        """Pass 1 on batches of patches in memory, or of their middle where it looks at no more."""
        side = self.plan.settings.norm.measured_px
        middle = self.plan.grid.middle(Cell(0, 0), side).slices()
        batch = [np.ascontiguousarray(pixels[middle]) for pixels in self.patches[: self.plan.batch]]
        flop = count_work(self.plan.generator.spec, Size(side, side)).measure
        return Stage("measure", self._passes(lambda engine: engine.measure(batch)).per(len(batch)), flop)

    def apply(self) -> Stage:
        """Pass 2 likewise, its windows the patches themselves."""
        plan, batch = self.plan, self.patches[: self.plan.batch]
        cells = self._cells(plan.lookup, (1, 1), len(batch))
        timing = self._passes(lambda engine: engine.apply(batch, cells, plan.lookup)).per(len(batch))
        return Stage("apply", timing, self.work.apply)

    def apply_seamless(self) -> Stage | None:
        """Pass 2 in the first window of ``--seamless``, per patch of its output; the halo's work counts for nothing."""
        plan = self.seamless
        if plan is None:
            return None
        window = next(plan.windows.blocks(lambda _: False)).windows[0]
        batch, patches = [plan.view.read(window.read)] * plan.batch, window.rows * window.cols
        cells = self._cells(plan.lookup, (window.rows, window.cols), len(batch))
        timing = self._passes(lambda engine: engine.apply(batch, cells, plan.lookup)).per(len(batch) * patches)
        return Stage("apply, seamless", timing, self.work.apply)

    def encode(self) -> Stage:
        """Encoding translated tiles by all threads."""
        plan, tiles = self.plan, self._tiles

        def work() -> None:
            for _payload in prefetch(plan.codec.encode, tiles, workers=plan.workers, ahead=2 * plan.workers):
                pass

        return Stage("encode", self._repeated(work).per(self._tile_patches(len(tiles))))

    def pyramid(self) -> Stage | None:
        """The levels above the base, from encoded tiles in a store; None for an image that has none."""
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
        outputs = self.engines.first.apply(batch, self._cells(plan.lookup, (1, 1), len(batch)), plan.lookup)
        return [pad_tile(pixels[:tile, :tile], tile) for pixels in outputs] * max(1, 16 // len(outputs))

    def _tile_patches(self, tiles: int) -> float:
        return tiles * (self.plan.layout.tile / self.plan.grid.step) ** 2

    def _cells(self, lookup: Lookup, patches: tuple[int, int], batch: int) -> NDArray[np.float32]:
        """Means and scales of one patch of the slide in every cell that a batch of windows of ``patches`` reads."""
        rows, cols = (len(lookup.span(count)) for count in patches)
        cells: NDArray[np.float32] = np.tile(self._stats, (batch, rows, cols, 1, 1))
        return cells

    @cached_property
    def _stats(self) -> NDArray[np.float32]:
        stats: NDArray[np.float32] = self.engines.first.measure(self.patches[:1])[0].copy()
        np.divide(1.0, stats[1], out=stats[1], where=stats[1] > 0)
        return stats

    def _passes(self, work: Callable[[Engine], object]) -> Timing:
        """Time of ``work`` on a batch where the devices take one batch after the other, as they do in a translation."""
        batches = len(self.engines.engines) * _BATCHES[self.plan.device.type]

        def run() -> None:
            for _done in self.engines.run(lambda engine, _: work(engine), range(batches), progress=SilentProgress()):
                pass

        return self._repeated(run).per(batches)

    def _repeated(self, work: Callable[[], object]) -> Timing:
        return repeated(work, repeats=self.clock.repeats, at_least_s=self.clock.at_least_s)
