"""State and log of a run. With the state file the same command continues a run bit for bit.

It holds no random state: every step is seeded by its number, and patches are drawn by number.
"""

from __future__ import annotations

import csv
import io
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kin_cli.errors import OutputError
from kin_cli.store.files import os_errors_as_output_errors, write_atomic
from kin_cli.training.framework import Framework
from kin_cli.training.networks import Ema

STATE_FILE = "state.pt"
_OVERWRITE_HINT = "--overwrite starts afresh"
# may change between a run and its continuation: step n then has the learning rate of the new schedule
_LENGTH = {f"schedule {name}" for name in ("steps", "epochs", "epoch_patches", "decay_fraction")}


@dataclass(frozen=True)
class Resumed:
    """Number of steps done, and whether they were done under a schedule of another length."""

    step: int = 0
    rescheduled: bool = False


@dataclass(frozen=True)
class RunState:
    """Everything that changes from step to step: networks, optimizers, image pools, EMA."""

    framework: Framework
    ema: Ema

    def save(self, folder: Path, *, step: int, fingerprint: Mapping[str, Any]) -> None:
        """Write the state after ``step`` steps, atomically.

        Memory bound: the size of the file, about 12 bytes per parameter and the pools.

        Raises:
            OutputError: The file cannot be written.
        """
        framework = self.framework
        content = {
            "step": step,
            "fingerprint": json.dumps(fingerprint, sort_keys=True),
            "networks": {name: module.state_dict() for name, module in framework.networks.items()},
            "optimizers": {phase.name: phase.optimizer.state_dict() for phase in framework.phases},
            "ema": self.ema.module.state_dict(),
            "pools": {name: pool.images for name, pool in framework.pools.items()},
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        with os_errors_as_output_errors(folder / STATE_FILE):
            write_atomic(folder / STATE_FILE, buffer.getvalue())

    def restore(self, folder: Path, *, fingerprint: Mapping[str, Any]) -> Resumed:
        """Load the state from ``folder``, if there is one, and return how far it is.

        Raises:
            OutputError: The file is damaged, or of other settings; the message names the first that differs.
        """
        path = folder / STATE_FILE
        if not path.exists():
            return Resumed()
        content = _loaded(path)
        found, wanted = json.loads(content["fingerprint"]), json.loads(json.dumps(fingerprint))
        _require_equal(path, found, wanted)
        try:
            self._take(content)
        except (KeyError, RuntimeError, ValueError) as error:
            raise OutputError(f"{path}: of another version of these networks: {error}", _OVERWRITE_HINT) from None
        return Resumed(int(content["step"]), rescheduled=found != wanted)

    def _take(self, content: Mapping[str, Any]) -> None:
        framework = self.framework
        for name, module in framework.networks.items():
            module.load_state_dict(content["networks"][name])
        for phase in framework.phases:
            phase.optimizer.load_state_dict(content["optimizers"][phase.name])
        for name, pool in framework.pools.items():
            pool.images = content["pools"][name]
        self.ema.restore(content["ema"], content["step"])


def _loaded(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return {name: content[name] for name in ("step", "fingerprint", "networks", "optimizers", "ema", "pools")}
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise OutputError(f"{path}: not a readable state of a training run: {error}", _OVERWRITE_HINT) from None


def _require_equal(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> None:
    for name in sorted(found.keys() | wanted.keys()):
        before, now = found.get(name), wanted.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            _require_equal(path, before, now, f"{prefix}{name} ")
        elif before != now and prefix + name not in _LENGTH:
            raise OutputError(
                f"{path.parent}: was begun with {prefix}{name} {before}, not {now}",
                f"give the same settings to continue it, another --output, or {_OVERWRITE_HINT}",
            )


class CsvLog:
    """A CSV file with one row per logged step; on resuming, rows after ``step`` are dropped and computed again."""

    def __init__(self, path: Path, *, step: int) -> None:
        self._path = path
        self._rows: list[dict[str, str]] = []
        if step > 0 and path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self._rows = [row for row in csv.DictReader(file) if int(row["step"]) <= step]
        self._write()

    def add(self, row: Mapping[str, str]) -> None:
        """Append a row; columns may differ from row to row.

        Raises:
            OutputError: The file cannot be written.
        """
        self._rows.append(dict(row))
        self._write()

    def _write(self) -> None:
        # rewritten as a whole, since a new column changes the header; a run has only some thousand rows
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="")
        writer.writeheader()
        writer.writerows(self._rows)
        with os_errors_as_output_errors(self._path):
            self._path.write_bytes(text.getvalue().encode())
