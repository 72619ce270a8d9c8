"""Manifests: CSV files, as people and spreadsheets write them, with the columns ``wsi[,mpp,output,model,mask]``."""

from __future__ import annotations

import codecs
import csv
import math
import os
import re
import stat
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Literal

from kin_cli.batch.tasks import SlideTask, Worklist
from kin_cli.errors import UsageError
from kin_cli.outputs import work_folder_of
from kin_cli.settings import OutputSettings, SourceSettings, default_output

COLUMNS = ("wsi", "mpp", "output", "model", "mask")
_DELIMITERS = (",", ";", "\t", "|")
_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_WINDOWS_TEXT = "cp1252"
_MAX_BYTES = 1 << 26
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_SEPARATOR = re.compile(r"sep=(.|\\t)", re.IGNORECASE)
_NUMBER = re.compile(r"\+?[0-9]*[.,]?[0-9]+(?:[eE][+-]?[0-9]+)?|\+?[0-9]+[.,]")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_HINT = f"a CSV file with the columns {','.join(COLUMNS)}"


@dataclass(frozen=True)
class _Folders:
    """Where relative paths begin: those of slides, of models and masks, and of outputs."""

    slides: Path
    beside: Path
    outputs: Path


@dataclass(frozen=True)
class _Text:
    """The text of a manifest; ``guessed`` if it was not UTF-8, so that names may be meant byte for byte."""

    file: Path
    lines: tuple[str, ...]
    guessed: bool

    def where(self, line: int) -> str:
        """The place of a line, for messages."""
        return f"{self.file}, line {line}"


class _Lines:
    """Hands lines to the CSV reader; between rows it skips blank lines and those that begin with ``#``."""

    def __init__(self, lines: Sequence[str], start: int) -> None:
        self._lines = lines
        self.number = start  # of lines handed out or skipped
        self.first = start  # line at which the present row began
        self.comments = 0
        self._within = False
        self.ended_within = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while self.number < len(self._lines):
            line = self._lines[self.number]
            self.number += 1
            if self._within:
                return line
            if line.lstrip().startswith("#"):
                self.comments += 1
            elif line.strip():
                self._within, self.first = True, self.number
                return line
        self.ended_within = self._within
        raise StopIteration

    def next_row(self) -> None:
        """Say that the lines from here on belong to another row."""
        self._within = False


def read_manifest(file: Path, *, slides: Path | None, outputs: Path) -> Worklist:
    """Read the tasks of a manifest.

    Relative paths of slides start at ``slides`` (the manifest's folder if None), those of models and masks at the
    manifest's folder, those of outputs at ``outputs``, which they may not leave. ``mpp`` is the slide's pixel size in
    µm, with a decimal point or comma. An empty field counts as absent. Columns are separated by commas, semicolons,
    tabs or bars; the text is UTF-8, UTF-16 with a mark, or else taken as Windows-1252. Rows that stand twice are taken
    once.

    Raises:
        UsageError: the file is unreadable or lists no slide, or a line, which is named, has a bad value.
    """
    text = _text(file)
    folders = _Folders(slides or file.parent, file.parent, outputs)
    lines, delimiter = _begun(text)
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    names = _column_names(text, lines, reader)
    notes = [f"{file}: not UTF-8 text, taken as Windows-1252"] if text.guessed else []
    found: dict[object, tuple[SlideTask, int]] = {}
    while (row := _next_row(text, lines, reader)) is not None:
        where = text.where(lines.first)
        fields = _fields(row, names, where)
        if any(fields.values()):
            task = _task(fields, where, folders, text)
            _, first = found.setdefault(_identity(task), (task, lines.first))
            if first != lines.first:
                notes.append(f"{where}: the same as line {first}, translated once")
    if not found:
        raise UsageError(f"{file}: lists no slide", "one line a slide below the line of column names")
    if lines.comments:
        notes.append(f"{file}: lines that begin with # are comments: {lines.comments}")
    if unknown := [name for name in names if name and name not in COLUMNS]:
        notes.append(f"{file}: columns that kin does not know: {', '.join(unknown)}")
    return Worklist(tuple(task for task, _ in found.values()), tuple(notes))


