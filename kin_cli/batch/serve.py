"""The child process of a batch: ``python -m kin_cli.batch.serve FD`` receives settings through a pipe and translates.

With the settings of a slide come those of the next one, which is opened, and its tissue found, in the meantime.

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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection

from kin_cli.errors import DeviceError, KinError, Stopped, explained
from kin_cli.memory import free_memory
from kin_cli.outputs import check_outputs
from kin_cli.plan import Plan, make_plan
from kin_cli.progress import Advance
from kin_cli.report.page import report_if_asked
from kin_cli.settings import Settings
from kin_cli.signals import exit_now, raise_if_requested, requested_stop, stop_on_signals
from kin_cli.slide.files import SlideIdentity
from kin_cli.translation import translate_planned

_SEND_EVERY_SECONDS = 0.2
_ORPHAN_SECONDS = 20.0

Slides = tuple[Settings, Settings | None]
"""A slide to translate, and the one after it; None if there is none, or if it is not to be opened yet."""


def main() -> int:
    """Translate one slide after another. Returns the exit code: 0, or 75 if told to stop."""
    stop_on_signals(interrupt=False)  # Ctrl-C reaches the parent, too, which then sends SIGTERM
    connection = Connection(int(sys.argv[1]))
    slides: queue.SimpleQueue[Slides | None] = queue.SimpleQueue()
    busy = threading.Event()
    threading.Thread(target=_receive, args=(connection, slides, busy), name="kin-receive", daemon=True).start()
    try:
        connection.send("ready")
        progress = _PipeProgress(connection)
        plans = Plans(progress.ahead)
        while (received := slides.get()) is not None:
            busy.set()
            answer = _answer(*received, plans, progress)
            busy.clear()
            connection.send(answer)
            raise_if_requested()
    except Stopped as stop:
        return stop.exit_code
    except BrokenPipeError:
        return 75  # the parent is gone
    return 0


def _receive(connection: Connection, slides: queue.SimpleQueue[Slides | None], busy: threading.Event) -> None:
    try:
        while True:
            slides.put(connection.recv())
    except (EOFError, OSError):
        if busy.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(_ORPHAN_SECONDS)
            os._exit(75)
        slides.put(None)


class Plans:
    """Plans of slides: of the one whose turn it is, and of the next, made by a thread meanwhile.

    That thread opens and reads; claims, files and messages wait for the slide's turn. So does a failure: it is
    forgotten, and the plan made again. ``told`` is called with True before a slide is opened ahead, and with False when
    its turn has come.

    Memory bound: one plan more, which is not made if there is not as much memory left as the present slide may take.
    """

    def __init__(self, told: Callable[[bool], None]) -> None:
        self._told = told
        self._thread: threading.Thread | None = None
        self._made: list[Plan] = []

    def take(self, settings: Settings) -> Plan:
        """The plan of these settings: made ahead if the slide is still what it was then, else now."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        try:
            while self._made:
                plan = self._made.pop()
                if plan.settings == settings and _is_good(plan):
                    return plan
                plan.view.slide.close()
            return make_plan(settings)
        finally:
            self._told(False)

    def begin(self, settings: Settings | None, *, beside: Plan) -> None:
        """Make the plan of the next slide, unless it is None, while the plan ``beside`` is carried out."""
        # a network of one's own is code that may not bear to be called by two threads
        if settings is None or settings.network is not None or free_memory() < 2 * beside.host_bytes:
            return
        self._told(True)
        self._thread = threading.Thread(target=self._make, args=(settings,), name="kin-next", daemon=True)
        self._thread.start()

    def _make(self, settings: Settings) -> None:
        with suppress(Exception):
            plan = make_plan(settings)
            try:
                _ = plan.fingerprint(), plan.windows, plan.measured_cells  # kept in the plan
            except BaseException:
                plan.view.slide.close()
                raise
            self._made.append(plan)


def _is_good(plan: Plan) -> bool:
    """Whether a plan made some time ago can be carried out: its outputs may be made, its slide is the same."""
    with suppress(KinError, OSError):
        check_outputs(plan.settings)
        return SlideIdentity(plan.settings.source.slide).stamps == plan.identity.stamps
    return False


def _answer(
    settings: Settings, following: Settings | None, plans: Plans, progress: _PipeProgress
) -> tuple[object, ...]:
    """Translate one slide and return the message for the parent.

    ``done`` and the record; or ``refused`` (this process can go on), ``failed`` (it cannot) or ``stopped``, each with
    message, hint, exit code and the name of the error. ``following`` is opened meanwhile.
    """
    slide = settings.source.slide
    answer: tuple[object, ...]
    try:
        plan = plans.take(settings)
        plans.begin(following, beside=plan)
        record = translate_planned(plan, progress)
        report_if_asked(settings, record, progress)
        return "done", record
    except Stopped as stop:
        return "stopped", stop.message, stop.hint, stop.exit_code, "Stopped"
    except DeviceError as error:
        answer = "failed", error.message, error.hint, error.exit_code, type(error).__name__
    except KinError as error:
        answer = "refused", error.message, error.hint, error.exit_code, type(error).__name__
    except Exception as error:
        traceback.print_exc()
        known = explained(error)
        answer = "failed", f"{slide}: {known.message}", known.hint, 1, type(known).__name__
    request = requested_stop()  # after a request to stop, any failure is its consequence
    return answer if request is None else ("stopped", request.message, request.hint, request.exit_code, "Stopped")


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

    def ahead(self, opened: bool) -> None:
        """Tell whether another slide than the present one may be what this process dies of."""
        self._send("ahead", opened)

    def _send(self, *event: object) -> None:
        with self._lock:
            self._connection.send(event)


if __name__ == "__main__":
    exit_now(main())
