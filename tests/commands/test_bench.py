"""``kin bench``: options that make no sense."""

from __future__ import annotations

import pytest

from tests.helpers.processes import kin


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--model", "m.pth", "--width", "8"), "--model and --width"),
        (("--width", "0"), "width 0"),
        (("--device", "cuda:99"), "cuda:99"),
    ],
)
def test_bad_options_are_one_line(options: tuple[str, ...], word: str) -> None:
    run = kin("bench", *options)
    assert run.code != 0
    assert word in run.err.strip().splitlines()[-1]
