"""Errors are one line with a hint, and each has its exit code."""

from __future__ import annotations

import pytest

from kin_cli import errors
from kin_cli.errors import KinError, Stopped


def test_every_error_has_the_exit_code_that_its_module_documents() -> None:
    kinds = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, KinError)}
    lines = [line.lstrip("├└─ ").split() for line in (errors.__doc__ or "").splitlines()]
    documented = {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
    assert documented.pop("Stopped") == 75
    assert kinds.keys() == documented.keys() | {"Stopped"}
    assert {name: kinds[name]("it is broken").exit_code for name in documented} == documented
    assert {name for name, code in documented.items() if code == 2} == {"UsageError"}


@pytest.mark.parametrize("hint", [None, "mend it"])
def test_the_hint_stands_in_brackets(hint: str | None) -> None:
    error = Stopped("stopped", hint, exit_code=75)
    assert str(error) == ("stopped" if hint is None else "stopped (mend it)")
    assert (error.message, error.hint, error.exit_code) == ("stopped", hint, 75)
