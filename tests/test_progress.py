"""Progress that nobody watches."""

from __future__ import annotations

import pytest

from kin_cli.progress import Progress, SilentProgress
from tests.helpers.progress import Watcher


def test_silence_swallows_whatever_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    progress: Progress = SilentProgress()
    with progress.stage("measure", 3, "patches") as advance:
        advance(2)
        advance(1, "the last")
    progress.note("a note")
    assert capsys.readouterr() == ("", "")


def test_failures_of_a_stage_are_not_swallowed() -> None:
    for progress in (SilentProgress(), Watcher()):
        with pytest.raises(KeyError), progress.stage("apply", 1, "tiles"):
            raise KeyError
