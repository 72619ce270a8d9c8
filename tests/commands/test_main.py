"""The command line itself: help, exit codes, settings files, and one clear line for every bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kin_cli.commands.main import cli
from tests.helpers.processes import Run, assert_refused, kin


def test_every_command_has_help_and_stands_in_the_readme() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for name, command in cli.commands.items():
        assert command.help, name
        assert f"kin {name}" in readme, f"README.md does not mention kin {name}"


def test_debug_shows_the_traceback(picture: Path) -> None:
    result = kin("--debug", "translate", picture, "-m", "absent.pth")
    assert "Traceback" in result.err


def test_a_sample_is_a_slide_that_can_be_checked(tmp_path: Path) -> None:
    result = kin("sample", tmp_path / "demo.tif", "--size", "1500x1100")
    assert result.code == 0, result.err
    facts = json.loads(kin("info", tmp_path / "demo.tif", "--json").out)
    assert facts["size"] == [1500, 1100]
    assert facts["mpp"] == pytest.approx(0.5)
    assert len(facts["levels"]) == 2
    damaged = bytearray((tmp_path / "demo.tif").read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    (tmp_path / "damaged.tif").write_bytes(damaged)
    result = kin("check", tmp_path / "demo.tif", tmp_path / "damaged.tif")
    assert result.code == 1
    assert "demo.tif: sound" in result.out


def test_the_installed_command_fails_with_one_line_too(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kin_cli", "info", str(tmp_path / "absent.svs")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert_refused(Run(done.returncode, done.stdout, done.stderr), "absent.svs", code=1)
