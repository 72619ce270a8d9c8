"""The command line itself: help, exit codes, settings files, and one clear line for every bad input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


def test_the_installed_command_fails_with_one_line_too(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kin_cli", "info", str(tmp_path / "absent.svs")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert_refused(Run(done.returncode, done.stdout, done.stderr), "absent.svs", code=1)
