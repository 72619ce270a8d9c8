"""One process's part in one output: its claim on the work folder, its stores, its table of statistics.

``Job`` is the tool of ``translate``; the table that outlives a run (``--table``) and the run record follow.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kin_cli import __version__
from kin_cli.errors import ModelError, OutputError
from kin_cli.geometry import Cell
from kin_cli.norm.table import SmoothedTable, Statistics, StatTable, UniformStatistics
from kin_cli.outputs import refuse_strangers
from kin_cli.passes.apply import TileSink, TileStores, apply_slide
from kin_cli.passes.background import fill_background
from kin_cli.passes.engine import EnginePool, Execution
from kin_cli.passes.measure import measure_slide, thumbnail_statistics
from kin_cli.passes.quality import not_finite, one_colour_note, overflow, summary
from kin_cli.passes.trust import TrustMap, map_files, trust_map, trust_note
from kin_cli.passes.windows import WindowGrid
from kin_cli.plan import Plan
from kin_cli.progress import Progress
from kin_cli.pyramid.check import finished_record, verified_record
from kin_cli.pyramid.levels import build_levels
from kin_cli.pyramid.metadata import ImageInfo
from kin_cli.pyramid.writer import write_flat, write_pyramid
from kin_cli.signals import finishing
from kin_cli.slide.shared import SharedIdentity
from kin_cli.slide.stain import unmatched
from kin_cli.slide.unreadable import Faults, strict
from kin_cli.slide.view import overview
from kin_cli.store.blobs import BlobStore
from kin_cli.store.files import (
    file_sha256,
    os_errors_as_output_errors,
    sync_folder,
    work_folder,
    write_atomic,
)
from kin_cli.store.work import (
    ALONE,
    WorkFolder,
    about_to_name,
    check_disk,
    kept_store,
    made_by,
    open_work,
)

RECORD_SCHEMA = 1
TRUST_MAP_PX = 1400  # longer side of the trust map


class Job:
    """One process's part in a translation: the plan, the claim on the work folder, and the open stores.

    Several jobs, each with a ``shard`` of its own, can fill the stores of one output together.
    """

    def __init__(self, plan: Plan, work: WorkFolder, shard: str, progress: Progress, slide: SharedIdentity) -> None:
        self.plan, self._work, self._shard, self._progress, self._slide = plan, work, shard, progress, slide
        self._sha256 = ""  # digest of the output
        self._stores = ExitStack()
        self._clock = _Clock()
        self._patches_not_finite: int | None = None  # not counted yet
        tiles = plan.layout.grid(0)
        capacity = Faults.capacity_for(tiles=tiles, patches=plan.grid)
        self.faults = Faults(self._store("faults", capacity), plan.view, tiles=tiles, patches=plan.grid)

    @classmethod
    @contextmanager
    def begin(cls, plan: Plan, progress: Progress, *, shard: str = ALONE) -> Iterator[Job]:
        """Claim the work folder, new or left by an interrupted run, until the ``with`` block ends.

        Raises ``OutputError`` if a live process holds it, if it belongs to other settings, or if the disk is too small.
        """
        output = plan.settings.output
        check_disk(output.path, plan.disk_bytes)
        with open_work(output.path, plan.fingerprint(), overwrite=output.overwrite, shard=shard) as work:
            slide = SharedIdentity(
                work.folder,
                plan.identity,
                contents="unfinished work",
                hint=f"remove {work.folder} and start afresh" + ("; so does --overwrite" if shard == ALONE else ""),
                note=progress.note,
                others_live=work.others_live,
            )
            slide.join()
            fresh = next(work.folder.glob("*.journal"), None) is None
            job = cls(plan, work, shard, progress, slide)
            with job._stores:
                job._open_table(fresh=fresh)
                try:
                    yield job
                    if shard != ALONE:
                        slide.settle(whole=False)
                except ModelError:  # nothing of this work can be used
                    with suppress(OutputError):  # other jobs are at work, and will meet the same
                        job.clean_up()
                    raise
                except BaseException:
                    slide.spoil_if_changed()
                    raise

    def _open_table(self, *, fresh: bool) -> None:
        """Open a table that the user keeps, before any work; if it is refused, a ``fresh`` work folder is removed."""
        if self.plan.settings.table is not None:
            try:
                self._table_store  # noqa: B018 - it is opened on first use
            except BaseException:
                if fresh:
                    with suppress(OutputError):
                        self.clean_up()
                raise

    @cached_property
    def engines(self) -> EnginePool:
        """The generator on the devices of the plan."""
        return self.plan.engines()

    @cached_property
    def _table_store(self) -> BlobStore:
        folder = self.plan.settings.table
        if folder is None:
            return self._store("table", len(self.plan.grid))
        return self._stores.enter_context(kept_table(self.plan, folder, note=self._progress.note, shard=self._shard))

    @cached_property
    def _table(self) -> StatTable:
        grid = self.plan.grid
        return StatTable(self._table_store, rows=grid.rows, cols=grid.cols, channels=self.plan.generator.channels)

    @cached_property
    def trust(self) -> TrustMap | None:
        """The trust map, for which all patches must be measured; None if the generator's training is not known."""
        plan = self.plan
        if plan.reference is None:
            return None
        with self._clock("trust"):
            found = trust_map(
                self._table,
                plan.reference,
                plan.grid,
                plan.table_weights,
                threshold=plan.settings.trust.threshold,
                precision=plan.precision,
                measured_px=plan.settings.norm.measured_px,
                matched=plan.stain_match is not None and plan.stain_match.needed,
            )
        if note := trust_note(found.summary(), str(plan.settings.output.trust_paths[0])):
            self._progress.note(note)
        return found

    @cached_property
    def windows(self) -> WindowGrid:
        """The windows of pass 2; if patches are left out for lack of trust, all must be measured."""
        trust = self.trust if self.plan.leaves_out else None
        return self.plan.windows if trust is None else self.plan.windows_of((self.plan.weights > 0) & ~trust.doubtful)

    def unmeasured(self) -> int:
        """Number of patches that pass 1 has not measured yet."""
        return sum(cell not in self._table for cell in self.plan.measured_cells)

    def left_over(self) -> dict[str, object] | None:
        """The record of a run that was killed between finishing the output and its clean-up, else None."""
        output = self.plan.settings.output
        ours = made_by(self._work, output.path)
        if not os.path.lexists(output.path) or (output.overwrite and not ours):
            return None
        try:
            return finished_record(output.path, output.record_path, self.plan.fingerprint())
        except OutputError:
            if not ours:
                raise
            return None  # killed between naming the output and writing the record: write both again

    def sink(self, block_rows: range | None = None) -> TileSink:
        """The sink of finished tiles, for the rows of blocks ``block_rows``; None: all."""
        layout, base = self.plan.layout, len(self.plan.layout.grid(0))
        stores = TileStores(
            self._store("tiles", layout.tile_count), self._store("partial", base), self._store("background", base)
        )
        return TileSink(self.windows, layout, self.plan.codec, stores, self.plan.mask, block_rows)

    def statistics(self, cells: Sequence[Cell], progress: Progress) -> Statistics:
        """Run pass 1 on the ``cells`` not measured yet by any job; return the statistics, smoothed with the kernel."""
        plan, norm = self.plan, self.plan.settings.norm
        with self._clock("measure"):
            if not plan.generator.channels:  # norm layers that are the same everywhere, or none
                return UniformStatistics(np.zeros((2, 0), np.float32))
            if norm.method == "tin":
                engine, side = self.engines.first, norm.patch_px
                return UniformStatistics(
                    thumbnail_statistics(plan.view, norm.thumbnail, engine=engine, patch_px=side, squash=norm.squash)
                )
            fill = plan.settings.source.on_read_error == "fill"
            before = [cell for cell in plan.measured_cells if cell in self._table]
            broken: list[Cell] = []
            measured = measure_slide(
                strict(plan.view),
                plan.grid,
                cells,
                self._table,
                side_px=norm.measured_px,
                execution=self._execution(progress),
                unreadable=self.faults.add_patch if fill else None,
                not_finite=broken.append,
            )
            if measured:
                self._table_store.commit()
            if not self.unmeasured():
                self._count_not_finite(before, broken)
            return SmoothedTable(self._table, plan.table_weights, norm.effective_kernel, prior=plan.prior)

    def _count_not_finite(self, before: Sequence[Cell], broken: Sequence[Cell]) -> None:
        """Count the patches with statistics that are not finite; raise ``ModelError`` if no patch has others.

        ``before`` were measured by an earlier run, ``broken`` are those of this run.
        """
        found = [cell for cell in not_finite(self._table, before) if not self.faults.has_patch(cell)]
        self._patches_not_finite = len(broken) + len(found)
        if self._patches_not_finite == len(self.plan.measured_cells) > 0:
            raise overflow(f"its features of all {self._patches_not_finite} patches of {self.plan.view.slide.path}")

    def apply(self, statistics: Statistics, sink: TileSink, progress: Progress) -> None:
        """Run pass 2: translate the tiles that are not in the sink's stores."""
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
        """Fill the background, build the pyramid, write the output and its record; return the record."""
        plan, output = self.plan, self.plan.settings.output
        with self._clock("background"):
            fill_background(unmatched(plan.view), sink, mode=output.background, workers=plan.workers, progress=progress)
        self._slide.settle(whole=True)
        with self._clock("pyramid"):
            finish_pyramid(sink.stores.tiles, plan, progress, before_naming=self._before_naming)
        if self._patches_not_finite is None:
            self._count_not_finite(plan.measured_cells, [])
        quality = summary(sink.stores.background, patches=self._patches_not_finite or 0)
        trust = self._write_trust()
        record = {**_record(plan, self._clock, self.faults, output_sha256=self._sha256), **quality, **trust}
        if note := one_colour_note(record):
            progress.note(note)
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        self._write_beside(output.record_path, text.encode(errors="backslashreplace"), draft="record.json")
        return record

    def _write_beside(self, path: Path, content: bytes, *, draft: str) -> None:
        """Write a file beside the output, unless it is another program's.

        It is drafted in the work folder, so that a killed process leaves no temporary file beside the output.
        """
        place = self._work.path(draft)
        with os_errors_as_output_errors(path):
            write_atomic(place, content)
            refuse_strangers(path, self.plan.settings.output)
            place.replace(path)
            sync_folder(path.parent)

    def _write_trust(self) -> dict[str, Any]:
        """Write the trust map beside the output; return its entry in the record."""
        found, plan = self.trust, self.plan
        if found is None:
            return {}
        output = plan.settings.output
        with self._clock("trust map"):
            picture = overview(unmatched(plan.view), TRUST_MAP_PX)
            contents = map_files(found, plan.view, picture, output=output.path.name)
            for path, content in zip(output.trust_paths, contents, strict=True):
                self._write_beside(path, content, draft="trust" + path.suffix)
        files = dict(zip(("map", "geojson"), (path.name for path in output.trust_paths), strict=True))
        return {"trust": {**found.summary(), **files}}

    def clean_up(self) -> None:
        """Remove the work folder of a complete output."""
        self._stores.close()
        self.plan.identity.close()  # its thread writes into the work folder
        with finishing():
            foreign = self._work.remove()
        if foreign:
            self._progress.note(f"{self._work.folder}: is left, it holds {', '.join(foreign[:3])}, not made by kin")

    def _before_naming(self, finished: Path) -> bool:
        """Take the output's digest; return whether it may replace a file of its name."""
        output = self.plan.settings.output
        may_replace = output.overwrite or made_by(self._work, output.path)
        if os.path.lexists(output.path) and not may_replace:
            raise OutputError(f"{output.path}: was made by another program meanwhile", "--overwrite replaces it")
        self._sha256 = file_sha256(finished)
        about_to_name(self._work, finished, output.path)
        return may_replace

    def _execution(self, progress: Progress) -> Execution:
        return Execution(self.engines, self.plan.batch, self.plan.workers, progress)

    def _store(self, name: str, capacity: int) -> BlobStore:
        store = BlobStore(self._work.folder, name, shard=self._shard, capacity=capacity)
        return self._stores.enter_context(store)


