"""Progress on stderr: bars on a terminal, lines elsewhere, and always the true count."""

from __future__ import annotations

import fcntl
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from kin_cli.commands import progress as module
from kin_cli.commands.progress import BatchProgress, ConsoleProgress


def test_a_stage_ends_with_its_count_and_an_empty_one_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ConsoleProgress()
    with progress.stage("measure", 7, "patches") as advance:
        advance(3)
        advance(4)
    with progress.stage("apply", 0, "tiles") as advance:
        advance(0)
    progress.note("a note")
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second = captured.err.splitlines()
    assert re.fullmatch(r"kin: measure 7/7 patches in \d+\.\d s", first)
    assert second == "kin: a note"


def test_long_stages_tell_how_long_they_will_take(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with ConsoleProgress().stage("apply", 100, "tiles") as advance:
        for _ in range(5):
            now[0] += 20
            advance(10, "the last")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "kin: apply 20/100 tiles, 0.5 tiles/s, 160 s left; the last"
    assert lines[1] == "kin: apply 40/100 tiles, 0.5 tiles/s, 120 s left; the last"
    assert lines[-1] == "kin: apply 50/100 tiles in 100.0 s"


ON_A_TERMINAL = """
from kin_cli.commands.progress import ConsoleProgress
progress = ConsoleProgress()
with progress.stage("apply", 4, "tiles") as advance:
    advance(3)
    progress.note("a note")
    advance(1, "loss 0.5")
"""


IN_A_BATCH = """
from kin_cli.commands.progress import BatchProgress
progress = BatchProgress()
with progress.stage("slides", 1, "slides") as advance:
    with progress.stage("measure", 4, "tiles") as inner:
        inner(4)
    progress.note("a note")
    advance(1)
"""


def on_a_terminal(code: str) -> str:
    """What a program in a terminal of 100 columns writes to stderr."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # 100 columns
    with open(ours, "rb", buffering=0) as terminal:  # noqa: PTH123 - a file descriptor
        process = subprocess.Popen([sys.executable, "-c", code], stderr=theirs, stdout=subprocess.PIPE)
        out, _ = process.communicate(timeout=60)
        shown = terminal.read(100_000).decode()
    assert (process.returncode, out) == (0, b"")
    return shown


def test_a_terminal_gets_a_bar() -> None:
    shown = on_a_terminal(ON_A_TERMINAL)
    assert "kin: a note" in shown
    assert "4/4" in shown
    assert "loss 0.5" in shown


def test_a_batch_gets_a_bar_of_slides_and_one_of_the_stage() -> None:
    shown = on_a_terminal(IN_A_BATCH)
    assert "measure:" in shown
    assert "kin: a note" in shown
    assert "1/1" in shown.splitlines()[-1], "the bar of the slides stays"


def test_a_batch_is_quieter_in_a_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    progress = BatchProgress()
    with progress.stage("slides", 2, "slides") as advance, progress.stage("apply", 100, "tiles") as inner:
        for _ in range(4):
            now[0] += 20
            inner(10)
        now[0] += 1000
        advance(1)
    assert capsys.readouterr().err.splitlines() == ["kin: apply 40/100 tiles, 0.5 tiles/s, 120 s left"]
