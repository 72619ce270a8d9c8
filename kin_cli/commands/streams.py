"""Standard streams that never fail: a closed, full or broken stdout or stderr neither ends the work nor raises.

``guard_streams`` replaces ``sys.stdout`` and ``sys.stderr``, so that whatever writes there is covered: click, tqdm,
warnings, tracebacks. What could not be written to stdout is remembered: a command whose result is that text fails with
``stdout_failure``; a command whose result is a file has done its work.
"""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import select
import sys
from contextlib import suppress
from typing import Any

import click

from kin_cli.errors import OutputError

_ERRORS = "kin-names"  # the name under which codecs know ``_names_as_bytes``
_REASONS = {
    errno.EBADF: "it is closed",
    errno.EPIPE: "its reader has ended",
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
}


def guard_streams() -> None:
    """Replace the standard streams of this process by streams that never raise. Call it once, before anything else.

    Closed descriptors 0 to 2 are opened on the null device: otherwise the next file that is opened, a slide or an
    output, would get that number, and a library that prints to stderr would write into it.
    """
    codecs.register_error(_ERRORS, _names_as_bytes)
    closed = {fd for fd in (0, 1, 2) if _is_closed(fd)}
    for _ in closed:
        os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is the closed one
    sys.stdout = _guarded(1, sys.stdout, closed=1 in closed)
    sys.stderr = _guarded(2, sys.stderr, closed=2 in closed)


def stdout_failure() -> OutputError | None:
    """The error of the first text that could not be written to stdout, after flushing it; None if all was written."""
    stream = sys.stdout
    raw = stream.buffer.raw if isinstance(stream, _GuardedText) else None
    if not isinstance(raw, _GuardedDescriptor):
        return None
    stream.flush()
    if raw.failure is None:
        return None
    cause = _REASONS.get(raw.failure.errno or 0, raw.failure.strerror or str(raw.failure))
    return OutputError(f"standard output could not be written: {cause}", "redirect it to a file or give it a reader")


def show(text: str) -> None:
    """Print the result of a command on stdout. Raises ``OutputError`` if that fails."""
    click.echo(text)
    failure = stdout_failure()
    if failure is not None:
        raise failure


def tell_output(text: str) -> None:
    """Print a text on stdout that is not the result itself, such as an output's name; ignore failures to write."""
    click.echo(text)
    forget_failure()


def forget_failure() -> None:
    """Forget that stdout could not be written: the result of this command is in a file."""
    stream = sys.stdout
    if isinstance(stream, _GuardedText):
        stream.flush()
        if isinstance(stream.buffer.raw, _GuardedDescriptor):
            stream.buffer.raw.failure = None


def json_text(value: Any) -> str:
    """A value as indented JSON, which knows neither NaN nor infinity: they become null.

    Bytes of file names that are not UTF-8 become escapes such as ``\\udcff``.
    """
    try:
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    except ValueError:
        finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
        text = json.dumps(finite, indent=1, ensure_ascii=False)
    return text.encode(errors="backslashreplace").decode()


def printable(text: str) -> str:
    """One line: white space becomes single spaces, and control characters, say of a file's name, question marks."""
    return "".join(c if c.isprintable() or 0xDC80 <= ord(c) <= 0xDCFF else "?" for c in " ".join(text.split()))


class _GuardedDescriptor(io.RawIOBase):
    """A file descriptor that takes all bytes; after the first failure, which ``failure`` keeps, it drops them."""

    def __init__(self, fd: int, *, closed: bool) -> None:
        self._fd = fd
        self._gone = closed
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Write the bytes, waiting for a slow reader, or drop them."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        if self._gone and size:
            self.failure = self.failure or OSError(errno.EBADF, os.strerror(errno.EBADF))
            return size
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:
                select.select([], [self._fd], [])
            except OSError as error:
                self.failure = self.failure or error
                break
        return size

    def writable(self) -> bool:
        """True."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self._fd)


class _GuardedText(io.TextIOWrapper):
    """Text stream on a ``_GuardedDescriptor``, which never raises."""

    buffer: Any


def _guarded(fd: int, stream: Any, *, closed: bool) -> _GuardedText:
    with suppress(OSError, ValueError, AttributeError):
        stream.flush()
    encoding = getattr(stream, "encoding", None) or "utf-8"
    raw = _GuardedDescriptor(fd, closed=closed)
    live = fd == 2 or raw.isatty()
    return _GuardedText(io.BufferedWriter(raw), encoding=encoding, errors=_ERRORS, line_buffering=live)


def _is_closed(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return True
    return False


def _names_as_bytes(error: UnicodeError) -> tuple[str | bytes, int]:
    """Bytes of a file name come out as they are; other characters that the encoding lacks as escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    if all(0xDC80 <= ord(character) <= 0xDCFF for character in text):
        return bytes(ord(character) - 0xDC00 for character in text), error.end
    return "".join(_escaped(character) for character in text), error.end


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
