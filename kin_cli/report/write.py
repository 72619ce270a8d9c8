"""Writing the report of a finished translation."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kin_cli.errors import KinError, Stopped
from kin_cli.pipeline.reporting import Reporter
from kin_cli.report.evidence import gather
from kin_cli.report.page import page
from kin_cli.settings import Settings
from kin_cli.store.files import os_errors_as_output_errors, write_atomic

_HEAD_BYTES = 1024
_AGAIN = "the output is complete; the same command with --skip-existing makes the report"


def report_if_asked(settings: Settings, record: Mapping[str, Any], reporter: Reporter) -> Path | None:
    """Write the report beside a finished output, if the settings ask for one and it is not there yet.

    ``record`` is that of the run. Memory bound: see ``gather``. Raises a ``KinError`` that names what failed, whatever
    it is; the output is not touched.
    """
    file = settings.output.report_path
    if not settings.output.report or is_report_of(record, file):
        return None
    try:
        document = page(record, gather(settings, reporter), mark=_mark(record))
        with os_errors_as_output_errors(file):
            write_atomic(file, document.encode(errors="replace"))
    except Stopped as stop:
        raise Stopped(stop.message, _AGAIN, exit_code=stop.exit_code) from None
    except KinError as error:
        raise KinError(f"{file}: the report could not be made: {error}", _AGAIN) from error
    except MemoryError as error:
        raise KinError(f"{file}: the report could not be made: out of memory", _AGAIN) from error
    except Exception as error:  # whatever it is, the user should know that the output stands
        what = f"unexpected {type(error).__name__}: {error}"
        raise KinError(f"{file}: the report could not be made: {what}", _AGAIN) from error
    return file


def is_report_of(record: Mapping[str, Any], file: Path) -> bool:
    """Whether ``file`` is the report of the very run that ``record`` tells of, by what stands in its head."""
    try:
        with file.open("rb") as stream:
            return f'content="{_mark(record)}"'.encode() in stream.read(_HEAD_BYTES)
    except OSError:
        return False


def _mark(record: Mapping[str, Any]) -> str:
    """A checksum of the record as it lies beside the output."""
    told = {name: value for name, value in record.items() if name != "skipped"}
    return f"{zlib.crc32(json.dumps(told, sort_keys=True).encode()):08x}"
