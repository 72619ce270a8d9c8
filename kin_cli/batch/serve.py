"""The child process of a batch: ``python -m kin_cli.batch.serve FD`` translates what comes down that pipe.

It ends when the pipe closes; if that happens in the middle of a slide, because the parent was killed, it stops as on
SIGTERM, so that no orphan goes on holding the claim.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from kin_cli.errors import DeviceError, KinError, Stopped
from kin_cli.progress import Advance
from kin_cli.report.page import report_if_asked
from kin_cli.settings import Settings
from kin_cli.signals import exit_now, raise_if_requested, stop_on_signals, stop_requested
from kin_cli.translate import translate

_TELL_EVERY_SECONDS = 0.2
_ORPHAN_SECONDS = 20.0


def main() -> int:
    """Serve one slide after another; the exit code is 0, or 75 when told to stop."""
    stop_on_signals(interrupt=False)  # the parent hears Ctrl-C too, and tells us
    connection = Connection(int(sys.argv[1]))
    jobs: queue.SimpleQueue[Settings | None] = queue.SimpleQueue()
    busy = threading.Event()
    threading.Thread(target=_receive, args=(connection, jobs, busy), name="kin-jobs", daemon=True).start()
    try:
        connection.send("ready")
        while (settings := jobs.get()) is not None:
            busy.set()
            answer = _answer(settings, _PipeProgress(connection))
            busy.clear()
            connection.send(answer)
            raise_if_requested()
    except Stopped as stop:
        return stop.exit_code
    except BrokenPipeError:
        return 75  # the parent is gone
    return 0


def _receive(connection: Connection, jobs: queue.SimpleQueue[Settings | None], busy: threading.Event) -> None:
    try:
        while True:
            jobs.put(connection.recv())
    except (EOFError, OSError):
        if busy.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(_ORPHAN_SECONDS)
            os._exit(75)
        jobs.put(None)


def _answer(settings: Settings, progress: _PipeProgress) -> tuple[object, ...]:
    """``done`` with the record; ``refused`` (we can go on), ``failed`` (we cannot) or ``stopped`` with the reason."""
    slide = settings.source.slide
    try:
        record = translate(settings, progress)
        report_if_asked(settings, record, progress)
        return "done", record
    except Stopped as stop:
        return "stopped", stop.message, stop.hint, stop.exit_code
    except DeviceError as error:
        answer = "failed", error.message, error.hint, error.exit_code
    except KinError as error:
        answer = "refused", error.message, error.hint, error.exit_code
    except MemoryError:
        answer = "failed", f"{slide}: out of memory", "see kin translate --dry-run for what it needs", 1
    except Exception as error:
        traceback.print_exc()
        hint = "run kin --debug translate on it and report it"
        answer = "failed", f"{slide}: unexpected {type(error).__name__}: {error}", hint, 1
    told = stop_requested()  # then whatever failed is its consequence
    return answer if told is None else ("stopped", told.message, told.hint, told.exit_code)


class _PipeProgress:
    """Tells the parent, a few times a second."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "tiles") -> Iterator[Advance]:
        self._tell("stage", name, total, unit)
        untold, told = 0, time.monotonic()

        def advance(count: int, _detail: str = "", /) -> None:
            nonlocal untold, told
            raise_if_requested()
            with self._lock:
                untold += count
                if time.monotonic() - told < _TELL_EVERY_SECONDS:
                    return
                count, untold, told = untold, 0, time.monotonic()
            self._tell("advance", count)

        yield advance
        self._tell("advance", untold)
        self._tell("leave")

    def note(self, message: str) -> None:
        self._tell("note", message)

    def _tell(self, *event: object) -> None:
        with self._lock:
            self._connection.send(event)


if __name__ == "__main__":
    exit_now(main())
