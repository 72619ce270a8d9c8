"""Translate many slides, one after another; a slide that fails does not stop the batch.

``<outputs>/kin-batch/`` holds the outcome of every slide: a CSV file for people and a JSON file for programs, complete
at any moment. Each batch also has a file of its own there, ``runs/<UTC time>.json``, with its command line and
versions, which later batches leave alone. For a batch in shards there is also ``slides.json``, the slides and the
number of shards that all shards agree on.
"""

from __future__ import annotations

import csv
import getpass
import importlib.metadata
import io
import json
import os
import platform
import shlex
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from kin_cli import __version__
from kin_cli.batch.child import ChildProcess
from kin_cli.batch.search import STATUS_FOLDER
from kin_cli.batch.shard import Shard
from kin_cli.batch.tasks import SlideTask, refuse_collisions
from kin_cli.errors import (
    KinError,
    LostDeviceError,
    ModelError,
    NoTissueError,
    OutputError,
    Stopped,
    UsageError,
)
from kin_cli.passes.quality import flaws
from kin_cli.progress import Progress
from kin_cli.settings import Settings
from kin_cli.store.files import create_atomic, os_errors_as_output_errors, real, write_atomic

AGREED_FILE = "slides.json"
RUNS_FOLDER = "runs"
SCHEMA = 1  # of the files that hold the outcome
State = Literal[
    "pending", "running", "done", "skipped", "filled", "flawed", "no tissue", "bad generator", "failed", "stopped"
]
INCOMPLETE: frozenset[State] = frozenset(["filled", "flawed", "no tissue", "bad generator", "failed"])
_LIBRARIES = ("torch", "numpy", "pillow", "tifffile", "imagecodecs", "openslide-python", "openslide-bin", "pyvips")


@dataclass(frozen=True)
class SlideBatch:
    """A batch: tasks, how to make the settings of one, the folder of the outputs, the shard to translate (None: all).

    ``command`` is the command line and ``left_out`` what was left out of the tasks; both are kept in the run's record.
    """

    tasks: Sequence[SlideTask]
    settings: Callable[[SlideTask], Settings]
    outputs: Path
    shard: Shard | None = None
    command: Sequence[str] = ()
    left_out: Sequence[str] = ()
    manifest: Path | None = None


@dataclass
class SlideStatus:
    """Outcome of one slide.

    ``filled`` means done, but parts of the slide were unreadable; ``skipped`` means that a verified output existed;
    ``flawed`` that the generator gave numbers that are not finite, or one colour; ``no tissue`` and ``bad generator``
    that there is no output, because of the slide or of the generator. ``unlike_training`` is the fraction of the tissue
    that the trust map flags; None without a map.
    """

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
    unlike_training: float | None = None
    output_bytes: int | None = None
    peak_rss_bytes: int | None = None

    def take(self, record: dict[str, Any]) -> None:
        """Copy the outcome and the numbers of a run record."""
        plan, unread = record["plan"], record["unreadable"]
        self.width, self.height = plan["size"]
        self.mpp, self.patches, self.tiles = plan["mpp"], plan["patches_with_tissue"], plan["tiles"]
        self.unreadable_tiles, self.output_bytes = unread["tiles"], record["output_bytes"]
        self.peak_rss_bytes = record["peak_rss_bytes"]
        self.unlike_training = record.get("trust", {}).get("tissue_below")
        self.status = "skipped" if record.get("skipped") else "done"
        self.reason = "verified, same settings" if record.get("skipped") else ""
        if found := flaws(record):
            self.status = "filled" if unread["tiles"] or unread["patches"] else "flawed"
            self.reason = "; ".join(found)