def skipped(plan: Plan, progress: Progress) -> dict[str, object] | None:
    """With ``skip_existing``: the record of an output that exists, after verifying it; else None."""
    output = plan.settings.output
    if not output.skip_existing or not os.path.lexists(output.path) or work_folder(output.path).exists():
        return None
    try:
        record = verified_record(output.path, output.record_path, plan.fingerprint())
        _check_same_slide(record, plan, progress)
        return {**record, "skipped": True}
    except OutputError as error:
        if not output.overwrite:
            raise
        progress.note(f"{error.message}: it is replaced")
        return None


def _check_same_slide(record: Mapping[str, Any], plan: Plan, progress: Progress) -> None:
    """Raise ``OutputError`` unless the record is of a run on the very bytes of the plan's slide."""
    output = plan.settings.output.path
    known = record.get("slide_files")
    if not isinstance(known, dict) or not plan.identity.is_recorded(known, note=progress.note):
        raise OutputError(
            f"{output}: was made from another slide of this name (its bytes differ)", "--overwrite replaces it"
        )


def finish_pyramid(
    tiles: BlobStore, plan: Plan, progress: Progress, *, before_naming: Callable[[Path], bool] | None = None
) -> None:
    """Build the levels above the base and write the output under its final name."""
    layout, codec, output = plan.layout, plan.codec, plan.settings.output
    with progress.stage("pyramid", layout.reduced_count, "tiles") as advance:
        build_levels(tiles, layout, codec=codec, workers=plan.workers, advance=advance)
    if output.flat:
        write_flat(tiles, layout, codec=codec, info=_info(plan), destination=output.path, before_naming=before_naming)
        return
    with progress.stage("write", layout.tile_count, "tiles") as advance:
        write_pyramid(
            tiles,
            layout,
            codec=codec,
            info=_info(plan),
            destination=output.path,
            advance=advance,
            before_naming=before_naming,
        )


