"""The child process of a batch: ``python -m kin_cli.batch.serve FD`` receives settings through a pipe and translates.

Ends when the pipe closes. If the pipe closes in the middle of a slide, since the parent was killed, the child stops as
on SIGTERM, so that no orphan keeps the claim on the work folder. The parent's side is ``child.py``.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection

from kin_cli.errors import DeviceError, KinError, Stopped, explained
from kin_cli.progress import Advance
from kin_cli.report.page import report_if_asked
from kin_cli.settings import Settings
from kin_cli.signals import exit_now, raise_if_requested, requested_stop, stop_on_signals
from kin_cli.translation import translate

_SEND_EVERY_SECONDS = 0.2
_ORPHAN_SECONDS = 20.0


def main() -> int:
    """Translate one slide after another. Returns the exit code: 0, or 75 if told to stop."""
    stop_on_signals(interrupt=False)  # Ctrl-C reaches the parent, too, which then sends SIGTERM
    connection = Connection(int(sys.argv[1]))
    slides: queue.SimpleQueue[Settings | None] = queue.SimpleQueue()
    busy = threading.Event()
    threading.Thread(target=_receive, args=(connection, slides, busy), name="kin-receive", daemon=True).start()
    try:
        connection.send("ready")
        while (settings := slides.get()) is not None:
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


def _receive(connection: Connection, slides: queue.SimpleQueue[Settings | None], busy: threading.Event) -> None:
    try:
        while True:
            slides.put(connection.recv())
    except (EOFError, OSError):
        if busy.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(_ORPHAN_SECONDS)
            os._exit(75)
        slides.put(None)


def _answer(settings: Settings, progress: _PipeProgress) -> tuple[object, ...]:
    """Translate one slide and return the message for the parent.

    ``done`` and the record; or ``refused`` (this process can go on), ``failed`` (it cannot) or ``stopped``, each with
    message, hint and exit code, and ``refused`` with the name of the error.
    """
    slide = settings.source.slide
    answer: tuple[object, ...]
    try:
        record = translate(settings, progress)
        report_if_asked(settings, record, progress)
        return "done", record
    except Stopped as stop:
        return "stopped", stop.message, stop.hint, stop.exit_code
    except DeviceError as error:
        answer = "failed", error.message, error.hint, error.exit_code
    except KinError as error:
        answer = "refused", error.message, error.hint, error.exit_code, type(error).__name__
    except Exception as error:
        traceback.print_exc()
        known = explained(error)
        answer = "failed", f"{slide}: {known.message}", known.hint, 1
    request = requested_stop()  # after a request to stop, any failure is its consequence
    return answer if request is None else ("stopped", request.message, request.hint, request.exit_code)


class _PipeProgress:
    """Progress sent to the parent, a few times a second."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def outlook(self, work: Mapping[str, tuple[int, float]]) -> None:
        self._send("outlook", dict(work))

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        self._send("stage", name, total, unit)
        unsent, last = 0, time.monotonic()

        def advance(count: int, _detail: str = "", /) -> None:
            nonlocal unsent, last
            raise_if_requested()
            with self._lock:
                unsent += count
                if time.monotonic() - last < _SEND_EVERY_SECONDS:
                    return
                count, unsent, last = unsent, 0, time.monotonic()
            self._send("advance", count)

        yield advance
        self._send("advance", unsent)
        self._send("leave")

    def note(self, message: str) -> None:
        self._send("note", message)

    def _send(self, *event: object) -> None:
        with self._lock:
            self._connection.send(event)


if __name__ == "__main__":
    exit_now(main())
