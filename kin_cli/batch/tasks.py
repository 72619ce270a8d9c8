"""The slides of a batch, each with its output, checked before any work starts.

They come from files and folders (``search``) or from a CSV file (``manifest``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kin_cli.errors import UsageError
from kin_cli.settings import OutputSettings
from kin_cli.store.files import real


@dataclass(frozen=True)
class SlideTask:
    """One slide of a batch and its output. A field that is None takes the value of the command's option."""

    slide: Path
    output: Path
    source_mpp: float | None = None
    model: Path | None = None
    mask: Path | Literal["auto", "none"] | None = None


@dataclass(frozen=True)
class Worklist:
    """Tasks of a batch, notes to show to the user, and one line for each input that could not be read."""

    tasks: tuple[SlideTask, ...]
    notes: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()


def refuse_collisions(tasks: Sequence[SlideTask], *, manifest: Path | None = None) -> None:
    """Raise ``UsageError`` if two tasks write the same file or one replaces an input of the batch.

    Includes the record, the report and the trust map beside each output. Names are compared without regard to case, as
    some file systems do.
    """
    owners: dict[str, SlideTask] = {}
    for task in tasks:
        for path in _written(task):
            other = owners.setdefault(_key(path), task)
            if other != task:
                raise UsageError(
                    f"{other.slide} and {task.slide} would both be written to {path}",
                    "name their outputs in a --manifest",
                )
    inputs = {_key(task.slide): "slide" for task in tasks}
    inputs |= {_key(task.mask): "mask" for task in tasks if isinstance(task.mask, Path)}
    inputs |= {} if manifest is None else {_key(manifest): "manifest"}
    inputs |= {_key(task.model): "generator" for task in tasks if task.model is not None}
    for task in tasks:
        for path in _written(task):
            if _key(path) in inputs:
                raise UsageError(
                    f"{path} is a {inputs[_key(path)]} of this batch and would be replaced", "choose another -o"
                )


def _written(task: SlideTask) -> Iterator[Path]:
    output = OutputSettings(task.output)
    yield from (output.path, output.record_path, output.report_path, *output.trust_paths)


def _key(path: Path) -> str:
    return str(real(path)).lower()