class BatchStatus:
    """Outcomes of all slides of a batch or shard, kept in ``<stem>.csv``, ``<stem>.json`` and the run's own file."""

    def __init__(self, folder: Path, stem: str, batch: SlideBatch, tasks: Sequence[SlideTask]) -> None:
        self.slides = [SlideStatus(str(task.slide), str(task.output)) for task in tasks]
        self.paths = (folder / f"{stem}.csv", folder / f"{stem}.json")
        self._stem, self._started = stem, _now()
        self._facts = _facts(batch)
        self._run_file: Path | None = None

    def begin(self) -> None:
        """Create the run's own file, and write all. Raises ``OutputError`` if that fails."""
        _refuse_foreign(*self.paths)
        folder = self.paths[0].parent / RUNS_FOLDER
        with os_errors_as_output_errors(folder):
            _refuse_link(folder)
            folder.mkdir(exist_ok=True)
            self._run_file = self._created(folder)
        self.save()

    def counts(self) -> dict[str, int]:
        """Return how many slides are in each state that occurs."""
        return dict(Counter(slide.status for slide in self.slides))

    def summary(self) -> dict[str, object]:
        """Return everything, for JSON."""
        slides = [asdict(slide) for slide in self.slides]
        times = {"started": self._started, "written": _now()}
        facts = {"schema": SCHEMA, "kin": __version__, "batch": self._stem, **times, **self._facts}
        return {**facts, "counts": self.counts(), "slides": slides}

    def save(self) -> None:
        """Replace all files. Raises ``OutputError`` if that fails."""
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, [field.name for field in fields(SlideStatus)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(slide) for slide in self.slides)
        content = self._content()
        for path, text in zip(self.paths, (table.getvalue().encode(errors="surrogateescape"), content), strict=True):
            with os_errors_as_output_errors(path):
                write_atomic(path, text)
        if self._run_file is not None:
            with os_errors_as_output_errors(self._run_file):
                write_atomic(self._run_file, content)

    def _content(self) -> bytes:
        text = json.dumps(self.summary(), indent=1, ensure_ascii=False) + "\n"
        return text.encode(errors="surrogateescape")

    def _created(self, folder: Path) -> Path:
        """Create the file of this run in ``folder``: its time in UTC, its shard, and a number if another has both."""
        shard = self._stem.removeprefix("status")
        name = time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime()) + shard
        path, number = folder / f"{name}.json", 1
        while not create_atomic(path, self._content()):
            number += 1
            path = folder / f"{name}-{number}.json"
        return path


def run_batch(batch: SlideBatch, progress: Progress) -> BatchStatus:
    """Translate the tasks of the batch's shard, one after another, and return the outcome of each.

    The status files in ``<outputs>/kin-batch/`` are up to date all the time. Raises, before work starts, ``UsageError``
    for colliding outputs, for invalid settings and if the other shards were begun with other slides; ``Stopped`` on a
    signal; ``OutputError`` if the status cannot be written; ``LostDeviceError`` if the device failed for two slides in
    succession, each in a process of its own. Another slide that fails does not raise.
    """
    refuse_collisions(batch.tasks, manifest=batch.manifest)
    settings = {task: batch.settings(task) for task in batch.tasks}
    folder = batch.outputs / STATUS_FOLDER
    if batch.manifest is not None and real(folder) in real(batch.manifest).parents:
        raise UsageError(
            f"{batch.manifest}: lies where the status of this batch is written", "move it, or choose another -o"
        )
    with os_errors_as_output_errors(folder):
        _refuse_link(folder)
        folder.mkdir(parents=True, exist_ok=True)
    tasks, stem = batch.tasks, "status"
    if batch.shard is not None:
        agree_on_slides(folder, batch.tasks, batch.shard)
        tasks, stem = batch.shard.of(batch.tasks), f"status-{batch.shard}"
    status, child = BatchStatus(folder, stem, batch, tasks), ChildProcess()
    status.begin()
    for note in batch.left_out:
        progress.note(note)
    lost = False
    try:
        with progress.stage("slides", len(tasks), "slides") as advance:
            for number, (task, slide) in enumerate(zip(tasks, status.slides, strict=True), 1):
                slide.status = "running"
                status.save()
                following = settings[tasks[number]] if number < len(tasks) else None
                failure = _translate(child, settings[task], following, slide, progress)
                status.save()
                reason = f": {slide.reason}" if slide.reason else ""
                progress.note(f"[{number}/{len(tasks)}] {slide.slide}: {slide.status} in {slide.seconds:.1f} s{reason}")
                advance(1)
                if isinstance(failure, LostDeviceError):
                    if lost and number < len(tasks):
                        raise LostDeviceError(
                            f"two slides, one after the other: {failure.message}: the other slides are left",
                            "when the device works, the same command with --skip-existing continues",
                        )
                    settings = {task: _never_on_a_cpu(each) for task, each in settings.items()}
                lost = isinstance(failure, LostDeviceError)
    except Stopped:
        status.save()
        raise
    finally:
        child.close()
    return status


