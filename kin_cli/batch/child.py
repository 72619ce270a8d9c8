"""The parent's side of the child process that translates the slides of a batch, so that a crash ends one slide only.

OpenSlide and its codecs abort the process on some damaged files, a GPU that failed stays unusable, and the kernel kills
processes that take too much memory. One child translates many slides; if it dies, the next slide gets a new one. The
child's side is ``serve.py``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import IO, Any

from kin_cli.errors import KinError, LostDeviceError, ModelError, NoTissueError, Stopped
from kin_cli.progress import Progress
from kin_cli.settings import Settings
from kin_cli.signals import kill_on_second_interrupt

_GRACE_SECONDS = 20.0  # for a child to stop; most schedulers give a process 30 s between SIGTERM and SIGKILL
_LOG_TAIL_BYTES = 4000


class ChildProcess:
    """At most one child process at a time, started when needed. Call ``close`` at the end of the batch."""

    def __init__(self) -> None:
        self._child: _Child | None = None

    def start(self) -> None:
        """Start a child if none is ready. Call it before timing a slide, so that start-up is not charged to a slide."""
        self._ready_child()

    def translate(self, settings: Settings, progress: Progress, following: Settings | None = None) -> dict[str, Any]:
        """Translate one slide in the child and return its record; the slide ``following`` is opened meanwhile.

        If the child dies with both slides open, this one is continued in a new child, alone: the other, when it is its
        turn, dies by itself. Raises the ``KinError`` that the child raised; ``KinError`` with the signal and the last
        line of output if the child died; and ``Stopped``, after the child has ended, if the child or this process was
        told to stop.
        """
        child = self._ready_child()
        try:
            return child.translate(settings, progress, following)
        except _Refusal as error:
            raise error.cause from None  # the child can go on
        except _Death as death:
            self.close()
            if not child.is_ahead:
                raise
            progress.note(f"{death.message}, with the next slide open: it is continued alone")
        except BaseException:
            self.close()
            raise
        return self.translate(settings, progress)

    def _ready_child(self) -> _Child:
        if self._child is None:
            self._child = _Child.started()
            try:
                self._child.wait_until_ready()
            except BaseException:
                self.close()
                raise
        return self._child

    def close(self) -> None:
        """End the child, which gets a few seconds to release its claim on the work folder."""
        child, self._child = self._child, None
        if child is not None:
            child.end()


class _Refusal(KinError):
    """A failure of one slide after which the child can go on; ``cause`` is what the child raised."""

    def __init__(self, cause: KinError) -> None:
        super().__init__(cause.message, cause.hint)
        self.cause = cause


class _Death(KinError):
    """The child is no more, and nobody told it to stop."""


@dataclass
class _Child:
    process: subprocess.Popen[bytes]
    connection: Connection
    log: IO[bytes]
    is_ahead: bool = False  # whether the next slide is open, too

    @classmethod
    def started(cls) -> _Child:
        ours, theirs = Pipe()
        # Libraries print warnings that would break the progress bar; the last line may explain a crash.
        log = tempfile.TemporaryFile()  # noqa: SIM115
        command = [sys.executable, "-m", "kin_cli.batch.serve", str(theirs.fileno())]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[theirs.fileno()]
        )
        kill_on_second_interrupt(process)
        theirs.close()
        return cls(process, ours, log)

    def wait_until_ready(self) -> None:
        try:
            self.connection.recv()
        except (EOFError, OSError):
            raise self._death("kin batch") from None

    def translate(self, settings: Settings, progress: Progress, following: Settings | None) -> dict[str, Any]:
        self.log.truncate(0)
        self.log.seek(0)  # the child shares this file position
        try:
            self.connection.send((settings, following))
            return self._result(settings.source.slide, progress)
        except (EOFError, OSError):
            raise self._death(str(settings.source.slide)) from None

    def _result(self, slide: Path, progress: Progress) -> dict[str, Any]:
        with ExitStack() as stages:
            advance = None
            while True:
                kind, *values = self.connection.recv()
                if kind == "stage":
                    advance = stages.enter_context(progress.stage(*values))
                elif kind == "advance" and advance is not None:
                    advance(*values)
                elif kind == "leave":
                    stages.pop_all().close()
                elif kind == "outlook":
                    progress.outlook(*values)
                elif kind == "ahead":
                    self.is_ahead = bool(values[0])
                elif kind == "note":
                    progress.note(f"{slide}: {str(values[0]).removeprefix(f'{slide}: ')}")
                elif kind == "done":
                    return dict(values[0])
                else:
                    raise _failure(kind, values)

    def _death(self, slide: str) -> KinError:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_GRACE_SECONDS)
        code = self.process.returncode
        if code in (75, -signal.SIGTERM):
            return Stopped(f"{slide}: its process was stopped", exit_code=75)
        if code is not None and code < 0:
            hint = "the machine may be short of memory" if code == -signal.SIGKILL else "the slide may be damaged"
            return _Death(f"{slide}: its process died of {signal.Signals(-code).name}{self._last_words()}", hint)
        return _Death(f"{slide}: its process ended before the slide was done, with code {code}{self._last_words()}")

    def _last_words(self) -> str:
        self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, self.log.tell() - _LOG_TAIL_BYTES))
        lines = [line.strip() for line in self.log.read().decode(errors="replace").splitlines()]
        return next((f": {line}" for line in reversed(lines) if line), "")

    def end(self) -> None:
        self.connection.close()
        with suppress(ProcessLookupError):
            self.process.terminate()
        try:
            self.process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def _failure(kind: str, values: list[Any]) -> KinError:
    message, hint, exit_code, name = values
    if kind == "stopped":
        return Stopped(message, hint, exit_code=exit_code)
    kinds = {cls.__name__: cls for cls in (NoTissueError, ModelError, LostDeviceError)}
    cause = kinds.get(name, KinError)(message, hint)
    return _Refusal(cause) if kind == "refused" else cause
