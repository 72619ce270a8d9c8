"""Signals and full disks: the work ends in order, says so, and goes on to the same bytes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kin_cli.errors import OutputError
from kin_cli.translation import translate
from tests.helpers.processes import kin
from tests.helpers.progress import Watcher
from tests.helpers.slides import write_slide
from tests.helpers.translations import SMALL, command_settings, digest, uninterrupted


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slides") / "slide.tif", width=1040)


@pytest.fixture(scope="module")
def wanted(slide: Path, tiny_generator: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return uninterrupted(slide, tiny_generator, tmp_path_factory.mktemp("wanted"))


def test_too_small_a_disk_is_told_before_the_work(
    slide: Path, tiny_generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=50_000))
    result = kin("translate", slide, "-m", tiny_generator, "-o", tmp_path / "out.ome.tif", *SMALL)
    assert result.code == 1
    assert re.search(r"out\.ome\.tif: needs up to \d+ KiB more, but 48\.8 KiB are free", result.err), result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounting a small disk needs root on Linux")
@pytest.mark.parametrize("stage", ["measure", "apply", "write"])
def test_a_full_disk_is_told_and_resumed(
    slide: Path, tiny_generator: Path, wanted: Path, tmp_path: Path, stage: str
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:

        def fill(now: str, _tiles: int) -> None:
            if now == stage and not (disk / "ballast").exists():
                with (disk / "ballast").open("wb", buffering=0) as ballast:
                    while True:
                        try:
                            ballast.write(bytes(4096))
                        except OSError:
                            break

        with pytest.raises(OutputError, match=r"no space left|are free"):
            translate(command_settings(slide, tiny_generator, disk / "out.ome.tif"), Watcher(fill))
        assert not (disk / "out.ome.tif").exists()
        (disk / "ballast").unlink()
        translate(command_settings(slide, tiny_generator, disk / "out.ome.tif"), Watcher())
        assert digest(disk / "out.ome.tif") == digest(wanted)
    finally:
        subprocess.run(["umount", disk], check=True)


def stopped(command: list[object], work: Path, number: signal.Signals, pauses: tuple[float, ...]) -> tuple[int, str]:
    """Exit code and stderr of a command that is sent a signal, and again after each pause, in the midst of pass 1."""
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    table = work / "table-0.dat"
    while not (table.exists() and table.stat().st_size) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    for pause in pauses:
        time.sleep(pause)
        process.send_signal(number)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


@pytest.mark.parametrize(
    ("number", "pauses", "codes"),
    [
        (signal.SIGTERM, (), (75,)),
        (signal.SIGTERM, (0.02, 0.1), (75,)),
        (signal.SIGINT, (), (130,)),
        (signal.SIGINT, (0.0,), (130, -signal.SIGINT)),  # a shell calls both 130
        (signal.SIGINT, (0.02,), (130, -signal.SIGINT)),
        (signal.SIGKILL, (), (-signal.SIGKILL,)),
    ],
)
def test_signals_end_it_in_order_and_it_goes_on(
    slide: Path,
    tiny_generator: Path,
    wanted: Path,
    tmp_path: Path,
    number: signal.Signals,
    pauses: tuple[float, ...],
    codes: tuple[int, ...],
) -> None:
    output = tmp_path / "out.ome.tif"
    arguments = ("translate", slide, "-m", tiny_generator, "-o", output, *SMALL)
    work = tmp_path / "out.ome.tif.kin-work"
    code, err = stopped([sys.executable, "-m", "kin_cli", *arguments], work, number, pauses)
    assert code in codes, err
    assert "Traceback" not in err
    if number == signal.SIGTERM or (number == signal.SIGINT and not pauses):
        assert "the same command continues where it stopped" in err
    assert work.is_dir()
    result = kin(*arguments)
    assert result.code == 0, result.err
    assert digest(output) == digest(wanted)
    assert not work.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_after_a_signal_during_the_report_the_same_command_makes_it(
    slide: Path, tiny_generator: Path, wanted: Path, tmp_path: Path, number: signal.Signals
) -> None:
    output, report = tmp_path / "out.ome.tif", tmp_path / "out.ome.tif.report.html"
    arguments = ("translate", slide, "-m", tiny_generator, "-o", output, *SMALL, "--report")
    process = subprocess.Popen(list(map(str, (sys.executable, "-m", "kin_cli", *arguments))), stderr=subprocess.PIPE)
    while not (tmp_path / "out.ome.tif.json").exists() and process.poll() is None:
        time.sleep(0.002)
    while (tmp_path / "out.ome.tif.kin-work").exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (75, 130, -signal.SIGKILL), err
    assert b"Traceback" not in err
    assert not report.exists()
    made = kin(*arguments)
    assert made.code == 0, made.err
    assert "only its report is made" in made.err
    assert "kin report" in report.read_text()
    assert digest(output) == digest(wanted)
    assert {path.name for path in tmp_path.iterdir()} == {output.name, report.name, f"{output.name}.json"}
    again = kin(*arguments)
    assert (again.code, "exists already" in again.err) == (1, True)
    other = kin(*arguments, "--kernel", "1")
    assert (other.code, digest(output)) == (1, digest(wanted))


STOPPED_AT_THE_END = """
import os, signal, sys
from kin_cli.commands import main, translate
from kin_cli.store.work import WorkFolder
remove, show = WorkFolder.remove, translate.show_record
def stopped_while_removing(work):
    os.kill(os.getpid(), signal.SIGTERM)
    return remove(work)
