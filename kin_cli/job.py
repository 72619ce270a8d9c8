"""One process's part in making one output: its claim, its stores of unfinished work, its table of statistics."""

from __future__ import annotations

import json
import resource
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

import torch

from kin_cli import __version__
from kin_cli.errors import OutputError
from kin_cli.geometry import Cell
from kin_cli.norm.table import SmoothedTable, Statistics, StatTable, UniformStatistics
from kin_cli.passes.apply import TileSink, TileStores, apply_slide
from kin_cli.passes.background import fill_background
from kin_cli.passes.engine import EnginePool, Execution
from kin_cli.passes.measure import measure_slide, thumbnail_statistics
from kin_cli.plan import Plan
from kin_cli.progress import Progress
from kin_cli.pyramid.check import finished_record, verified_record
from kin_cli.pyramid.levels import build_levels
from kin_cli.pyramid.metadata import ImageInfo
from kin_cli.pyramid.writer import write_flat, write_pyramid
from kin_cli.slide.unreadable import Faults, strict
from kin_cli.store.blobs import BlobStore
from kin_cli.store.files import os_errors_as_output_errors, sync_folder, work_folder, write_atomic
from kin_cli.store.work import ALONE, WorkFolder, check_disk, kept_store, made_by, open_work

_SAMPLES = 16
_SAMPLE_BYTES = 1 << 16


