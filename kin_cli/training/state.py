"""State and logs of a run. With the state file the same command continues a run bit for bit.

The state holds no random state: every step is seeded by its number, and patches are drawn by number. The file is a line
with its kind and the SHA-256 of the rest, then the rest, as ``torch.save`` writes it: a damaged file is noticed.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kin_cli.errors import OutputError
from kin_cli.store.files import os_errors_as_output_errors, read_regular, write_atomic
from kin_cli.training.folder import STATE_FILE
from kin_cli.training.framework import Framework
from kin_cli.training.networks import Ema

_OVERWRITE_HINT = "--overwrite starts afresh"
_KIND = b"kin training state 1 "
_ENTRIES = ("step", "fingerprint", "inputs", "logs", "networks", "optimizers", "ema", "pools")
# may change between a run and its continuation: step n then has the learning rate of the new schedule
_LENGTH = {f"schedule {name}" for name in ("steps", "epochs", "epoch_patches", "decay_fraction")}
_FILES = {
    "patches source",
    "patches target",
    "patches guide",
    "network start",
    "losses vgg",
}  # told apart by their bytes: ``RunInputs``


@dataclass(frozen=True)
class Resumed:
    """How far a run is: number of steps done, and whether they were done under a schedule of another length.

    ``inputs`` and ``logs`` are what ``RunInputs`` and ``CsvLog`` said of themselves when the state was saved.
    """

    step: int = 0
    rescheduled: bool = False
    inputs: Mapping[str, Any] = field(default_factory=dict)
    logs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunState:
    """Everything that changes from step to step: networks, optimizers, image pools, EMA."""

    framework: Framework
    ema: Ema

    def save(
        self,
        folder: Path,
        *,
        step: int,
        fingerprint: Mapping[str, Any],
        inputs: Mapping[str, Any],
        logs: Mapping[str, Any],
    ) -> None:
        """Write the state after ``step`` steps, atomically.

        Memory bound: twice the size of the file, about 24 bytes per parameter and the pools.

        Raises:
            OutputError: The file cannot be written.
        """
        framework = self.framework
        content = {
            "step": step,
            "fingerprint": json.dumps(fingerprint, sort_keys=True),
            "inputs": json.dumps(inputs, sort_keys=True),
            "logs": json.dumps(logs, sort_keys=True),
            "networks": {name: module.state_dict() for name, module in framework.networks.items()},
            "optimizers": {phase.name: phase.optimizer.state_dict() for phase in framework.phases},
            "ema": self.ema.module.state_dict(),
            "pools": {name: pool.images for name, pool in framework.pools.items()},
        }
        _write_state(folder, content)

    def restore(self, folder: Path, *, fingerprint: Mapping[str, Any]) -> Resumed:
        """Load the state from ``folder``, if there is one, and return how far it is.

        Raises:
            OutputError: The file is damaged, or of other settings; the message names the first that differs.
        """
        path = folder / STATE_FILE
        if not path.exists():
            return Resumed()
        content = read_state(path)
        if content["step"] == 0:
            return Resumed()
        try:
            found, inputs, logs = (json.loads(content[name]) for name in ("fingerprint", "inputs", "logs"))
            wanted = json.loads(json.dumps(fingerprint))
            found.pop("card", None)  # in states from before it could change
            _require_equal(path, found, wanted)
            self._take(content)
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise OutputError(f"{path}: of another version of these networks: {error}", _OVERWRITE_HINT) from None
        return Resumed(content["step"], found["schedule"] != wanted["schedule"], inputs, logs)

    def _take(self, content: Mapping[str, Any]) -> None:
        framework = self.framework
        for name, module in framework.networks.items():
            module.load_state_dict(content["networks"][name])
        for phase in framework.phases:
            phase.optimizer.load_state_dict(content["optimizers"][phase.name])
        for name, pool in framework.pools.items():
            pool.images = content["pools"][name]
        self.ema.restore(content["ema"], content["step"])


def begin_state(folder: Path) -> None:
    """Write the state of a run that has done no step: it marks the folder as that of a run."""
    _write_state(folder, {**dict.fromkeys(_ENTRIES), "step": 0})


def read_state(path: Path) -> dict[str, Any]:
    """The entries of a state file, tensors on the CPU. Code in it is never run.

    Raises:
        OutputError: The file cannot be read, was not written by this version of kin, or is damaged.
    """
    try:
        file = read_regular(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror or error}", _OVERWRITE_HINT) from None
    head, payload = file[: len(_head(b""))], memoryview(file)[len(_head(b"")) :]
    if not head.startswith(_KIND):
        raise OutputError(f"{path}: is damaged, or of another version of kin", _OVERWRITE_HINT)
    if head != _head(payload):
        raise OutputError(
            f"{path}: is damaged (its bytes are not those that were written)",
            f"restore it from a copy, or {_OVERWRITE_HINT}",
        )
    try:
        content = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        entries = {name: content[name] for name in _ENTRIES}
        if not (isinstance(entries["step"], int) and entries["step"] >= 0):
            raise ValueError("its number of steps is not a number")
    except Exception as error:  # a forged file may hold anything
        raise OutputError(f"{path}: not a readable state of a training run: {error}", _OVERWRITE_HINT) from None
    return entries


def _write_state(folder: Path, content: Mapping[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getbuffer()
    with os_errors_as_output_errors(folder / STATE_FILE):
        write_atomic(folder / STATE_FILE, b"".join([_head(payload), payload]))


def _head(payload: bytes | memoryview) -> bytes:
    return _KIND + hashlib.sha256(payload).hexdigest().encode() + b"\n"


def _require_equal(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> None:
    for name in sorted(found.keys() | wanted.keys()):
        before, now = found.get(name), wanted.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            _require_equal(path, before, now, f"{prefix}{name} ")
        elif before != now and prefix + name not in _LENGTH and not (before and now and prefix + name in _FILES):
            raise OutputError(
                f"{path.parent}: was begun with {prefix}{name} {before}, not {now}",
                f"give the same settings to continue it, another --output, or {_OVERWRITE_HINT}",
            )


class CsvLog:
    """A CSV file with one row per logged step; on resuming, rows after ``step`` are dropped and computed again.

    ``saved`` is what ``as_dict`` said when the state was saved, None if there was no such log then.

    Raises:
        OutputError: The file was changed since the state was saved, in rows up to ``step``.
    """

    def __init__(
        self, path: Path, *, step: int, saved: Mapping[str, Any] | None = None, note: Callable[[str], None]
    ) -> None:
        self._path = path
        self._rows: list[dict[str, str]] = []
        if step > 0:
            self._continue(step, saved, note)
        self._write()

    def add(self, row: Mapping[str, str]) -> None:
        """Append a row; columns may differ from row to row.

        Raises:
            OutputError: The file cannot be written.
        """
        self._rows.append(dict(row))
        self._write()

    def as_dict(self, step: int) -> dict[str, Any]:
        """The step, the columns and the SHA-256 of the file as it is now, for JSON."""
        columns = _columns(self._rows)
        return {"step": step, "columns": columns, "sha256": hashlib.sha256(_csv(columns, self._rows)).hexdigest()}

    def _continue(self, step: int, saved: Mapping[str, Any] | None, note: Callable[[str], None]) -> None:
        """Take over the rows up to ``step``."""
        with os_errors_as_output_errors(self._path):
            try:
                content = read_regular(self._path)
            except FileNotFoundError:
                if saved is not None:
                    note(f"{self._path}: is missing; a new one begins after step {step}")
                return
        rows = _parsed(content)
        last = step if saved is None else saved["step"]  # fewer if the run went on without evaluations
        kept = None if rows is None else [row for row in rows if int(row["step"]) <= last]
        if saved is None:
            if kept == []:  # by a run that was killed in its first evaluation
                return
            raise OutputError(f"{self._path}: is not a log of this run", "move it away")
        if kept is None or hashlib.sha256(_csv(saved["columns"], kept)).hexdigest() != saved["sha256"]:
            raise OutputError(
                f"{self._path}: was changed since the state of step {last} was saved",
                "restore it, or move it away: then a new one begins",
            )
        self._rows = [{name: row[name] for name in saved["columns"]} for row in kept]

    def _write(self) -> None:
        # rewritten as a whole, since a new column changes the header; a run has only some thousand rows
        with os_errors_as_output_errors(self._path):
            write_atomic(self._path, _csv(_columns(self._rows), self._rows))


def _columns(rows: Sequence[Mapping[str, str]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode(errors="surrogateescape")  # names of images as they are


def _parsed(content: bytes) -> list[dict[str, str]] | None:
    """The rows of a log; None unless the bytes are those that ``CsvLog`` writes for them."""
    try:
        reader = csv.DictReader(io.StringIO(content.decode(errors="surrogateescape"), newline=""))
        rows = [dict(row) for row in reader]
        if _csv(reader.fieldnames or [], rows) == content and all(int(row["step"]) >= 0 for row in rows):
            return rows
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error):
        pass
    return None