def stopped_while_showing(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    return show(*arguments)
WorkFolder.remove, translate.show_record = stopped_while_removing, stopped_while_showing
main.main()
"""


@pytest.mark.parametrize("report", [(), ("--report",)])
def test_a_stop_after_the_work_is_done_is_none(
    slide: Path, tiny_generator: Path, wanted: Path, tmp_path: Path, report: tuple[str, ...]
) -> None:
    output = tmp_path / "out.ome.tif"
    arguments = ("translate", slide, "-m", tiny_generator, "-o", output, *SMALL, *report)
    command = [sys.executable, "-c", STOPPED_AT_THE_END, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (75 if report else 0, False), done.stderr
    assert digest(output) == digest(wanted)
    assert not output.with_name("out.ome.tif.kin-work").exists()
    again = kin(*arguments)
    assert (again.code, "exists already" in again.err) == ((0, False) if report else (1, True))


def test_a_job_that_is_started_anew_after_its_end_has_nothing_to_do(
    slide: Path, tiny_generator: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.ome.tif"
    arguments = ("translate", slide, "-m", tiny_generator, "-o", output, *SMALL)
    assert kin(*arguments, SLURM_RESTART_COUNT="1").code == 0
    made = output.stat().st_mtime_ns
    assert kin(*arguments, SLURM_RESTART_COUNT="0").code == 1
    again = kin(*arguments, SLURM_RESTART_COUNT="1")
    assert (again.code, output.stat().st_mtime_ns) == (0, made)
    assert "started anew" in again.err
    assert kin(*arguments, "--quality", 70, SLURM_RESTART_COUNT="1").code == 1
    with output.open("r+b") as file:
        file.seek(-10, os.SEEK_END)
        file.write(b"damage")
    assert kin(*arguments, SLURM_RESTART_COUNT="1").code == 1


IN_A_LIBRARY = """
import hashlib
from kin_cli.errors import Stopped
from kin_cli.signals import stop_on_signals
stop_on_signals()
while True:
    try:
        print("ready", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # half an hour without a look at signals
    except Stopped:  # the first came too early; the second must end it all the same
        pass
"""


def test_a_second_ctrl_c_does_not_wait_for_the_library_that_the_first_waits_for() -> None:
    process = subprocess.Popen([sys.executable, "-c", IN_A_LIBRARY], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.02)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, err) == (130, b"")