# Text


def _text(file: Path) -> _Text:
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{file}: cannot be read: not a regular file", _HINT)
        if status.st_size > _MAX_BYTES:
            raise UsageError(f"{file}: too large for a list of slides", _HINT)
        content = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}", _HINT) from None
    if content.startswith(_WORKBOOKS):
        raise UsageError(f"{file}: an Excel workbook, not a CSV file", "save it as CSV UTF-8")
    text, guessed = _decoded(file, content)
    if (at := text.find("\0")) >= 0:
        line = len(_LINE.findall(text[: at + 1]))
        raise UsageError(f"{file}, line {line}: holds a NUL byte, so this is not text", "write the line again")
    return _Text(file, tuple(_LINE.findall(text)), guessed)


def _decoded(file: Path, content: bytes) -> tuple[str, bool]:
    """The text, and whether its encoding had to be guessed."""
    encoding = next((name for bom, name in _BOMS.items() if content.startswith(bom)), None)
    if encoding is None:
        # a NUL beside one of the first two characters, which are ASCII: UTF-16 without a mark
        encoding = {b"\0": "utf-16-le"}.get(content[1:2]) or {b"\0": "utf-16-be"}.get(content[:1]) or "utf-8"
    try:
        return content.decode(encoding), False
    except UnicodeDecodeError:
        if encoding != "utf-8":
            raise UsageError(f"{file}: damaged {encoding.upper()} text", "save it again as CSV UTF-8") from None
    try:
        return content.decode(_WINDOWS_TEXT), True
    except UnicodeDecodeError:
        raise UsageError(f"{file}: cannot be read: neither UTF-8 nor Windows-1252 text", _HINT) from None


# Rows


def _begun(text: _Text) -> tuple[_Lines, str]:
    """The lines from the column names on, and the delimiter: that of a line ``sep=;``, or the best for the names."""
    for number, line in enumerate(text.lines):
        if not line.strip():
            continue
        if (named := _SEPARATOR.fullmatch(line.strip('\r\n "'))) is not None:
            return _Lines(text.lines, number + 1), named[1].replace("\\t", "\t")
        break
    header = next((line for line in text.lines if line.strip() and not line.lstrip().startswith("#")), "")
    known = {mark: sum(_name(word) in COLUMNS for word in header.split(mark)) for mark in _DELIMITERS}
    return _Lines(text.lines, 0), max(known, key=lambda mark: known[mark])


def _name(text: str) -> str:
    return text.strip(' \t\r\n"\ufeff\xa0').lower()


def _column_names(text: _Text, lines: _Lines, reader: Iterator[list[str]]) -> list[str]:
    names = [_name(name) for name in _next_row(text, lines, reader) or []]
    if "wsi" not in names:
        raise UsageError(
            f"{text.file}: has no column 'wsi' (columns: {', '.join(names) or 'none'})",
            "the first line holds the column names",
        )
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise UsageError(f"{text.file}: the column '{twice[0]}' stands twice", "leave one of them out")
    return names


def _next_row(text: _Text, lines: _Lines, reader: Iterator[list[str]]) -> list[str] | None:
    lines.next_row()
    try:
        row = next(reader, None)
    except csv.Error as error:
        raise UsageError(f"{text.where(lines.first)}: not a row of a CSV file: {error}", _HINT) from None
    if lines.ended_within:
        raise UsageError(f"{text.where(lines.first)}: a quotation mark is never closed", 'write "…" around a field')
    return row


