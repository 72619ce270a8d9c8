"""Errors are one line with a hint, and each has its exit code."""

from __future__ import annotations

import errno

import pytest

from kin_cli import errors
from kin_cli.errors import KinError, Stopped, explained


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


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), "out of memory"),
        (RuntimeError("CUDA error: an illegal memory access\nCompile with `X` to"), "the GPU failed: CUDA error"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors"), "out of memory (kin translate --dry-run"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "out of memory"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "the GPU failed: cuDNN error"),
        (RuntimeError("Triton Error [CUDA]: misaligned address"), "the GPU failed: Triton Error"),
        (type("AcceleratorError", (RuntimeError,), {})(""), "the GPU failed: for no known reason (nvidia-smi"),
        (ValueError("a file named CUDA error"), "internal error"),
        (RuntimeError("can't start new thread"), "no more threads (raise `ulimit -u`"),
        (OSError(errno.EMFILE, "Too many open files", "/a b"), "/a b: Too many open files (raise `ulimit -n`)"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x"), "x: File name too long (choose a shorter name)"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", b"x\xff"), "x\udcff: No such file or directory"),
        (RecursionError("deep"), "nested too deeply"),
        (UnicodeEncodeError("utf-8", "x\udcff", 1, 2, "surrogates not allowed"), "not in the encoding"),
        (ValueError("embedded null byte"), "NUL"),
        (
            ZeroDivisionError("of all\nthings"),
            "internal error: ZeroDivisionError: of all things (run again with --debug",
        ),
        (AssertionError(), "internal error: AssertionError (run again"),
        (Stopped("stopped", exit_code=75), "stopped"),
    ],
)
def test_any_error_is_explained_in_one_line(error: Exception, words: str) -> None:
    told = str(explained(error))
    assert words in told
    assert not told.startswith("unexpected")
    assert len(told.splitlines()) == 1
