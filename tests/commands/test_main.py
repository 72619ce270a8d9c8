"""The command line itself: help, exit codes, settings files, and one clear line for every bad input."""

from __future__ import annotations

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


def test_the_list_of_commands_shows_whole_phrases() -> None:
    listed = kin("--help").out
    for name, command in cli.commands.items():
        assert command.short_help, name
        assert len(command.short_help) <= 45, name
        assert command.short_help in listed, name


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


def test_an_error_of_kin_itself_says_so_and_asks_for_a_report(
    picture: Path, tiny_generator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of all\nthings")

    monkeypatch.setattr("kin_cli.plan.load_generator", broken)
    result = kin("translate", picture, "-m", tiny_generator)
    assert_refused(result, "kin: internal error: ZeroDivisionError: of all things", "--debug", code=1)


@pytest.mark.parametrize(("value", "shown"), [("0", False), ("off", False), ("1", True)])
def test_the_variable_for_debugging_can_be_off(picture: Path, value: str, shown: bool) -> None:
    result = kin("translate", picture, "-m", "absent.pth", KIN_DEBUG=value)
    assert ("Traceback" in result.err) == shown
