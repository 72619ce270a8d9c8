"""Errors shown to the user: a message and a hint. ``commands`` prints them as one line and sets the exit code.

KinError                      1
├── UsageError                2   an option or its value makes no sense
├── InputError                1   a slide, image or mask cannot be used
├── ModelError                1   a checkpoint cannot be used
├── OutputError               1   the output or its work folder cannot be written or is damaged
├── DeviceError               1   the compute device is missing or out of memory
└── Stopped            75 or 130  SIGTERM or Ctrl-C; the work can be resumed
"""

from __future__ import annotations


class KinError(Exception):
    """A failure that the user can understand: what is wrong with which file, and what to do about it."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message} ({self.hint})"


class UsageError(KinError):
    """An option or its value makes no sense."""

    exit_code = 2


class InputError(KinError):
    """A slide, image or mask cannot be used."""


class ModelError(KinError):
    """A checkpoint cannot be used."""


class OutputError(KinError):
    """The output or its work folder cannot be written, or holds damaged data or data of other settings."""


class DeviceError(KinError):
    """The compute device is missing or out of memory."""


class Stopped(KinError):
    """The user (Ctrl-C) or the scheduler (SIGTERM) asked to stop; finished work is kept."""

    def __init__(self, message: str, hint: str | None = None, *, exit_code: int) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code
