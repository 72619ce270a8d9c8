"""The batch itself: slide after slide, whatever becomes of each."""

from __future__ import annotations

import csv
import io
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from kin_cli import __version__
from kin_cli.batch.child import ChildProcess
from kin_cli.batch.jobs import SlideTask, refuse_collisions
from kin_cli.batch.shard import Shard
from kin_cli.errors import KinError, OutputError, Stopped, UsageError
from kin_cli.progress import Progress
from kin_cli.settings import Settings
from kin_cli.store.files import create_atomic, os_errors_as_output_errors, write_atomic

FOLDER = "kin-batch"
_NAME = "plan.json"
State = Literal["pending", "running", "done", "skipped", "filled", "failed", "stopped"]


# FROM batch.run: The batch itself: slide after slide, whatever becomes of each.


@dataclass(frozen=True)
class SlideBatch:
    """Jobs with their settings, where their outputs go, and the part of them that is ours (None: all)."""

    jobs: Sequence[SlideTask]
    settings: Callable[[SlideTask], Settings]
    outputs: Path
    shard: Shard | None = None


def run_batch(batch: SlideBatch, progress: Progress) -> Status:
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
    if batch.shard is not None:
        agree_on_slides(folder, batch.jobs, batch.shard)
        jobs, stem = batch.shard.of(batch.jobs), f"status-{batch.shard}"
    status, child = Status(folder, stem, jobs), ChildProcess()
    status.save()
    try:
        with progress.stage("slides", len(jobs), "slides") as advance:
            for number, (job, row) in enumerate(zip(jobs, status.rows, strict=True), 1):
                row.status = "running"
                status.save()
                _translate(child, settings[job], row, progress)
                status.save()
                reason = f": {row.reason}" if row.reason else ""
                progress.note(f"[{number}/{len(jobs)}] {job.slide}: {row.status} in {row.seconds:.1f} s{reason}")
                advance(1)
    except Stopped:
        status.save()
        raise
    finally:
        child.close()
    return status


def _translate(child: ChildProcess, settings: Settings, row: SlideStatus, progress: Progress) -> None:
    start = time.monotonic()
    try:
        child.start()
        start = time.monotonic()
        _make_folder(settings.output.path.parent)
        row.take(child.translate(settings, progress))
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


# FROM batch.plan_file: The plan of a batch that several jobs share: its slides and the number of its parts, the same for all of them.


def agree_on_slides(folder: Path, jobs: Sequence[SlideTask], shard: Shard) -> None:
    """Write the plan into ``folder``, or see that the one there has the same slides and the same number of parts.

    Otherwise slides would be left out or done twice without anybody noticing. Raises ``UsageError`` where they differ,
    ``OutputError`` where the plan cannot be read or written.
    """
    path = folder / _NAME
    slides = [[str(job.slide), str(job.output)] for job in jobs]
    wanted = {"parts": shard.total, "slides": slides}
    with os_errors_as_output_errors(path):
        if create_atomic(path, json.dumps(wanted, indent=1, ensure_ascii=True).encode()):
            return
        found = _parsed(path, path.read_bytes())
    hint = f"if no part is running any more, remove {path} to begin anew"
    if found["parts"] != shard.total:
        raise UsageError(f"{path}: this batch was begun in {found['parts']} parts, not {shard.total}", hint)
    if found["slides"] != slides:
        changed = [pair for pair in found["slides"] + slides if (pair in found["slides"]) != (pair in slides)]
        example = f", such as {changed[0][0]}" if changed else ": their order is another"
        raise UsageError(f"{path}: the slides are not those that this batch was begun with{example}", hint)


def _parsed(path: Path, content: bytes) -> dict[str, Any]:
    try:
        plan = json.loads(content)
        return {"parts": int(plan["parts"]), "slides": [[str(text) for text in pair] for pair in plan["slides"]]}
    except (ValueError, TypeError, KeyError):
        raise OutputError(f"{path}: is damaged", "remove it if no part is running any more") from None


# FROM batch.status: What became of every slide of a batch: a CSV for people and a JSON for programs, whole at any moment.


@dataclass
class SlideStatus:
    """One slide. ``filled``: done, but parts could not be read; ``skipped``: was there already, and was verified."""

    slide: str
    output: str
    status: State = "pending"
    reason: str = ""
    seconds: float | None = None
    width: int | None = None
    height: int | None = None
    mpp: float | None = None
    patches: int | None = None
    tiles: int | None = None
    unreadable_tiles: int | None = None
    output_bytes: int | None = None
    peak_rss_bytes: int | None = None

    def take(self, record: dict[str, Any]) -> None:
        """The outcome and figures of a run record."""
        plan, unread = record["plan"], record["unreadable"]
        self.width, self.height = plan["size"]
        self.mpp, self.patches, self.tiles = plan["mpp"], plan["patches_with_tissue"], plan["tiles"]
        self.unreadable_tiles, self.output_bytes = unread["tiles"], record["output_bytes"]
        self.peak_rss_bytes = record["peak_rss_bytes"]
        self.status = "skipped" if record.get("skipped") else "done"
        self.reason = "verified, same settings" if record.get("skipped") else ""
        if unread["tiles"] or unread["patches"]:
            self.status = "filled"
            self.reason = f"parts of {unread['tiles']} tiles could not be read; {unread['patches']} patches left out"


class Status:
    """The rows of a batch, kept in ``<stem>.csv`` and ``<stem>.json``, which are replaced at every ``save``."""

    def __init__(self, folder: Path, stem: str, jobs: Sequence[SlideTask]) -> None:
        self.rows = [SlideStatus(str(job.slide), str(job.output)) for job in jobs]
        self.paths = (folder / f"{stem}.csv", folder / f"{stem}.json")
        self._stem, self._started = stem, _now()

    def counts(self) -> dict[str, int]:
        """How many slides are in each state that occurs."""
        return dict(Counter(row.status for row in self.rows))

    def summary(self) -> dict[str, object]:
        """Everything, for JSON."""
        rows = [asdict(row) for row in self.rows]
        times = {"started": self._started, "written": _now()}
        return {"kin": __version__, "batch": self._stem, **times, "counts": self.counts(), "slides": rows}

    def save(self) -> None:
        """Write both files; ``OutputError`` where that fails."""
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, [field.name for field in fields(SlideStatus)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in self.rows)
        texts = (table.getvalue(), json.dumps(self.summary(), indent=1, ensure_ascii=False) + "\n")
        for path, text in zip(self.paths, texts, strict=True):
            with os_errors_as_output_errors(path):
                write_atomic(path, text.encode(errors="surrogateescape"))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
