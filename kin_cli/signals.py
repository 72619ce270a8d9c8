"""SIGTERM and Ctrl-C as an orderly end: ``Stopped`` is raised in the main thread, and what is finished is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, NoReturn
from weakref import WeakSet

from kin_cli.errors import Stopped

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

    from kin_cli.progress import Advance

RESUME_HINT = "the same command continues where it stopped"
_requested: Stopped | None = None
_companions: WeakSet[subprocess.Popen[bytes]] = WeakSet()


def stop_on_signals(*, interrupt: bool = True) -> None:
    """Raise ``Stopped`` in the main thread on SIGTERM (exit code 75) and on Ctrl-C (130); a second Ctrl-C ends at once.

    A second SIGTERM, which schedulers often send, disturbs nothing. Without ``interrupt``, Ctrl-C is ignored: a child
    whose parent will tell it.
    """
    signal.signal(signal.SIGTERM, _terminated)
    sys.unraisablehook = _unraisable
    if not interrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return
    signal.signal(signal.SIGINT, _interrupted)
    # Python calls these handlers only when the main thread comes back from the library that it is in, and then once
    # for two signals; a thread that is sent the number of each can end the process without waiting for that.
    heard, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    threading.Thread(target=_end_at_second_interrupt, args=(heard,), name="kin-signals", daemon=True).start()


def end_with_us(process: subprocess.Popen[bytes]) -> None:
    """Let a child process be killed, too, where a second Ctrl-C ends this one: its claim must not outlive us."""
    _companions.add(process)


def ignore_signals() -> None:
    """From here on SIGTERM changes nothing, as the exit code is decided; Ctrl-C ends the process without a word."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def exit_now(code: int) -> NoReturn:
    """End the process now. Taking down an interpreter that has loaded torch lasts seconds on a busy machine.

    A scheduler's patience may end in them. Nothing may be left to do but to flush the standard streams.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody listens any more
            stream.flush()
    os._exit(code)


def stop_requested() -> Stopped | None:
    """What the first signal asked for, or None; any other failure after it is its consequence."""
    return _requested


def raise_if_requested() -> None:
    """Raise again what a signal raised: Python swallows it where it strikes a destructor or a callback."""
    if _requested is not None:
        raise _requested


def interruptible(advance: Advance) -> Advance:
    """``advance`` of a stage, but raising what was requested first."""

    def advance_or_stop(count: int, detail: str = "", /) -> None:
        raise_if_requested()
        advance(count, detail)

    return advance_or_stop


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    _stop(Stopped("stopped by SIGTERM", RESUME_HINT, exit_code=75))


def _interrupted(_signal: int, _frame: FrameType | None) -> None:
    _stop(Stopped("interrupted", RESUME_HINT, exit_code=130))


def _stop(reason: Stopped) -> None:
    global _requested
    if _requested is None:
        _requested = reason
        raise reason


def _end_at_second_interrupt(heard: int) -> None:
    interrupts = 0
    while interrupts < 2:
        interrupts += os.read(heard, 64).count(signal.SIGINT)
    try:
        for process in list(_companions):
            process.kill()
    finally:
        os._exit(130)


def _unraisable(args: UnraisableHookArgs) -> None:
    """Say nothing of a ``Stopped`` that a destructor swallowed: ``raise_if_requested`` raises it again."""
    if not isinstance(args.exc_value, Stopped):
        sys.__unraisablehook__(args)
