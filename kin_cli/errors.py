"""Errors shown to the user: a message and a hint. ``commands`` prints them as one line and sets the exit code.

KinError                      1
├── UsageError                2   an option or its value makes no sense
├── InputError                1   a slide, image or mask cannot be used
├── NoTissueError             1   a slide, or the chosen part of it, shows no tissue
├── ModelError                1   a checkpoint cannot be used
├── OutputError               1   the output or its work folder cannot be written or is damaged
├── DeviceError               1   the compute device cannot be used or is out of memory
├── LostDeviceError           1   a DeviceError: the device failed, or is not there
└── Stopped            75 or 130  SIGTERM or Ctrl-C; the work can be resumed
"""

from __future__ import annotations

import errno
import os
import re

# what torch, cuDNN, cuBLAS, Triton and the driver say
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|STATUS_ALLOC_FAILED")
_NO_DEVICE = re.compile(
    r"(CUDA|HIP|cuDNN|NCCL)( driver)? error|(CUDNN|CUBLAS|CUSOLVER)_STATUS_|Triton Error|No CUDA GPUs|NVIDIA driver"
)


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


class NoTissueError(KinError):
    """A slide, or the chosen part of it, shows no tissue, so that there is nothing to translate or to measure."""


class ModelError(KinError):
    """A checkpoint cannot be used."""


class OutputError(KinError):
    """The output or its work folder cannot be written, or holds damaged data or data of other settings."""


class DeviceError(KinError):
    """The compute device cannot be used or is out of memory."""


class LostDeviceError(DeviceError):
    """The compute device failed, or is not there. This process cannot use it any more; another may find it again."""


class Stopped(KinError):
    """The user (Ctrl-C) or the scheduler (SIGTERM) asked to stop; finished work is kept."""

    def __init__(self, message: str, hint: str | None = None, *, exit_code: int) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: the host's, a device's, or that which the two share."""
    if isinstance(error, MemoryError) or "OutOfMemoryError" in _kinds(error):
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None


def lost_device(error: BaseException, device: str) -> LostDeviceError | None:
    """What an error says that a device raised because it does not work any more; None if it is another error."""
    told = isinstance(error, RuntimeError) and _NO_DEVICE.search(str(error)) is not None
    if not told and "AcceleratorError" not in _kinds(error):
        return None
    text = " ".join((str(error).strip().splitlines() or ["for no known reason"])[0].split())
    return LostDeviceError(f"{device} failed: {text}", "nvidia-smi and the system's log tell more")


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def explained(error: BaseException) -> KinError:
    """The cause of an error that no other place has explained, in words: of the system, of torch, or of kin itself."""
    if isinstance(error, KinError):
        return error
    text = " ".join(str(error).split())
    if is_out_of_memory(error):
        return DeviceError("out of memory", "kin translate --dry-run tells what a translation needs")
    if (lost := lost_device(error, "the GPU")) is not None:
        return lost
    if "can't start new thread" in text:
        return KinError("the system allows no more threads", "raise `ulimit -u` or use fewer --workers")
    if isinstance(error, OSError):
        return _of_the_system(error)
    if isinstance(error, ValueError) and "null byte" in text:
        return UsageError("a file name holds a NUL character", "remove it")
    if isinstance(error, RecursionError):
        return InputError("an input is nested too deeply to be read", "write it again with less nesting")
    if isinstance(error, UnicodeError):
        return InputError(f"a name or text is not in the encoding that is needed: {text}", "rename it in plain letters")
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return KinError(f"internal error: {what}", "run again with --debug and report it")


def _of_the_system(error: OSError) -> KinError:
    cause = error.strerror or str(error) or type(error).__name__
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
    hint = {
        errno.EMFILE: "raise `ulimit -n`",
        errno.ENFILE: "raise `ulimit -n`",
        errno.ENAMETOOLONG: "choose a shorter name",
    }.get(error.errno or 0)
    return OutputError(": ".join([*names[:1], cause]), hint)
