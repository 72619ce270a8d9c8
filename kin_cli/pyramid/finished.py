"""Whether a file of the final name is what a command would make: by the record beside it, and by its checksums."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kin_cli.errors import OutputError
from kin_cli.pyramid.check import check_file

Record = dict[str, Any]


def finished_record(output: Path, record_file: Path, settings: Mapping[str, object]) -> Record:
    """The record of a finished ``output`` of these settings, or an ``OutputError`` that says why it is none.

    The record is written after the output has its name, and counts only for a file of the size that it tells.
    """
    try:
        record = json.loads(record_file.read_bytes())
        found, size = dict(record["settings"]), int(record["output_bytes"])
    except FileNotFoundError:
        raise _refusal(output, f"exists, but its record {record_file.name} does not") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _refusal(output, f"exists, but its record {record_file.name} cannot be read") from error
    wanted = json.loads(json.dumps(settings))
    differing = [name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)]
    if differing:
        changes = (f"{name}: {_shown(found, name)} → {_shown(wanted, name)}" for name in sorted(differing))
        raise _refusal(output, f"was made with other settings ({'; '.join(changes)})")
    if output.stat().st_size != size:
        raise _refusal(output, f"has {output.stat().st_size} bytes, but its record tells of {size}")
    return dict(record)


def verified_record(output: Path, record_file: Path, settings: Mapping[str, object]) -> Record:
    """The same, after reading the output and checking every tile against its checksum."""
    record = finished_record(output, record_file, settings)
    problems = check_file(output, decode=False)
    if problems:
        raise _refusal(output, f"exists, but is not sound: {problems[0]}")
    return record


def _refusal(output: Path, what: str) -> OutputError:
    return OutputError(f"{output}: {what}", "--overwrite replaces it")


def _shown(settings: Mapping[str, object], name: str) -> str:
    return json.dumps(settings[name], ensure_ascii=False) if name in settings else "(not set)"
