"""What became of every slide of a batch: a CSV for people and a JSON for programs, whole at any moment."""

from __future__ import annotations

import csv
import io
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from kin_cli import __version__
from kin_cli.batch.jobs import Job
from kin_cli.store.files import os_errors_as_output_errors, write_atomic

State = Literal["pending", "running", "done", "skipped", "filled", "failed", "stopped"]


@dataclass
class Row:
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

    def __init__(self, folder: Path, stem: str, jobs: Sequence[Job]) -> None:
        self.rows = [Row(str(job.slide), str(job.output)) for job in jobs]
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
        writer = csv.DictWriter(table, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in self.rows)
        texts = (table.getvalue(), json.dumps(self.summary(), indent=1, ensure_ascii=False) + "\n")
        for path, text in zip(self.paths, texts, strict=True):
            with os_errors_as_output_errors(path):
                write_atomic(path, text.encode(errors="surrogateescape"))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
