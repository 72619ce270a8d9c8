"""Files that survive a crash, and the system's errors in the user's words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kin_cli.errors import OutputError
from kin_cli.store import files


def test_permission_errors_name_the_file_and_say_what_to_do(tmp_path: Path) -> None:
    error = files.output_error(tmp_path / "a.tif", PermissionError(13, "Permission denied"))
    assert str(error) == f"{tmp_path}/a.tif: no permission (choose an output folder that you may write to)"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1000, "1000 B"),
        (1024, "1.00 KiB"),
        (50_000, "48.8 KiB"),
        (512 << 20, "512 MiB"),
        ((1 << 30) - 1, "1.00 GiB"),
        (3 << 29, "1.50 GiB"),
        (5 << 50, "5120 TiB"),
    ],
)
def test_amounts_of_bytes(count: int, text: str) -> None:
    assert files.bytes_text(count) == text


@pytest.mark.parametrize("hard_links", [True, False])
def test_create_atomic_never_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool) -> None:
    if not hard_links:

        def refuse(path: Path, target: Path) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(Path, "hardlink_to", refuse)
    assert files.create_atomic(tmp_path / "a", b"one")
    assert not files.create_atomic(tmp_path / "a", b"two")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"one"}


def test_a_failed_write_atomic_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_atomic(tmp_path / "a", b"old")

    def full(fd: int, content: bytes) -> int:
        raise OSError(28, "full")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="full"):
        files.write_atomic(tmp_path / "a", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


@given(st.integers(0, 1 << 49))
def test_amounts_of_bytes_are_right_to_three_figures(count: int) -> None:
    number, unit = files.bytes_text(count).split()
    factor = 1024 ** ("B", "KiB", "MiB", "GiB", "TiB").index(unit)
    assert float(number) * factor == pytest.approx(count, rel=0.005, abs=0.5)
    assert float(number) < 1024
    assert len(number.replace(".", "")) <= 4


def test_a_write_that_fails_leaves_the_file_as_long_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    wrote, calls = os.write, [0]

    def two_bytes_and_no_more(fd: int, payload: bytes) -> int:
        calls[0] += 1
        if calls[0] == 3:
            raise OSError(28, "full")
        return wrote(fd, bytes(payload[:2]))

    monkeypatch.setattr(os, "write", two_bytes_and_no_more)
    with (tmp_path / "a").open("r+b", buffering=0) as file, pytest.raises(OSError, match="full"):
        files.write_at(file.fileno(), 5, b"abcdefgh")
    assert (tmp_path / "a").read_bytes() == b"12345"
    calls[0] = -100
    with (tmp_path / "a").open("r+b", buffering=0) as file:
        files.write_at(file.fileno(), 5, b"abcde")
        monkeypatch.undo()
        assert files.read_at(file.fileno(), 3, 4) == b"45ab"
        assert files.read_at(file.fileno(), 8, 99) == b"de"


def test_a_published_file_replaces_the_old_one_whole(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "part").write_bytes(b"new")
    files.publish(tmp_path / "part", tmp_path / "old")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"old": b"new"}


@pytest.mark.parametrize("begun", [False, True])
def test_a_failure_takes_away_an_empty_folder_only(tmp_path: Path, begun: bool) -> None:
    folder = tmp_path / "work"

    def fail() -> None:
        with files.working_folder(folder):
            if begun:
                (folder / "tiles").touch()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert folder.exists() == begun


@pytest.mark.parametrize(
    ("number", "words"),
    [(28, "free some space"), (30, "choose an output folder"), (5, "check the disk"), (999, "same command")],
)
def test_every_cause_comes_with_what_to_do(tmp_path: Path, number: int, words: str) -> None:
    def fail() -> None:
        with files.os_errors_as_output_errors(tmp_path / "a.tif"):
            raise OSError(number, "of the system")

    with pytest.raises(OutputError) as caught:
        fail()
    assert caught.value.message.startswith(f"{tmp_path / 'a.tif'}: ")
    assert words in (caught.value.hint or "")
