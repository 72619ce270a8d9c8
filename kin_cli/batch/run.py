"""The batch itself: slide after slide, whatever becomes of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kin_cli.batch.jobs import Job, refuse_collisions
from kin_cli.batch.plan_file import agree_on_plan
from kin_cli.batch.status import Row, Status
from kin_cli.batch.worker import Worker
from kin_cli.errors import KinError, OutputError, Stopped
from kin_cli.pipeline.reporting import Reporter
from kin_cli.pipeline.share import Share
from kin_cli.settings import Settings
from kin_cli.store.files import os_errors_as_output_errors

FOLDER = "kin-batch"


@dataclass(frozen=True)
class Batch:
    """Jobs with their settings, where their outputs go, and the part of them that is ours (None: all)."""

    jobs: Sequence[Job]
    settings: Callable[[Job], Settings]
    outputs: Path
    share: Share | None = None


def run_batch(batch: Batch, reporter: Reporter) -> Status:
    """Translate our part of the jobs, one after another, and return what became of each.

    The status is in ``<outputs>/kin-batch/`` all the time. Raises ``UsageError`` for collisions, settings that make no
    sense and a plan of other parts, all before work starts; ``Stopped`` on a signal; ``OutputError`` where the status
    cannot be written. No slide's failure raises.
    """
    refuse_collisions(batch.jobs)
    settings = {job: batch.settings(job) for job in batch.jobs}
    folder = batch.outputs / FOLDER
    with os_errors_as_output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    jobs, stem = batch.jobs, "status"
    if batch.share is not None:
        agree_on_plan(folder, batch.jobs, batch.share)
        jobs, stem = batch.share.of(batch.jobs), f"status-{batch.share}"
    status, worker = Status(folder, stem, jobs), Worker()
    status.save()
    try:
        with reporter.stage("slides", len(jobs), "slides") as advance:
            for number, (job, row) in enumerate(zip(jobs, status.rows, strict=True), 1):
                row.status = "running"
                status.save()
                _translate(worker, settings[job], row, reporter)
                status.save()
                reason = f": {row.reason}" if row.reason else ""
                reporter.note(f"[{number}/{len(jobs)}] {job.slide}: {row.status} in {row.seconds:.1f} s{reason}")
                advance(1)
    except Stopped:
        status.save()
        raise
    finally:
        worker.close()
    return status


def _translate(worker: Worker, settings: Settings, row: Row, reporter: Reporter) -> None:
    start = time.monotonic()
    try:
        worker.start()
        start = time.monotonic()
        _make_folder(settings.output.path.parent)
        row.take(worker.translate(settings, reporter))
    except Stopped:
        row.status, row.reason = "stopped", "interrupted; the same command continues"
        raise
    except KinError as error:
        row.status, row.reason = "failed", " ".join(str(error).split()).removeprefix(f"{row.slide}: ")
    finally:
        row.seconds = round(time.monotonic() - start, 2)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be created: {error.strerror}", "choose another -o") from error
