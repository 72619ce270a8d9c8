"""The child's side of a batch: what it answers to each failure, and that it ends with its parent."""

from __future__ import annotations

import subprocess
import sys
from multiprocessing.connection import Pipe
from pathlib import Path

import pytest

from kin_cli.batch import serve
from kin_cli.errors import DeviceError, InputError, OutputError, Stopped
from kin_cli.progress import SilentProgress
from tests.helpers.translations import settings

SLIDE = settings(Path("a.svs"), Path("m.pth"), Path("o.tif"))


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (InputError("a.svs: is odd", "mend it"), "refused", "a.svs: is odd"),
        (OutputError("o.tif: no space"), "refused", "no space"),
        (DeviceError("out of memory"), "failed", "out of memory"),
        (MemoryError(), "failed", "a.svs: out of memory"),
        (ZeroDivisionError("of all things"), "failed", "ZeroDivisionError: of all things"),
        (Stopped("stopped", exit_code=75), "stopped", "stopped"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_failure_has_its_answer(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, kind: str, words: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(serve, "translate", fail)
    answer = serve._answer(SLIDE, SilentProgress())  # type: ignore[arg-type]
    assert answer[0] == kind
    assert words in str(answer[1])
    assert answer[3] == (75 if kind == "stopped" else 1)


def test_progress_arrives_whole_however_often_it_is_told() -> None:
    ours, theirs = Pipe()
    progress = serve._PipeProgress(theirs)
    with progress.stage("apply", 100, "tiles") as advance:
        for _ in range(100):
            advance(1)
        progress.note("a note")
    events = []
    while ours.poll():
        events.append(ours.recv())
    assert events[0] == ("stage", "apply", 100, "tiles")
    assert events[-1] == ("leave",)
    assert sum(event[1] for event in events if event[0] == "advance") == 100
    assert ("note", "a note") in events
    assert len(events) < 50, "a few times a second"


def test_it_ends_when_nobody_listens_any_more() -> None:
    ours, theirs = Pipe()
    command = [sys.executable, "-m", "kin_cli.batch.serve", str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, text=True)
    theirs.close()
    assert ours.recv() == "ready"
    ours.close()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
