"""Which files a command may write: never one of its inputs, and nothing that kin did not make unless told to.

A translation writes the output, its record ``<output>.json``, with a generator that knows its training patches the
trust map, ``<output>.trust.png`` and ``.trust.geojson``, and, on request, ``<output>.report.html``. All but the first
have names that the user did not choose, so each is looked at before any work starts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from kin_cli.errors import InputError, OutputError, UsageError
from kin_cli.models.named import NetworkChoice
from kin_cli.pyramid.check import is_record
from kin_cli.settings import OutputSettings, Settings
from kin_cli.slide.files import slide_files
from kin_cli.store.files import (
    WORK_ENDING,
    os_errors_as_output_errors,
    publish,
    real,
    remote_hint,
    work_folder,
    written_beside,
)

_RECORD_BYTES = 1 << 24  # a record is a few kB; a larger JSON file is somebody else's
_REPORT_MARKS = (b'<meta name="generator" content="kin ', b'<meta name="kin-record" content="')
_TRUST_MARK = b"kin trust map of "
_HEAD_BYTES = 4096
_SYSTEM_FOLDERS = (Path("/dev"), Path("/proc"), Path("/sys"))


def check_outputs(settings: Settings) -> None:
    """Raise unless the output and the files beside it can be written without replacing what must not be replaced.

    Raises:
        UsageError: one of them is an input of the translation: slide, model, mask, thumbnail, configuration, table.
        OutputError: a folder is missing or in the way, or a file exists that may not be replaced without --overwrite.
    """
    output = settings.output
    beside = [output.record_path, *([output.report_path] if output.report else [])]
    if not output.path.parent.is_dir():
        hint = remote_hint(output.path) or "create it, or choose another output with -o"
        raise OutputError(f"{output.path.parent}: no such folder", hint)
    refuse_inputs([output.path, *beside], inputs_of(settings))
    work = work_folder(output.path)
    written = (output.path, output.record_path, output.report_path, *output.trust_paths, work)
    if settings.table is not None and real(settings.table) in {real(path) for path in written}:
        raise UsageError(f"{settings.table}: is the table's folder and a file of the output", "name another --table")
    _refuse_no_files((output.path, *beside), "give the output another file name with -o")
    if os.path.lexists(output.path) and not (output.overwrite or output.skip_existing or os.path.lexists(work)):
        raise OutputError(f"{output.path}: exists already", "--overwrite replaces it")
    for path in beside:
        refuse_strangers(path, output)


def _refuse_no_files(paths: Iterable[Path], hint: str) -> None:
    """Raise ``OutputError`` if something other than a file stands where one will be written."""
    for path in paths:
        if path.is_dir():
            raise OutputError(f"{path}: is a folder", hint)
        if path.exists() and not path.is_file():
            raise OutputError(f"{path}: is a device or a pipe, which a file would replace", "choose another output")


def work_folder_of(place: Path) -> Path | None:
    """The work folder of any output that a path is, or lies in, whatever links lead there; None if in none."""
    found = (folder for folder in (real(place), *real(place).parents) if folder.name.endswith(WORK_ENDING))
    return next(found, None)


def refuse_work_folders(*places: Path | None) -> None:
    """Raise ``UsageError`` if one of the places that a user names is, or lies in, a work folder."""
    for place in places:
        if place is not None and (folder := work_folder_of(place)):
            raise UsageError(f"{place}: is in {folder}, whose content kin removes", "choose another place")


def check_trust_outputs(settings: Settings) -> None:
    """Raise as ``check_outputs`` does for the files of the trust map, which not every generator has."""
    refuse_inputs(settings.output.trust_paths, inputs_of(settings))
    _refuse_no_files(settings.output.trust_paths, "give the output another file name with -o, or --no-trust")
    for path in settings.output.trust_paths:
        refuse_strangers(path, settings.output)


def refuse_strangers(path: Path, output: OutputSettings) -> None:
    """Raise ``OutputError`` if ``path``, a file beside an output that the user did not name, was not written by kin."""
    if os.path.lexists(path) and not output.overwrite and not is_ours(path, output.path):
        raise OutputError(
            f"{path}: exists, and kin did not write it for {output.path.name}",
            "choose another output with -o, or move that file; --overwrite replaces it",
        )


def inputs_of(settings: Settings) -> Iterator[tuple[Path, str]]:
    """Every file that a translation reads, with what it is, in words."""
    source, norm = settings.source, settings.norm
    yield from slide_inputs(source.slide, "the slide")
    yield from network_inputs(settings)
    yield from file_inputs(
        (source.tissue, "the tissue mask"), (norm.thumbnail, "the thumbnail"), (settings.config, "the configuration")
    )
    if settings.table is not None and settings.table.is_dir():
        yield from ((path, "a part of the table") for path in settings.table.iterdir())


def network_inputs(settings: Settings) -> Iterator[tuple[Path, str]]:
    """The file of the generator, and that of its code."""
    if settings.model is not None:
        yield settings.model, "the generator"
    if isinstance(settings.network, NetworkChoice) and (file := settings.network.file) is not None:
        yield file, "the code of the network"


def refuse_inputs(written: Iterable[Path], inputs: Iterable[tuple[Path, str]]) -> None:
    """Raise ``UsageError`` if a path that will be written is one of the inputs, whatever names lead to it."""
    known = [(path.stat(), what) for path, what in inputs if path.exists()]
    for path in written:
        if path.exists():
            status = path.stat()
            what = next((what for found, what in known if os.path.samestat(found, status)), None)
            if what is not None:
                raise UsageError(f"{path}: is {what}, which is never replaced", "choose another name for the output")


def refuse_existing(written: Iterable[Path | None], *, overwrite: bool) -> None:
    """Raise ``OutputError`` if a file that a command will write exists and ``overwrite`` was not given."""
    for path in written:
        if path is not None and os.path.lexists(path) and not overwrite:
            raise OutputError(f"{path}: exists already", "--overwrite replaces it")


def check_files(
    written: Iterable[tuple[str, Path | None]], inputs: Iterable[tuple[Path, str]], *, overwrite: bool
) -> None:
    """Raise, before any work, unless the files that a command will write can be written: pairs of option and path.

    Raises:
        UsageError: two options name the same file, or one names an input (``slide_inputs``, ``inputs_of``).
        OutputError: a folder is missing or may not be written to, a folder or a device is in the way, or a file exists
            and ``overwrite`` was not given.
    """
    given = [(option, path) for option, path in written if path is not None]
    refuse_same(given)
    refuse_inputs([path for _, path in given], inputs)
    for option, path in given:
        _refuse_place(option, path)
    refuse_existing([path for _, path in given], overwrite=overwrite)


def refuse_same(given: Iterable[tuple[str, Path]]) -> None:
    """Raise ``UsageError`` if two options name the same file or folder, whatever names lead to it."""
    known: dict[Path, str] = {}
    for option, path in given:
        place = real(path)
        if place in known:
            raise UsageError(f"{path}: is named by {known[place]} and by {option}", "give each a name of its own")
        known[place] = option


def slide_inputs(slide: Path | None, what: str) -> Iterator[tuple[Path, str]]:
    """Every file of a slide, for ``check_files``; of None nothing."""
    if slide is None:
        return
    if not slide.is_file():  # to look into a pipe would wait for ever
        yield slide, what
        return
    try:
        yield from ((path, f"a file of {what}") for path in slide_files(slide))
    except InputError:
        yield slide, what  # it is missing or unreadable, which is told when it is opened


def file_inputs(*files: tuple[object, str]) -> Iterator[tuple[Path, str]]:
    """Those of the values that are paths, for ``check_files``: an option may be unset or a word such as "auto"."""
    return ((path, what) for path, what in files if isinstance(path, Path))


def write_outputs(contents: Mapping[Path, bytes], *, overwrite: bool) -> None:
    """Write all files, or none if one of them cannot be written; a file is replaced with ``overwrite`` only.

    Raises ``OutputError``, also if a file that did not exist at the beginning of the work exists now.
    """
    drafts: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            with os_errors_as_output_errors(path):
                drafts[path] = written_beside(path, content)
        for path, draft in drafts.items():
            with os_errors_as_output_errors(path):
                publish(draft, path, replace=overwrite)
    finally:
        for draft in drafts.values():
            with suppress(OSError):
                draft.unlink(missing_ok=True)


def _refuse_place(option: str, path: Path) -> None:
    """Raise ``OutputError`` if a file cannot be made at ``path``, or what stands there is no file."""
    folder = path.parent
    if not folder.is_dir():
        hint = remote_hint(path) or f"create it, or choose another file with {option}"
        raise OutputError(f"{folder}: no such folder", hint)
    if path.is_dir():
        raise OutputError(f"{path}: is a folder", f"name a file with {option}")
    if (path.exists() and not path.is_file()) or real(folder) in _SYSTEM_FOLDERS or _in_proc(folder):
        raise OutputError(f"{path}: is a device or a pipe, which a file would replace", f"name a file with {option}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{folder}: no permission to write to it", f"choose another folder with {option}")


def _in_proc(folder: Path) -> bool:
    return Path("/proc") in real(folder).parents


def is_ours(path: Path, output: Path) -> bool:
    """Whether a file beside ``output`` is the record, the report or the trust map that kin wrote for it."""
    with os_errors_as_output_errors(path):
        if path.is_symlink() or not path.is_file():
            return False
        if path.suffix in (".html", ".png", ".geojson"):
            with path.open("rb") as file:
                head = file.read(_HEAD_BYTES)
            marks = _REPORT_MARKS if path.suffix == ".html" else (_TRUST_MARK,)
            return all(mark in head for mark in marks)
        if path.stat().st_size > _RECORD_BYTES:
            return False
        content = path.read_bytes()
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return is_record(record) and Path(record["output"]).name == output.name
