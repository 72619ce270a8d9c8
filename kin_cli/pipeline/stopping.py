"""SIGTERM and Ctrl-C as an orderly end: ``Stopped`` is raised in the main thread, and what is finished is kept."""

from __future__ import annotations

import os
import signal
from types import FrameType

from kin_cli.errors import Stopped

RESUME_HINT = "the same command continues where it stopped"
_requested: Stopped | None = None


def stop_on_signals(*, interrupt: bool = True) -> None:
    """Raise ``Stopped`` in the main thread on SIGTERM (exit code 75) and on Ctrl-C (130); a second Ctrl-C ends at once.

    Without ``interrupt``, Ctrl-C is ignored: a child whose parent will tell it.
    """
    signal.signal(signal.SIGTERM, _terminated)
    signal.signal(signal.SIGINT, _interrupted if interrupt else signal.SIG_IGN)


def requested() -> Stopped | None:
    """What the first signal asked for, or None; any other failure after it is its consequence."""
    return _requested


def raise_if_requested() -> None:
    """Raise again what a signal raised: Python swallows it where it strikes a destructor or a callback."""
    if _requested is not None:
        raise _requested


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    _stop(Stopped("stopped by SIGTERM", RESUME_HINT, exit_code=75))


def _interrupted(_signal: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    _stop(Stopped("interrupted", RESUME_HINT, exit_code=130))


def _stop(reason: Stopped) -> None:
    # Schedulers send SIGTERM more than once, and the second must not disturb what the first has set going.
    global _requested
    if _requested is None:
        _requested = reason
        raise reason
