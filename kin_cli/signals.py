"""Orderly stop on SIGTERM and Ctrl-C: raise ``Stopped`` in the main thread, so that finished work is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, NoReturn
from weakref import WeakSet

from kin_cli.errors import Stopped

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

    from kin_cli.progress import Advance

RESUME_HINT = "the same command continues where it stopped"
_requested: Stopped | None = None
_late: Stopped | None = None  # requested when nothing was left to stop
_finishing = _is_last = False
_children: WeakSet[subprocess.Popen[bytes]] = WeakSet()


def stop_on_signals(*, interrupt: bool = True) -> None:
    """Raise ``Stopped`` in the main thread on SIGTERM (exit code 75) and on Ctrl-C (130); a second Ctrl-C ends at once.

    A second SIGTERM, which schedulers often send, has no effect. ``interrupt`` False ignores Ctrl-C, for a child whose
    parent passes the signal on.
    """
    signal.signal(signal.SIGTERM, _terminated)
    sys.unraisablehook = _unraisable
    if not interrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return
    signal.signal(signal.SIGINT, _interrupted)
    # Python calls these handlers only when the main thread returns from a library call, and once for two signals. A
    # thread that reads the number of each signal from a pipe can end the process without waiting for the main thread.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_end_at_second_interrupt, args=(reader,), name="kin-signals", daemon=True).start()


def kill_on_second_interrupt(process: subprocess.Popen[bytes]) -> None:
    """Kill this child process, too, when a second Ctrl-C ends this one.

    Otherwise its claim would outlive its parent.
    """
    _children.add(process)


def ignore_signals() -> None:
    """Ignore SIGTERM from now on, because the exit code is decided; let Ctrl-C end the process without a message."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def finishing() -> Iterator[None]:
    """Let the block, which ends some work and takes no time, end in spite of a request to stop; raise it afterwards.

    After ``last_work`` it is not raised at all.
    """
    global _finishing
    _finishing = True
    try:
        yield
    except BaseException:
        _finishing = False
        raise
    if not _is_last:
        more_work()


def last_work() -> None:
    """Say that the process does nothing more after the next ``finishing``: a stop after it would be none."""
    global _is_last
    _is_last = True


def more_work() -> None:
    """Say that there is something to stop again. Raises the ``Stopped`` of a signal that came meanwhile."""
    global _finishing, _is_last, _late
    late, _finishing, _is_last, _late = _late, False, False, None
    if late is not None:
        _stop(late)


def exit_now(code: int) -> NoReturn:
    """Flush the standard streams and end the process at once, without taking down the interpreter.

    With torch loaded that takes seconds on a busy machine, and a scheduler may kill the process meanwhile. Call this
    only when no other work is left.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # its reader has ended; it is closed; it is None
            stream.flush()
    os._exit(code)


def requested_stop() -> Stopped | None:
    """The ``Stopped`` of the first signal, or None. Any other failure after a signal is its consequence."""
    return _requested


def forget_stop() -> None:
    """Take the signal as the ordinary end of a command that serves until Ctrl-C."""
    global _requested
    _requested = None


def raise_if_requested() -> None:
    """Raise the ``Stopped`` of a signal again: Python swallows it if it is raised in a destructor or a callback."""
    if _requested is not None:
        raise _requested


def interruptible(advance: Advance) -> Advance:
    """Wrap the ``advance`` of a stage so that it first raises a requested ``Stopped``."""

    def advance_or_stop(count: int, detail: str = "", /) -> None:
        raise_if_requested()
        advance(count, detail)

    return advance_or_stop


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    _stop(Stopped("stopped by SIGTERM", RESUME_HINT, exit_code=75))


def _interrupted(_signal: int, _frame: FrameType | None) -> None:
    _stop(Stopped("interrupted", RESUME_HINT, exit_code=130))


def _stop(reason: Stopped) -> None:
    global _requested, _late
    if _finishing:
        _late = _late or reason
    elif _requested is None:
        _requested = reason
        raise reason


def _end_at_second_interrupt(reader: int) -> None:
    interrupts = 0
    while interrupts < 2:
        interrupts += os.read(reader, 64).count(signal.SIGINT)
    try:
        for process in list(_children):
            process.kill()
    finally:
        os._exit(130)


def _unraisable(args: UnraisableHookArgs) -> None:
    """Print no traceback of a ``Stopped`` swallowed by a destructor: ``raise_if_requested`` raises it again."""
    if not isinstance(args.exc_value, Stopped):
        sys.__unraisablehook__(args)