@contextmanager
def kept_table(plan: Plan, folder: Path, *, note: Callable[[str], None], shard: str = ALONE) -> Iterator[BlobStore]:
    """The store of the table in ``folder``: read-only if all patches to be measured are in it, else writable.

    The statistics of a patch do not depend on which others are measured, so a table serves any tissue mask: missing
    patches are added. Raises ``OutputError`` if the folder holds a table of other settings, naming them; see
    ``kept_store``.
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
        slide = SharedIdentity(
            folder,
            plan.identity,
            contents="a table",
            hint=f"name another folder with --table, or remove {folder}",
            note=note,
            others_live=lambda: shard != ALONE,
        )
        slide.join()
        try:
            yield store
        except BaseException:
            if store.writable:
                slide.spoil_if_changed()
            raise
        slide.settle(whole=shard == ALONE)
        if shard == ALONE:
            plan.identity.sha256()  # the table outlives this process, which records the digest for those to come


def table_fingerprint(plan: Plan) -> dict[str, object]:
    """All settings and inputs that change the statistics of a patch, as a JSON object."""
    norm, view = plan.settings.norm, plan.view
    return {
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
        **plan.generator.facts,
        **({} if plan.stain_match is None else {"stain match": plan.stain_match.identity}),
    }


def peak_rss_bytes() -> int:
    """Peak resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _record(plan: Plan, clock: _Clock, faults: Faults, *, output_sha256: str) -> dict[str, object]:
    """The run record: versions, inputs, settings, plan, time and memory, as a JSON object."""
    output = plan.settings.output.path
    plan.identity.sha256()  # waits for the thread, or raises what it met
    return {
        "schema": RECORD_SCHEMA,
        "kin": __version__,
        "torch": torch.__version__,
        "slide": str(plan.settings.source.slide),
        "model": plan.settings.model_name,
        "architecture": plan.generator.architecture,
        "model_notes": list(plan.generator.notes),
        "output": str(output),
        "settings": plan.fingerprint(),
        "plan": plan.summary(),
        "warnings": plan.warnings(),
        **({} if plan.stain_match is None else {"stain_match": plan.stain_match.as_dict()}),
        "unreadable": faults.summary(),
        "output_bytes": output.stat().st_size,
        "output_sha256": output_sha256,
        "slide_files": plan.identity.as_dict(),
        "seconds": {name: round(seconds, 2) for name, seconds in clock.seconds.items()},
        "peak_rss_bytes": peak_rss_bytes(),
        "peak_device_bytes": _peak_device_bytes(plan),
    }


def _info(plan: Plan) -> ImageInfo:
    """The metadata that the output holds."""
    icc = plan.view.slide.icc if plan.settings.output.icc == "keep" else None
    return ImageInfo(
        mpp=plan.view.mpp,
        icc=icc,
        software=f"kin {__version__}",
        name=plan.settings.source.slide.name,
        settings=plan.fingerprint(),
        objective=plan.view.objective,
    )


def _peak_device_bytes(plan: Plan) -> int | None:
    """Peak memory reserved on a GPU, the largest over all devices, in bytes; None on a CPU."""
    if plan.device.type != "cuda":
        return None
    return max(torch.cuda.max_memory_reserved(device) for device in plan.devices)


class _Clock:
    """Measures the wall-clock seconds of named stages: ``with clock(name)``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = time.perf_counter() - start
