"""The command line itself: help, exit codes, settings files, and one clear line for every bad input."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from kin_cli.commands.main import cli
from tests.helpers.processes import Run, assert_refused, kin


def leaves(group: click.Group, path: str = "kin") -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, with its words."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


@pytest.mark.parametrize("words", [words for words, _ in leaves(cli)])
def test_every_command_has_help_in_whole_sentences_and_an_example(words: str) -> None:
    command = dict(leaves(cli))[words]
    assert command.help, "it says what it does"
    shown = kin(*words.split()[1:], "--help").out
    assert f"\n  {words} " in shown.partition("\nExample")[2], "an example to copy stands at its end"
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            assert option.help.rstrip().endswith((".", "]")), f"{option.name}: a sentence ends with a full stop"
    own = [option for option in command.params if isinstance(option, click.Option)]
    if len(own) > 25:
        headings = [line for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
        assert len(headings) >= 5, "many options stand in named groups"


def test_every_example_is_a_command_line_that_is_understood() -> None:
    for words, command in leaves(cli):
        lines = [line.strip() for line in (command.epilog or "").splitlines() if line.strip().startswith("kin ")]
        for line in lines:
            arguments = shlex.split(line.partition(" > ")[0].removeprefix(words))
            command.make_context(words, arguments)  # raises for an unknown option or a bad value


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
