"""Progress on stderr: bars on a terminal, lines elsewhere, and always the true count."""

from __future__ import annotations

import fcntl
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from kin_cli.commands import progress as module
from kin_cli.commands.progress import BatchProgress, ConsoleProgress, duration, speed
from tests.helpers.processes import kin


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
    assert lines[0] == "kin: apply 20/100 tiles, 2 s per tile, 3 min left; the last"
    assert lines[1] == "kin: apply 40/100 tiles, 2 s per tile, 2 min left; the last"
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
    assert capsys.readouterr().err.splitlines() == ["kin: apply 40/100 tiles, 2 s per tile, 2 min left"]


def test_the_time_left_is_told_over_all_stages(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    progress = ConsoleProgress()
    progress.outlook({"measure": (100, 1.0), "apply": (50, 3.0)})
    for name, total in (("measure", 10), ("apply", 50)):  # an earlier run had measured 90
        with progress.stage(name, total, "patches") as advance:
            for _ in range(total):
                now[0] += 4 if name == "measure" else 12
                advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "kin: measure 8/10 patches, 4 s per patch, 10 min left in all"  # 2 × 4 s and 50 × 12 s
    assert lines[2] == "kin: apply 3/50 patches, 12 s per patch, 9 min left in all"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (3569, "59 min"), (3600, "1 h 0 min"), (12_000, "3 h 20 min")],
)
def test_durations_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
    assert (duration(190_800), speed(3.21, "patches"), speed(1 / 12, "patches")) == (
        "2 d 5 h",
        "3.2 patches/s",
        "12 s per patch",
    )


def test_quiet_and_normal(picture: Path, tiny_generator: Path) -> None:
    common = ("translate", picture, "-m", tiny_generator, "--patch-size", 32, "--overwrite")
    quiet, normal = kin(*common, "-q"), kin(*common)
    assert (quiet.code, quiet.err) == (0, "")
    assert "160×96 px, " in normal.err.splitlines()[0]
    assert "patches with tissue; kin, kernel gaussian:7, halo" in normal.err.splitlines()[0]
    assert kin("translate", "absent.svs", "-q").err.startswith("kin: absent.svs: no such file")
