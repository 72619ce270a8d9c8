"""The story: open, plan, measure, smooth, apply, fill, build the pyramid, write."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

from kin_cli import __version__
from kin_cli.geometry import Cell
from kin_cli.norm.table import SmoothedTable, StatTable
from kin_cli.passes.apply import Painter, TileStores, Uniform, apply_slide
from kin_cli.passes.background import fill_background
from kin_cli.passes.engine import Engine
from kin_cli.passes.measure import measure_slide
from kin_cli.passes.thumbnail import thumbnail_statistics
from kin_cli.pipeline.reporting import Reporter
from kin_cli.plan import Plan, make_plan
from kin_cli.pyramid.build import build_levels
from kin_cli.pyramid.flat import write_flat
from kin_cli.pyramid.metadata import ImageInfo
from kin_cli.pyramid.writer import write_pyramid
from kin_cli.settings import Settings
from kin_cli.store.blobs import BlobStore
from kin_cli.store.files import write_atomic
from kin_cli.store.work import WorkFolder


def translate(settings: Settings, reporter: Reporter) -> dict[str, object]:
    """Translate one slide and return the run record, which is also written beside the output.

    Work that was interrupted is continued. Memory is constant in the slide's size: see the bounds of each stage and
    ``Plan.host_bytes``. Raises a KinError where anything is wrong; the output appears only when complete and verified.
    """
    plan = make_plan(settings)
    with plan.view.slide:
        return carry_out(plan, reporter)


def carry_out(plan: Plan, reporter: Reporter) -> dict[str, object]:
    """Do what the plan says."""
    clock, output = _Clock(), plan.settings.output
    with (
        WorkFolder.open(output.path, plan.fingerprint(), overwrite=output.overwrite) as work,
        ExitStack() as stores,
    ):
        painter = _painter(plan, work, stores)
        engine = Engine(plan.generator, device=plan.device, precision=plan.precision, convention=plan.convention)
        with clock("measure"):
            table = _statistics(plan, engine, work, stores, reporter)
        with clock("apply"):
            apply_slide(
                plan.view,
                table,
                painter,
                engine=engine,
                lookup=plan.lookup,
                batch=plan.batch,
                workers=plan.workers,
                reporter=reporter,
            )
        with clock("background"):
            fill_background(plan.view, painter, mode=output.background, workers=plan.workers, reporter=reporter)
        with clock("pyramid"):
            finish_pyramid(painter.stores.tiles, plan, reporter)
        record = _record(plan, clock)
        write_atomic(output.record_path, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
        stores.close()
        work.remove()
    return record


def finish_pyramid(tiles: BlobStore, plan: Plan, reporter: Reporter) -> None:
    """Make the levels above the base and write the output under its final name."""
    layout, codec, output = plan.layout, plan.codec, plan.settings.output
    with reporter.stage("pyramid", layout.reduced_count) as advance:
        build_levels(tiles, layout, codec=codec, workers=plan.workers, progress=advance)
    if output.flat:
        write_flat(tiles, layout, codec=codec, info=_info(plan), destination=output.path)
        return
    with reporter.stage("write", layout.tile_count) as advance:
        write_pyramid(tiles, layout, codec=codec, info=_info(plan), destination=output.path, progress=advance)


def _painter(plan: Plan, work: WorkFolder, stores: ExitStack) -> Painter:
    def store(name: str, capacity: int) -> BlobStore:
        return stores.enter_context(BlobStore(work.folder, name, capacity=capacity))

    base = len(plan.layout.grid(0))
    tile_stores = TileStores(store("tiles", plan.layout.tile_count), store("mixed", base), store("glass", base))
    return Painter(plan.windows, plan.layout, plan.codec, tile_stores, plan.mask)


def _statistics(
    plan: Plan, engine: Engine, work: WorkFolder, stores: ExitStack, reporter: Reporter
) -> SmoothedTable | Uniform:
    norm = plan.settings.norm
    if norm.method == "tin":
        return Uniform(thumbnail_statistics(plan.view, norm.thumbnail, engine=engine, patch_px=norm.patch_px))
    store = stores.enter_context(BlobStore(work.folder, "table", capacity=len(plan.grid)))
    table = StatTable(store, rows=plan.grid.rows, cols=plan.grid.cols, channels=engine.channels)
    cells = [Cell(int(row), int(col)) for row, col in np.argwhere(plan.weights > 0)]
    measure_slide(
        plan.view,
        plan.grid,
        cells,
        engine=engine,
        table=table,
        batch=plan.batch,
        workers=plan.workers,
        reporter=reporter,
    )
    store.commit()
    return SmoothedTable(table, plan.weights, norm.effective_kernel)


def _info(plan: Plan) -> ImageInfo:
    icc = plan.view.slide.icc if plan.settings.output.icc == "keep" else None
    return ImageInfo(
        mpp=plan.view.mpp,
        icc=icc,
        software=f"kin {__version__}",
        name=plan.settings.source.slide.name,
        settings=plan.fingerprint(),
    )


def _record(plan: Plan, clock: _Clock) -> dict[str, object]:
    output = plan.settings.output.path
    return {
        "kin": __version__,
        "torch": torch.__version__,
        "slide": str(plan.settings.source.slide),
        "model": str(plan.settings.model),
        "layout": plan.generator.layout,
        "output": str(output),
        "settings": plan.fingerprint(),
        "plan": plan.summary(),
        "output_bytes": output.stat().st_size,
        "seconds": {name: round(seconds, 2) for name, seconds in clock.seconds.items()},
        "peak_rss_bytes": peak_rss_bytes(),
        "peak_device_bytes": _peak_device_bytes(plan.device),
    }


def peak_rss_bytes() -> int:
    """Largest resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _peak_device_bytes(device: torch.device) -> int | None:
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


class _Clock:
    """Wall-clock seconds of named stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = time.perf_counter() - start
