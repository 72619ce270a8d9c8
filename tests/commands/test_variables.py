"""Environment variables: named after flags; typos and names of the code are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.processes import kin


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("KIN_TRANSLATE_KERNL", "1", "did you mean KIN_TRANSLATE_KERNEL?"),
        ("KIN_TRANSLATE_AS_JSON", "1", "did you mean KIN_TRANSLATE_JSON?"),
        ("KIN_TRANSLATE_PATCH_PX", "1", "KIN_TRANSLATE_PATCH"),
        ("KIN_WHATEVER", "", "no option has this environment variable"),
        ("KIN_TRANSLATE_KERNEL", "x", "KIN_TRANSLATE_KERNEL: Invalid value for '--kernel'"),
        ("KIN_TRAIN_CUT_NCE", "x", ""),
    ],
)
def test_bad_variables(monkeypatch: pytest.MonkeyPatch, picture: Path, name: str, value: str, words: str) -> None:
    monkeypatch.setenv(name, value)
    run = kin("translate", picture, "--dry-run", "--patch-size", 32)
    assert (run.code == 0) == (not words)
    assert words in run.err
    assert kin("translate", "--help").code == 0


def test_a_variable_has_the_name_of_a_flag(monkeypatch: pytest.MonkeyPatch, picture: Path) -> None:
    monkeypatch.setenv("KIN_TRANSLATE_JSON", "1")
    monkeypatch.setenv("KIN_TRANSLATE_NUM_WORKERS", "1")
    assert '"workers": 1' in kin("translate", picture, "--dry-run", "--patch-size", 32).out


def test_debug_may_stand_anywhere() -> None:
    for words in (
        ("--debug", "info", "absent.svs"),
        ("info", "--debug", "absent.svs"),
        ("info", "absent.svs", "--debug"),
    ):
        assert "Traceback" in kin(*words).err
