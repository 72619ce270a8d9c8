"""One hostile input: run kin on it in a forked child with limits, and judge exit code, words and files."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import click

import kin_cli.commands.progress
from kin_cli.commands.main import main
from kin_cli.progress import Advance

LIMIT_SECONDS = 60.0
MOST_MEMORY = 3 << 30  # resident bytes of one run on a small input
_ADDRESS_SPACE, _LARGEST_FILE = 24 << 30, 64 << 20  # protect the machine from an input that asks for too much
_HASHED_BYTES = 64 << 20  # larger files, which are sparse here, are compared by size and time
_NEVER = re.compile(  # a message may speak of unexpected keys, but not begin with the word
    r"Traceback \(most|(?:^|: )unexpected|internal error|Exception ignored|core dumped", re.IGNORECASE | re.MULTILINE
)
_TOLD = ("note: ", "stage: ")


@dataclass
class Case:
    """What to run and what must come of it.

    ``names``: one of these words must be in the message of a failure. ``may_change`` and ``may_appear``: paths relative
    to the folder, as regular expressions, beside the output, its record and its report. ``verify`` runs in a child of
    its own after the run, gets the exit code, and returns what is wrong, or "". ``shell``: run kin as a command of a
    shell, with this text after it (redirections) or around it ("{}").
    """

    what: str
    arguments: list[str]
    names: tuple[str, ...] = ()
    output: str | None = "out.ome.tif"
    may_change: str | None = None
    may_appear: str | None = None
    verify: Callable[[int], str] | None = None
    shell: str | None = None
    closed: tuple[int, ...] = ()
    to_device: dict[int, str] = field(default_factory=dict)
    on_stdout: bool = False  # problems are printed there, as `kin check` does
    resumes: bool = False  # there is unfinished work before the run


@dataclass
class Outcome:
    what: str
    code: int
    seconds: float
    said: str
    problems: list[str]

    @property
    def kind(self) -> str:
        return {0: "done", 2: "usage"}.get(self.code, "refused")


def execute(case: Case, folder: Path, logs: Path) -> Outcome:
    """Run the case whose files lie in ``folder``, its working folder, and judge it."""
    temporary = logs / "tmp"
    temporary.mkdir(exist_ok=True)
    before = snapshot(folder)
    start = time.monotonic()
    run = (lambda: _run_shell(case)) if case.shell else (lambda: run_kin(case))
    code, rss, said, told = in_child(run, folder, logs, limit=LIMIT_SECONDS)
    if code is None:  # the machine may have been busy: only a second time counts, with what the first one left
        code, rss, said, told = in_child(run, folder, logs, limit=2 * LIMIT_SECONDS)
    seconds = time.monotonic() - start
    problems: list[str] = []
    if code is None:
        return Outcome(case.what, -9, seconds, said, [f"took more than {LIMIT_SECONDS:.0f} s twice"])
    if rss > MOST_MEMORY:
        problems.append(f"needed {rss >> 20} MiB of memory")
    flawed = code == 1 and _flaws_said(said)
    problems += _judge_words(case, code, said, told, flawed=flawed)
    problems += _judge_files(case, code, before, snapshot(folder), begun="stage: " in said, flawed=flawed)
    problems += [f"left in the folder for temporary files: {path.name}" for path in temporary.iterdir()]
    if case.verify is not None:
        problems += _verified(case.verify, code, folder, logs)
    return Outcome(case.what, code, seconds, said, problems)


def snapshot(folder: Path) -> dict[str, str]:
    """What lies in a folder: for each path below it the kind, and the bytes as a digest or the target of a link."""
    found = {}
    top = os.fsencode(folder)
    for root, folders, files in os.walk(top):
        for name in folders + files:
            path = root + b"/" + name
            try:
                found[os.fsdecode(path[len(top) + 1 :])] = _fingerprint(path)
            except FileNotFoundError:
                continue
    return found


def _fingerprint(path: bytes) -> str:
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        return f"link to {Path(os.fsdecode(path)).readlink()}"
    if stat.S_ISDIR(status.st_mode):
        return "folder"
    if not stat.S_ISREG(status.st_mode):
        return "special"
    if status.st_size > _HASHED_BYTES:
        return f"{status.st_size} bytes of {status.st_mtime_ns}"
    with open(path, "rb") as file:  # noqa: PTH123 (a name in bytes)
        return hashlib.sha256(file.read()).hexdigest()


def in_child(run: Callable[[], None], folder: Path, logs: Path, *, limit: float) -> tuple[int | None, int, str, str]:
    """Call ``run`` in a forked child in ``folder``. Return exit code (None: too slow), peak memory, stderr, stdout."""
    streams = [(logs / name).open("w+b") for name in ("stderr", "stdout")]
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            os.chdir(folder)
            with open(os.devnull, "rb") as null:  # noqa: PTH123
                os.dup2(null.fileno(), 0)
            os.dup2(streams[1].fileno(), 1)
            os.dup2(streams[0].fileno(), 2)
            os.environ["TMPDIR"], tempfile.tempdir = str(logs / "tmp"), None
            _limit_resources()
            run()
        finally:
            os._exit(0)
    code, rss = _wait(pid, limit)
    texts = []
    for stream in streams:
        with stream:
            stream.seek(0)
            texts.append(stream.read(1 << 20).decode(errors="surrogateescape"))
    return code, rss, texts[0], texts[1]


def _limit_resources() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST_FILE, _LARGEST_FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _wait(pid: int, limit: float) -> tuple[int | None, int]:
    until, pause = time.monotonic() + limit, 0.001
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > until:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None, 0
        time.sleep(pause)
        pause = min(0.02, 1.5 * pause)
    with suppress(OSError):
        os.killpg(pid, signal.SIGKILL)  # whatever it has left running
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024


def run_kin(case: Case) -> None:
    """Run kin as its entry point does, with notes and stages marked, so that they can be told from messages."""

    @contextmanager
    def stage(_self: object, name: str, total: int, _unit: str = "tiles") -> Iterator[Advance]:
        if total:
            click.echo(f"stage: {name}", err=True)
        yield lambda *_: None

    shown = kin_cli.commands.progress
    for progress in (shown.ConsoleProgress, shown.BatchProgress):
        progress.stage = stage  # type: ignore[method-assign,assignment]
        progress.note = lambda _self, message: click.echo(f"note: {message}", err=True)  # type: ignore[method-assign]
    for descriptor, device in case.to_device.items():
        opened = os.open(device, os.O_WRONLY)
        os.dup2(opened, descriptor)
        os.close(opened)
    for descriptor in case.closed:
        os.close(descriptor)
    sys.argv[1:] = case.arguments
    main()


def _run_shell(case: Case) -> None:
    words = " ".join(f"'{word}'" for word in (sys.executable, "-m", "kin_cli", *case.arguments))
    assert case.shell is not None
    command = case.shell.replace("{}", words) if "{}" in case.shell else f"{words} {case.shell}"
    os._exit(subprocess.run(["bash", "-c", command], check=False).returncode & 255)


def _flaws_said(said: str) -> bool:
    return bool(re.search(r"could not be read and were filled|are not finite|gives one colour to", said))


def _judge_words(case: Case, code: int, said: str, told: str, *, flawed: bool) -> list[str]:
    problems = []
    if code not in (0, 1, 2, 75):
        problems.append(f"exit code {code}; it said: {said[-300:].strip()}")
    for text in (said, told):
        if _NEVER.search(text):
            at = _NEVER.search(text).start()  # type: ignore[union-attr]
            problems.append(f"says: {text[max(0, at - 150) : at + 250].strip()}")
    # OpenSlide prints warnings about damaged pyramids by itself
    lines = [line for line in said.splitlines() if line.strip() and "OpenSlide-WARNING **" not in line]
    own = [line for line in lines if line.startswith("kin: ")]
    if strange := [line for line in lines if not line.startswith(("kin: ", *_TOLD))]:
        problems.append(f"a line that does not begin with 'kin:': {strange[0][:300]}")
    silent = case.closed or case.to_device or case.shell
    if code in (1, 2) and not silent:
        if case.on_stdout and not own:
            own = told.splitlines()
        if not own or (len(own) > 1 and not flawed and not case.on_stdout):
            problems.append(f"{len(own)} messages for one failure: {' / '.join(own)[:400]}")
        if own and case.names and not any(name in line for name in case.names for line in own):
            problems.append(f"names none of {', '.join(case.names)}: {own[-1][:300]}")
    return problems


def _judge_files(
    case: Case, code: int, before: dict[str, str], after: dict[str, str], *, begun: bool, flawed: bool
) -> list[str]:
    output = case.output or "\0"
    made = (output, f"{output}.json", f"{output}.report.html")
    changeable = re.compile(case.may_change or r"\0")
    problems, left = [], []
    for path, what in before.items():
        if path in after and after[path] == what:
            continue
        if not (changeable.fullmatch(path)):
            problems.append(f"LOST: {path!r} is {'changed' if path in after else 'gone'}")
    appearing = re.compile(case.may_appear or r"\0")
    for path in sorted(after.keys() - before.keys()):
        work = path.split("/")[0] == f"{output}.kin-work"
        if path in made:
            if code != 0 and not flawed:
                problems.append(f"{path!r} was made in spite of exit code {code}")
        elif work and (begun or case.resumes) and code != 0:
            continue
        elif not appearing.fullmatch(path):
            left.append(path)
    if left:
        problems.append(f"left behind after exit code {code}: {', '.join(map(repr, left[:3]))}")
    return problems


def _verified(verify: Callable[[int], str], code: int, folder: Path, logs: Path) -> list[str]:
    def run() -> None:
        said = verify(code)
        (logs / "verdict").write_text(said, errors="backslashreplace")

    (logs / "verdict").unlink(missing_ok=True)
    ended, _, said, _ = in_child(run, folder, logs, limit=2 * LIMIT_SECONDS)
    if not (logs / "verdict").exists():
        return [f"could not be verified: code {ended}, {said[-300:].strip()}"]
    text = (logs / "verdict").read_text()
    return [text] if text else []
