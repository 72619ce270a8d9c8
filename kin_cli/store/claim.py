"""Claims on a work folder: files that name the process, and its host, that is writing there."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from kin_cli.errors import OutputError
from kin_cli.store.files import create_atomic, os_errors_as_output_errors, read_regular, write_atomic

_PREFIX = "claim-"
_LOCK = "claim.lock"
_STALE_SECONDS = 600.0
_BEAT_SECONDS = 60.0


@dataclass(frozen=True)
class _Holder:
    """The process that holds a claim; its start time tells it from a later process with the same pid."""

    host: str
    pid: int
    started: str
    job: str = ""
    restarts: int = 0

    @classmethod
    def this_process(cls) -> _Holder:
        job, restarts = (os.environ.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"))
        times = int(restarts) if restarts.isdecimal() else 0
        return cls(socket.gethostname(), os.getpid(), _start_of(os.getpid()), job, times)

    @classmethod
    def parsed(cls, content: bytes) -> _Holder | None:
        """The holder that a claim file names; None if it is no claim, e.g. left empty by a crash."""
        try:
            fields = json.loads(content)
            job, restarts = str(fields.get("job", "")), int(fields.get("restarts", 0))
            return cls(str(fields["host"]), int(fields["pid"]), str(fields["started"]), job, restarts)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return None

    @property
    def on_this_host(self) -> bool:
        return self.host == socket.gethostname()

    @property
    def lives(self) -> bool:
        """Whether the process, which must be one of this host, is still running (a zombie is not)."""
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):  # no process has a number beyond those of the system
            return False
        except PermissionError:
            pass  # it runs, as another user
        return _start_of(self.pid) == self.started

    @property
    def was_requeued(self) -> bool:
        """Whether this process belongs to a later start of the holder's Slurm job, so that the holder has ended."""
        this = _Holder.this_process()
        return self.job != "" and self.job == this.job and self.restarts < this.restarts


class Claim:
    """The file ``claim-<shard>`` in a folder, held by this process until ``release``.

    A daemon thread renews the file's time stamp every minute. The claim of a dead process is taken over at once if the
    process ran on this host, or in this Slurm job before the job was requeued. Whether a process on another host is
    alive cannot be seen from here: its claim is taken over once it has not been renewed for 10 minutes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._holder = _Holder.this_process()
        self._released = threading.Event()

    @classmethod
    def take(cls, folder: Path, shard: str, *, of: Path) -> Claim:
        """Claim ``shard`` of ``folder``, the work of the output ``of``; ``OutputError`` if a live process has it."""
        claim = cls(folder / f"{_PREFIX}{shard}")
        content = json.dumps(asdict(claim._holder)).encode()
        with os_errors_as_output_errors(folder), _one_at_a_time(folder):
            if not create_atomic(claim._path, content):
                _refuse_if_live(claim._path, of)
                write_atomic(claim._path, content)
        threading.Thread(target=claim._beat, name="kin-claim", daemon=True).start()
        return claim

    def touch(self) -> None:
        """Renew the time stamp of the claim; ``OutputError`` if another process has taken the claim over."""
        with os_errors_as_output_errors(self._path):
            if not self._ours():
                raise OutputError(f"{self._path}: another process has taken over this work", "let only one run")
            os.utime(self._path)

    def refuse_others(self) -> None:
        """Raise ``OutputError`` if any other shard of this folder is claimed by a live process."""
        for path in self._path.parent.glob(f"{_PREFIX}*"):
            if path != self._path:
                _refuse_if_live(path, self._path.parent)

    def release(self) -> None:
        """Give the claim up if this process still holds it."""
        self._released.set()
        with suppress(OSError):
            if self._ours():
                self._path.unlink(missing_ok=True)

    @staticmethod
    def owns(path: Path) -> bool:
        """Whether a file of a work folder is a claim, a temporary file of one, or the lock of the claims."""
        return path.name.lstrip(".").startswith((_PREFIX, _LOCK))

    @staticmethod
    def remove_dead(folder: Path) -> None:
        """Delete the dead claims and the lock file."""
        for path in folder.iterdir():
            if Claim.owns(path):
                path.unlink(missing_ok=True)

    def _beat(self) -> None:
        # the working threads meet a lost claim or a failing disk themselves and raise
        with suppress(OutputError):
            while not self._released.wait(_BEAT_SECONDS):
                self.touch()

    def _ours(self) -> bool:
        try:
            return _Holder.parsed(read_regular(self._path)) == self._holder
        except FileNotFoundError:
            return False


def _refuse_if_live(path: Path, output: Path) -> None:
    """Raise ``OutputError``, naming ``output``, if the claim at ``path`` belongs to a live process."""
    try:
        holder, age = _Holder.parsed(read_regular(path)), time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return
    if holder is not None and holder.on_this_host:
        live = holder.lives
    else:
        live = abs(age) < _STALE_SECONDS and not (holder is not None and holder.was_requeued)
    if live:
        who = f"pid {holder.pid} on {holder.host}" if holder is not None else "an unknown process"
        raise OutputError(
            f"{output}: is being written by {who}",
            "wait for it or stop it; the claim of a process on another host expires after 10 minutes",
        )


def _start_of(pid: int) -> str:
    """Boot id and clock tick at which a process started; "" for a zombie and on systems without ``/proc``."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # field 2, the command, may hold spaces and parentheses: count from its end to state (3) and start (22)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else f"{boot}/{fields[19]}"


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold the lock file for the block, so that only one process of this host replaces a stale claim."""
    fd = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW, 0o666)
    try:
        with suppress(OSError):  # a file system without locks: a race of a few ms remains possible
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
