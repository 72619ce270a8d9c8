"""Errors are one line with a hint, and each has its exit code."""

from __future__ import annotations

import pytest

from kin_cli import errors
from kin_cli.errors import KinError, Stopped

CODES = {"KinError": 1, "UsageError": 2, "InputError": 1, "ModelError": 1, "OutputError": 1, "DeviceError": 1}


def test_every_error_has_the_exit_code_that_is_documented() -> None:
    found = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, KinError)}
    assert found.keys() == {*CODES, "Stopped"}
    assert {name: found[name]("it is broken").exit_code for name in CODES} == CODES
    for name, code in CODES.items():
        line = next(line for line in (errors.__doc__ or "").splitlines() if name in line)
        assert str(code) in line.split()


@pytest.mark.parametrize("hint", [None, "mend it"])
def test_the_hint_stands_in_brackets(hint: str | None) -> None:
    error = Stopped("stopped", hint, exit_code=75)
    assert str(error) == ("stopped" if hint is None else "stopped (mend it)")
    assert (error.message, error.hint, error.exit_code) == ("stopped", hint, 75)
