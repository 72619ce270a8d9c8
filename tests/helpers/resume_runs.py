"""Translations that are interrupted on purpose, and one that is not, for the tests of resuming."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kin_cli.commands.options import settings_from
from kin_cli.commands.translate import translate as command
from kin_cli.settings import Settings
from tests.helpers.batch_slides import SMALL, kin


class Killed(BaseException):
    """A death in the middle of the work."""


def die_at(stage: str, done: int) -> Callable[[str, int], None]:
    """For a ``Watcher``: die when so many tiles of a stage are done."""

    def at(now: str, tiles: int) -> None:
        if now == stage and tiles >= done:
            raise Killed

    return at


def settings(slide: Path, model: Path, output: Path, *more: str) -> Settings:
    """What a command line for a small slide asks for."""
    arguments = [str(slide), "-m", str(model), "-o", str(output), *SMALL, *more]
    options = command.make_context("translate", arguments).params
    return settings_from(options.pop("slide"), options)


def uninterrupted(slide: Path, model: Path, folder: Path) -> Path:
    """The output of a run that nobody interrupted; its name is a part of the file."""
    output = folder / "out.ome.tif"
    result = kin("translate", slide, "-m", model, "-o", output, *SMALL)
    assert result.code == 0, result.err
    return output
