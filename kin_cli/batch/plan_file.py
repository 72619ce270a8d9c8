"""The plan of a batch that several jobs share: its slides and the number of its parts, the same for all of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kin_cli.batch.jobs import Job
from kin_cli.errors import OutputError, UsageError
from kin_cli.pipeline.share import Share
from kin_cli.store.files import create_atomic, os_errors_as_output_errors

_NAME = "plan.json"


def agree_on_plan(folder: Path, jobs: Sequence[Job], share: Share) -> None:
    """Write the plan into ``folder``, or see that the one there has the same slides and the same number of parts.

    Otherwise slides would be left out or done twice without anybody noticing. Raises ``UsageError`` where they differ,
    ``OutputError`` where the plan cannot be read or written.
    """
    path = folder / _NAME
    slides = [[str(job.slide), str(job.output)] for job in jobs]
    wanted = {"parts": share.total, "slides": slides}
    with os_errors_as_output_errors(path):
        if create_atomic(path, json.dumps(wanted, indent=1, ensure_ascii=True).encode()):
            return
        found = _parsed(path, path.read_bytes())
    hint = f"if no part is running any more, remove {path} to begin anew"
    if found["parts"] != share.total:
        raise UsageError(f"{path}: this batch was begun in {found['parts']} parts, not {share.total}", hint)
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