def agree_on_slides(folder: Path, tasks: Sequence[SlideTask], shard: Shard) -> None:
    """Write ``slides.json``, or check that the existing one has the same slides and number of shards.

    Otherwise slides would be left out or translated twice without notice. Raises ``UsageError`` if they differ and
    ``OutputError`` if the file cannot be read or written.
    """
    path = folder / AGREED_FILE
    slides = [[str(task.slide), str(task.output)] for task in tasks]
    wanted = {"shards": shard.total, "slides": slides}
    with os_errors_as_output_errors(path):
        if create_atomic(path, json.dumps(wanted, indent=1, ensure_ascii=True).encode()):
            return
        found = _parsed(path, path.read_bytes())
    hint = f"if no shard is running any more, remove {path} to start afresh"
    if found["shards"] != shard.total:
        raise UsageError(f"{path}: this batch was begun in {found['shards']} shards, not {shard.total}", hint)
    if found["slides"] != slides:
        changed = [pair for pair in found["slides"] + slides if (pair in found["slides"]) != (pair in slides)]
        example = f", such as {changed[0][0]}" if changed else ": their order is another"
        raise UsageError(f"{path}: the slides are not those that this batch was begun with{example}", hint)


def _parsed(path: Path, content: bytes) -> dict[str, Any]:
    try:
        agreed = json.loads(content)
        slides = [[str(text) for text in pair] for pair in agreed["slides"]]
        return {"shards": int(agreed["shards"]), "slides": slides}
    except (ValueError, TypeError, KeyError, RecursionError):
        raise OutputError(f"{path}: is damaged", "remove it if no shard is running any more") from None


def _translate(
    child: ChildProcess, settings: Settings, following: Settings | None, slide: SlideStatus, progress: Progress
) -> KinError | None:
    """Translate one slide and note its outcome; returns the failure, if it is one."""
    start = time.monotonic()
    try:
        child.start()
        start = time.monotonic()
        _make_folder(settings.output.path.parent)
        if following is not None:
            with suppress(OutputError):  # told when it is that slide's turn
                _make_folder(following.output.path.parent)
        slide.take(child.translate(settings, progress, following))
        return None
    except Stopped:
        slide.status, slide.reason = "stopped", "interrupted; the same command continues"
        raise
    except KinError as error:
        slide.status = _state(error)
        slide.reason = " ".join(str(error).split()).removeprefix(f"{slide.slide}: ")
        return error
    finally:
        slide.seconds = round(time.monotonic() - start, 2)


def _never_on_a_cpu(settings: Settings) -> Settings:
    """The settings for after a GPU failed: ``auto`` would choose a CPU, a hundred times slower, and go on."""
    compute = settings.compute
    return replace(settings, compute=replace(compute, device="cuda")) if compute.device == "auto" else settings


def _state(error: KinError) -> State:
    if isinstance(error, NoTissueError):
        return "no tissue"
    return "bad generator" if isinstance(error, ModelError) else "failed"


def _facts(batch: SlideBatch) -> dict[str, object]:
    """Who ran which command where, with which versions."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # in a container, a user without a name
        user = None
    return {
        "command": shlex.join(batch.command),
        "folder": str(Path.cwd()),
        "host": platform.node(),
        "system": platform.platform(),
        "user": user,
        "versions": versions,
        "left_out": list(batch.left_out),
    }


def _refuse_link(folder: Path) -> None:
    if folder.is_symlink():
        raise OutputError(f"{folder}: is a symbolic link, which kin does not follow", "remove it")


def _refuse_foreign(table: Path, summary: Path) -> None:
    """Raise ``OutputError`` if a file in the place of a status file is not one that kin wrote."""
    for path, begins in ((table, (b"slide,output,status",)), (summary, (b'{\n "schema"', b'{\n "kin"'))):
        with os_errors_as_output_errors(path):
            if not os.path.lexists(path):
                continue
            ours = path.is_file() and not path.is_symlink()
            if ours:
                with path.open("rb") as file:
                    ours = file.read(64).startswith(begins)
        if not ours:
            raise OutputError(f"{path}: exists, and kin did not write it", "move it, or choose another -o")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be created: {error.strerror}", "choose another -o") from error


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
