"""Command lines, run in this process: importing torch takes seconds."""

from __future__ import annotations

import contextlib
import io
import os
from dataclasses import dataclass
from unittest import mock

from kin_cli.commands.main import run


@dataclass
class Run:
    """What a command line left behind: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


def kin(*arguments: object, **variables: str) -> Run:
    """Run a command line as the console script does, with more environment variables."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.dict(os.environ, variables),
    ):
        code = run(list(map(str, arguments)))
    return Run(code, out.getvalue(), err.getvalue())


def succeed(*arguments: object) -> str:
    """What a command line prints that exits with 0."""
    result = kin(*arguments)
    assert result.code == 0, result.err
    return result.out


def assert_refused(result: Run, *words: str, code: int | None = None) -> None:
    """One line on stderr that holds the words, a non-zero exit code, no traceback."""
    assert result.code != 0 if code is None else result.code == code, result.err
    lines = result.err.strip().splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("kin: ")
    for word in words:
        assert word in lines[0], lines[0]