class Job:
    """One process's part in a translation: the plan, its claim on the work folder, and its open stores.

    Several jobs, each with another ``shard``, may fill the stores of one output together.
    """

    def __init__(self, plan: Plan, work: WorkFolder, shard: str) -> None:
        self.plan, self._work, self._shard = plan, work, shard
        self._stores = ExitStack()
        self._clock = _Clock()
        tiles = plan.layout.grid(0)
        capacity = Faults.capacity_for(tiles=tiles, patches=plan.grid)
        self.faults = Faults(self._store("faults", capacity), plan.view, tiles=tiles, patches=plan.grid)

    @classmethod
    @contextmanager
    def begin(cls, plan: Plan, *, shard: str = ALONE) -> Iterator[Job]:
        """Claim the work, or what an interrupted run left of it; the claim ends with the block.

        Raises ``OutputError`` where a live process holds it, it belongs to other settings, or the disk is too small.
        """
        output = plan.settings.output
        check_disk(output.path, plan.disk_bytes)
        with open_work(output.path, plan.fingerprint(), overwrite=output.overwrite, shard=shard) as work:
            job = cls(plan, work, shard)
            with job._stores:
                yield job

    @cached_property
    def engines(self) -> EnginePool:
        """The generator on its devices."""
        return self.plan.engines()

    @cached_property
    def _table_store(self) -> BlobStore:
        folder = self.plan.settings.table
        if folder is None:
            return self._store("table", len(self.plan.grid))
        return self._stores.enter_context(kept_table(self.plan, folder, shard=self._shard))

    @cached_property
    def _table(self) -> StatTable:
        grid = self.plan.grid
        return StatTable(self._table_store, rows=grid.rows, cols=grid.cols, channels=self.plan.generator.channels)

    def unmeasured(self) -> int:
        """How many patches pass 1 has still to measure."""
        return sum(cell not in self._table for cell in self.plan.measured_cells)

    def left_over(self) -> dict[str, object] | None:
        """The record of a run that was killed when nothing but its clean-up was left to do."""
        output = self.plan.settings.output
        ours = made_by(self._work, output.path)
        if not output.path.exists() or (output.overwrite and not ours):
            return None
        try:
            return finished_record(output.path, output.record_path, self.plan.fingerprint())
        except OutputError:
            if not ours:
                raise
            return None  # killed between giving the output its name and writing the record: do that again

    def sink(self, block_rows: range | None = None) -> TileSink:
        """What keeps finished tiles."""
        layout, base = self.plan.layout, len(self.plan.layout.grid(0))
        stores = TileStores(
            self._store("tiles", layout.tile_count), self._store("partial", base), self._store("background", base)
        )
        return TileSink(self.plan.windows, layout, self.plan.codec, stores, self.plan.mask, block_rows)

    def statistics(self, cells: Sequence[Cell], progress: Progress) -> Statistics:
        """Pass 1 over those of ``cells`` that no job has measured yet, and the kernel."""
        plan, norm = self.plan, self.plan.settings.norm
        with self._clock("measure"):
            if norm.method == "tin":
                stats = thumbnail_statistics(
                    plan.view, norm.thumbnail, engine=self.engines.first, patch_px=norm.patch_px
                )
                return UniformStatistics(stats)
            fill = plan.settings.source.on_read_error == "fill"
            measured = measure_slide(
                strict(plan.view),
                plan.grid,
                cells,
                self._table,
                side_px=norm.measured_px,
                execution=self._execution(progress),
                unreadable=self.faults.add_patch if fill else None,
            )
            if measured:
                self._table_store.commit()
            return SmoothedTable(self._table, plan.table_weights, norm.effective_kernel, prior=plan.prior)

    def apply(self, statistics: Statistics, sink: TileSink, progress: Progress) -> None:
        """Pass 2."""
        plan = self.plan
        with self._clock("apply"):
            apply_slide(
                plan.view,
                statistics,
                sink,
                lookup=plan.lookup,
                execution=self._execution(progress),
            )

    def finish(self, sink: TileSink, progress: Progress) -> dict[str, object]:
        """Fill the background, make the levels, write the output and its record, which is returned."""
        plan, output = self.plan, self.plan.settings.output
        with self._clock("background"):
            fill_background(plan.view, sink, mode=output.background, workers=plan.workers, progress=progress)
        with self._clock("pyramid"):
            finish_pyramid(sink.stores.tiles, plan, progress)
        record = _record(plan, self._clock, self.faults)
        draft = self._work.path("record.json")  # here, so that a death leaves no temporary file beside the output
        with os_errors_as_output_errors(output.record_path):
            write_atomic(draft, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
            draft.replace(output.record_path)
            sync_folder(output.record_path.parent)
        return record

    def clean_up(self) -> None:
        """Remove the work folder: the output is complete."""
        self._stores.close()
        self._work.remove()

    def _execution(self, progress: Progress) -> Execution:
        return Execution(self.engines, self.plan.batch, self.plan.workers, progress)

    def _store(self, name: str, capacity: int) -> BlobStore:
        store = BlobStore(self._work.folder, name, shard=self._shard, capacity=capacity)
        return self._stores.enter_context(store)


def skipped(plan: Plan, progress: Progress) -> dict[str, object] | None:
    """The record of an output that needs no work, if that may be skipped and there is one; it is verified first."""
    output = plan.settings.output
    if not output.skip_existing or not output.path.exists() or work_folder(output.path).exists():
        return None
    try:
        return {**verified_record(output.path, output.record_path, plan.fingerprint()), "skipped": True}
    except OutputError as error:
        if not output.overwrite:
            raise
        progress.note(f"{error.message}: it is replaced")
        return None


def finish_pyramid(tiles: BlobStore, plan: Plan, progress: Progress) -> None:
    """Make the levels above the base and write the output under its final name."""
    layout, codec, output = plan.layout, plan.codec, plan.settings.output
    with progress.stage("pyramid", layout.reduced_count) as advance:
        build_levels(tiles, layout, codec=codec, workers=plan.workers, advance=advance)
    if output.flat:
        write_flat(tiles, layout, codec=codec, info=_info(plan), destination=output.path)
        return
    with progress.stage("write", layout.tile_count) as advance:
        write_pyramid(tiles, layout, codec=codec, info=_info(plan), destination=output.path, advance=advance)


def _info(plan: Plan) -> ImageInfo:
    icc = plan.view.slide.icc if plan.settings.output.icc == "keep" else None
    return ImageInfo(
        mpp=plan.view.mpp,
        icc=icc,
        software=f"kin {__version__}",
        name=plan.settings.source.slide.name,
        settings=plan.fingerprint(),
    )


def _record(plan: Plan, clock: _Clock, faults: Faults) -> dict[str, object]:
    output = plan.settings.output.path
    return {
        "kin": __version__,
        "torch": torch.__version__,
        "slide": str(plan.settings.source.slide),
        "model": str(plan.settings.model),
        "architecture": plan.generator.architecture,
        "model_notes": list(plan.generator.notes),
        "output": str(output),
        "settings": plan.fingerprint(),
        "plan": plan.summary(),
        "warnings": plan.warnings(),
        "unreadable": faults.summary(),
        "output_bytes": output.stat().st_size,
        "seconds": {name: round(seconds, 2) for name, seconds in clock.seconds.items()},
        "peak_rss_bytes": peak_rss_bytes(),
        "peak_device_bytes": _peak_device_bytes(plan),
    }


def peak_rss_bytes() -> int:
    """Largest resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _peak_device_bytes(plan: Plan) -> int | None:
    """Of the device that needed most."""
    if plan.device.type != "cuda":
        return None
    return max(torch.cuda.max_memory_reserved(device) for device in plan.devices)


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


@contextmanager
def kept_table(plan: Plan, folder: Path, *, shard: str = ALONE) -> Iterator[BlobStore]:
    """The store of the table in ``folder``: read only if no wanted patch is missing, else to be continued.

    Which patches those are does not matter to the others, so another tissue mask only adds what it lacks. Raises
    ``OutputError`` where the folder holds a table of other settings, naming them; see ``kept_store``.
    """
    selected = plan.table_weights.ravel() > 0
    with kept_store(
        folder,
        table_fingerprint(plan),
        name="table",
        shard=shard,
        capacity=len(plan.grid),
        wanted=(int(key) for key in selected.nonzero()[0]),
    ) as store:
        yield store


def table_fingerprint(plan: Plan) -> dict[str, object]:
    """Everything that changes the statistics of a patch."""
    norm, view = plan.settings.norm, plan.view
    return {
        "slide": _content_id(plan.settings.source.slide),
        "level": view.level,
        "mpp": view.mpp,
        "region": [view.region.x, view.region.y, view.region.width, view.region.height],
        "model sha256": plan.generator.sha256,
        "patch size": norm.patch_px,
        "measured size": norm.measured_px,
        "correction": norm.correction,
        "eps": norm.eps,
        "device": plan.device.type,
        "precision": plan.precision,
        "compiled": plan.compiled,
        "kin": __version__,
    }


def _content_id(slide: Path) -> str:
    """Size and checksum of 64 KiB in each sixteenth of a file: a slide may move, but not change."""
    crc, size = 0, slide.stat().st_size
    with os_errors_as_output_errors(slide), slide.open("rb") as file:
        for sample in range(_SAMPLES):
            file.seek(sample * (size // _SAMPLES))
            crc = zlib.crc32(file.read(_SAMPLE_BYTES), crc)
    return f"{size} bytes (crc32 of samples {crc:08x})"
