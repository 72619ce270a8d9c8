"""The answers of a study: a file that is only appended to, line by line, so that a kill loses none.

Each line is a JSON object with a checksum. An event is told to its reader as saved only after it is on the disk. A last
line without its end was never told, and is cut off when the file is opened for writing.
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from kin_cli.errors import InputError, OutputError
from kin_cli.store.files import os_errors_as_output_errors, read_regular, sync_folder, write_all
from kin_cli.study.plan import ANSWERS_FILE, Reader, Study, reader_key

_MARK = ',"crc":"'


@dataclass(frozen=True)
class Event:
    """Something that happened in a trial of a reader.

    Attributes:
        kind: "start" or "answer".
        reader: the reader's name.
        trial: number of the reader's trial.
        at: when, UTC, ISO 8601.
        choice: of an answer the slot chosen, from 0; None if the time was over.
        seconds: of an answer the time it took, as the reader's browser measured it; None if it was missed.
        late: whether an answer came after the time was over, so that it counts as missed.
        run: which run of the server noted it; "file" if it came from an exported study.
    """

    kind: str
    reader: str
    trial: int
    at: str
    choice: int | None = None
    seconds: float | None = None
    late: bool = False
    run: str = ""

    @property
    def missed(self) -> bool:
        """Whether this is no answer in time."""
        return self.choice is None or self.late


def now() -> str:
    """The time, UTC, ISO 8601 with milliseconds."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


class Journal:
    """The file of answers, open for appending by one process at a time; thread-safe.

    Raises:
        OutputError: another process has it, or it cannot be written.
        InputError: a line of it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / ANSWERS_FILE
        self._lock = threading.Lock()
        with os_errors_as_output_errors(self._file):
            self._fd = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                self._claim()
                sync_folder(folder)
                self.events = read_events(self._file)
                self._cut()
            except BaseException:
                os.close(self._fd)
                raise

    def append(self, event: Event) -> None:
        """Add an event; it is on the disk when this returns. Raises ``OutputError``."""
        with self._lock, os_errors_as_output_errors(self._file):
            end = os.lseek(self._fd, 0, os.SEEK_END)
            try:
                write_all(self._fd, _line(event))
                os.fsync(self._fd)
            except OSError:
                os.ftruncate(self._fd, end)
                raise
            self.events.append(event)

    def close(self) -> None:
        """Close the file, so that another process may have it."""
        os.close(self._fd)

    def _claim(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"{self._file}: another kin study serve has it", "one server serves all readers"
            ) from None

    def _cut(self) -> None:
        """Remove what a killed process left of a line."""
        content = read_regular(self._file)
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self._fd, whole)
            os.fsync(self._fd)


def read_events(file: Path) -> list[Event]:
    """All events of a file of answers, in their order; none if there is no file. Raises ``InputError``."""
    try:
        content = read_regular(file)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from None
    events = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            events.append(_parsed(line.decode()))
        except (ValueError, TypeError, KeyError, RecursionError):
            hint = "restore it from a copy; deleting the line loses one answer"
            raise InputError(f"{file}: line {number} is damaged", hint) from None
    return events


def answers_of(events: Iterable[Event]) -> dict[tuple[str, int], Event]:
    """The first answer to each (reader, trial)."""
    found: dict[tuple[str, int], Event] = {}
    for event in events:
        if event.kind == "answer":
            found.setdefault((event.reader, event.trial), event)
    return found


def returned_answers(file: Path, study: Study) -> list[Event]:
    """The answers in a file that a reader of an exported study sent back.

    Raises:
        InputError: the file is damaged, of another study or reader, or holds an answer that no trial can have.
    """
    try:
        envelope = json.loads(read_regular(file))
        content = json.loads(envelope["answers"])
        if envelope["crc"] != _checksum(envelope["answers"]):
            raise InputError(f"{file}: was changed after it was saved", "ask the reader for the file again")
        if content["study"] != study.id:
            raise InputError(f"{file}: the answers are to another study")
        reader = next(one for one in study.readers if reader_key(one.secret) == content["reader"])
        return [_returned(entry, reader, study) for entry in content["answers"]]
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from None
    except StopIteration:
        raise InputError(f"{file}: the answers are of no reader of this study") from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise InputError(f"{file}: not a file of answers: {type(error).__name__} {error}") from None


def _returned(entry: Mapping[str, Any], reader: Reader, study: Study) -> Event:
    trial, choice, seconds = entry["trial"], entry["choice"], entry["seconds"]
    if type(trial) is not int or trial < 0:
        raise ValueError(f"trial {trial}")
    slots, limit = reader.trials[trial].slots, study.seconds[reader.trials[trial].challenge]
    if choice is not None and not (type(choice) is int and 0 <= choice < len(slots)):
        raise ValueError(f"choice {choice}")
    late = choice is not None and not 0 <= float(seconds) <= limit
    return Event(
        "answer", reader.name, trial, str(entry["at"]), choice, None if choice is None else seconds, late, "file"
    )


def _line(event: Event) -> bytes:
    text = json.dumps(asdict(event), separators=(",", ":"), ensure_ascii=False)
    return f'{text[:-1]}{_MARK}{_checksum(text)}"}}\n'.encode()


def _parsed(line: str) -> Event:
    text, mark, end = line.rpartition(_MARK)
    text += "}"
    if not mark or end != f'{_checksum(text)}"}}':
        raise ValueError("checksum")
    return Event(**json.loads(text))


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"