def _fields(row: Sequence[str], names: Sequence[str], where: str) -> dict[str, str]:
    if any(field.strip() for field in row[len(names) :]):
        raise UsageError(
            f"{where}: has {len(row)} fields, but there are {len(names)} columns",
            "put a field that holds the separator, such as a decimal comma, between quotation marks",
        )
    given = {name: field.strip() for name, field in zip(names, row, strict=False)}
    return {name: given.get(name, "") for name in COLUMNS}


# Values


def _task(fields: Mapping[str, str], where: str, folders: _Folders, text: _Text) -> SlideTask:
    if not fields["wsi"]:
        raise UsageError(f"{where}: names no slide", "fill the column 'wsi'")
    slide = _path(fields["wsi"], folders.slides, where, text)
    mask: Path | Literal["auto", "none"] | None = None
    if fields["mask"] in ("auto", "none"):
        mask = "auto" if fields["mask"] == "auto" else "none"
    elif fields["mask"]:
        mask = _existing(_path(fields["mask"], folders.beside, where, text), where)
    model = _existing(_path(fields["model"], folders.beside, where, text), where) if fields["model"] else None
    mpp, output = _mpp(fields["mpp"], where), _output(fields["output"], slide, folders.outputs, where)
    try:
        SourceSettings(slide, source_mpp=mpp)
        OutputSettings(output)
    except UsageError as error:
        raise UsageError(f"{where}: {error.message}", error.hint) from None
    return SlideTask(slide, output, source_mpp=mpp, model=model, mask=mask)


def _path(value: str, folder: Path, where: str, text: _Text) -> Path:
    """A path of the manifest as it is spelt on this machine: with other slashes, another Unicode form, raw bytes."""
    if _URL.match(value):
        raise UsageError(f"{where}: {value} is an address, not a file", "download or mount it and name the file")
    spellings = [value, PureWindowsPath(value).as_posix()]
    spellings += [unicodedata.normalize(form, value) for form in ("NFC", "NFD")]
    if text.guessed:
        spellings.append(os.fsdecode(value.encode(_WINDOWS_TEXT)))
    paths = [folder / os.path.expanduser(spelling) for spelling in spellings]  # noqa: PTH111 - never raises
    found = next((path for path in paths if os.path.lexists(path)), None)
    if found is None and os.name != "nt" and (PureWindowsPath(value).drive or value.startswith("\\")):
        raise UsageError(f"{where}: {value} is a path of Windows", "write the path as this machine sees it")
    return found or paths[0]


def _existing(path: Path, where: str) -> Path:
    if not os.path.lexists(path):
        raise UsageError(f"{where}: {path}: no such file", "check the path; it starts at the manifest's folder")
    if not path.is_file():
        raise UsageError(f"{where}: {path}: not a regular file", "name the file itself")
    return path


def _output(value: str, slide: Path, folder: Path, where: str) -> Path:
    if _URL.match(value):
        raise UsageError(f"{where}: {value} is an address, not a file", "outputs are written within -o")
    output = folder / (value.replace("\\", "/") or default_output(Path(slide.name)))
    if Path(os.path.realpath(folder)) not in Path(os.path.realpath(output)).parents:
        raise UsageError(f"{where}: the output {output} would leave {folder}", "outputs are written within -o")
    if work_folder_of(output) is not None:
        raise UsageError(f"{where}: the output {output} lies in a work folder", "kin removes what is in there")
    return output


def _mpp(text: str, where: str) -> float | None:
    if not text:
        return None
    mpp = float(text.replace(",", ".")) if _NUMBER.fullmatch(text) else 0.0
    if not (math.isfinite(mpp) and mpp > 0):
        raise UsageError(f"{where}: '{text}' is not a pixel size", "µm per pixel, such as 0.25, or an empty field")
    return mpp


def _identity(task: SlideTask) -> object:
    """What is equal for tasks that do the same, whatever names lead to their files."""
    paths = (task.slide, task.output, task.model, task.mask)
    return task.source_mpp, *(os.path.realpath(path) if isinstance(path, Path) else path for path in paths)
