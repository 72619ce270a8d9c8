"""Which files a command may write: never one of its inputs, and nothing that kin did not make unless told to.

A translation writes the output, its record ``<output>.json`` and, on request, ``<output>.report.html``. The last two
have names that the user did not choose, so each is looked at before any work starts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from kin_cli.errors import InputError, OutputError, UsageError
from kin_cli.settings import Settings
from kin_cli.slide.identity import slide_files
from kin_cli.store.files import os_errors_as_output_errors, work_folder

_RECORD_BYTES = 1 << 24  # a record is a few kB; a larger JSON file is somebody else's
_REPORT_MARK = b'<meta name="generator" content="kin '
_HEAD_BYTES = 4096


def check_outputs(settings: Settings) -> None:
    """Raise unless the output and the files beside it can be written without replacing what must not be replaced.

    Raises:
        UsageError: one of them is an input of the translation: slide, model, mask, thumbnail, configuration, table.
        OutputError: a folder is missing or in the way, or a file exists that may not be replaced without --overwrite.
    """
    output = settings.output
    beside = [output.record_path, *([output.report_path] if output.report else [])]
    if not output.path.parent.is_dir():
        raise OutputError(f"{output.path.parent}: no such folder", "create it, or choose another output with -o")
    refuse_inputs([output.path, *beside], inputs_of(settings))
    for path in (output.path, *beside):
        if path.is_dir():
            raise OutputError(f"{path}: is a folder", "give the output another file name with -o")
    unfinished = os.path.lexists(work_folder(output.path))
    if os.path.lexists(output.path) and not (output.overwrite or output.skip_existing or unfinished):
        raise OutputError(f"{output.path}: exists already", "--overwrite replaces it")
    for path in beside:
        if os.path.lexists(path) and not output.overwrite and not _is_ours(path, output.path):
            raise OutputError(
                f"{path}: exists, and kin did not write it for {output.path.name}",
                "choose another output with -o, or move that file; --overwrite replaces it",
            )


def inputs_of(settings: Settings) -> Iterator[tuple[Path, str]]:
    """Every file that a translation reads, with what it is, in words."""
    source, norm = settings.source, settings.norm
    try:
        yield from ((path, "a file of the slide") for path in slide_files(source.slide))
    except InputError:
        yield source.slide, "the slide"  # it is missing or unreadable, which is told when it is opened
    yield settings.model, "the generator"
    if isinstance(source.tissue, Path):
        yield source.tissue, "the tissue mask"
    if norm.thumbnail is not None:
        yield norm.thumbnail, "the thumbnail"
    if settings.config is not None:
        yield settings.config, "the configuration"
    if settings.table is not None and settings.table.is_dir():
        yield from ((path, "a part of the table") for path in settings.table.iterdir())


def refuse_inputs(written: Iterable[Path], inputs: Iterable[tuple[Path, str]]) -> None:
    """Raise ``UsageError`` if a path that will be written is one of the inputs, whatever names lead to it."""
    known = [(path.stat(), what) for path, what in inputs if path.exists()]
    for path in written:
        if path.exists():
            status = path.stat()
            what = next((what for found, what in known if os.path.samestat(found, status)), None)
            if what is not None:
                raise UsageError(f"{path}: is {what}, which is never replaced", "choose another output with -o")


def refuse_existing(written: Iterable[Path | None], *, overwrite: bool) -> None:
    """Raise ``OutputError`` if a file that a command will write exists and ``overwrite`` was not given."""
    for path in written:
        if path is not None and os.path.lexists(path) and not overwrite:
            raise OutputError(f"{path}: exists already", "--overwrite replaces it")


def _is_ours(path: Path, output: Path) -> bool:
    """Whether a file beside ``output`` is the record or the report that kin wrote for it."""
    with os_errors_as_output_errors(path):
        if path.is_symlink() or not path.is_file():
            return False
        if path.suffix == ".html":
            with path.open("rb") as file:
                return _REPORT_MARK in file.read(_HEAD_BYTES)
        if path.stat().st_size > _RECORD_BYTES:
            return False
        content = path.read_bytes()
    try:
        record = json.loads(content)
        return "kin" in record and Path(record["output"]).name == output.name
    except (ValueError, TypeError, KeyError):
        return False
