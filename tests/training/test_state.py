"""A damaged state or log is refused by name; no code in a state is run; logs continue where the state was saved."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from kin_cli.errors import OutputError
from kin_cli.training.state import CsvLog, begin_state, read_state
from tests.helpers.processes import assert_refused, kin
from tests.helpers.training_runs import command_line, draw_images, rows


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps; nobody may write to it."""
    output = tmp_path_factory.mktemp("runs") / "run"
    done = kin(*command_line(images, output))
    assert done.code == 0, done.err
    return output


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_a_flipped_bit_anywhere_in_the_state_is_refused(images: Path, run: Path) -> None:
    state = run / "state.pt"
    sound = state.read_bytes()
    places = np.random.default_rng(0).integers(0, len(sound), 300).tolist()
    for number, place in enumerate([*range(96), *places, len(sound) - 1]):
        damaged = bytearray(sound)
        damaged[place] ^= 1 << number % 8
        state.write_bytes(damaged)
        with pytest.raises(OutputError, match=r"state\.pt: is damaged"):
            read_state(state)
    refused = kin(*command_line(images, run, steps=6))
    assert_refused(refused, str(state), "is damaged", "--overwrite starts afresh", code=1)
    assert state.read_bytes() == bytes(damaged)
    state.write_bytes(sound)
    assert kin(*command_line(images, run, steps=6)).code == 0


@pytest.mark.parametrize("size", [0, 1, 50, 86, 87, 1000, -1])
def test_a_truncated_or_longer_state_is_refused(run: Path, size: int) -> None:
    state = run / "state.pt"
    sound = state.read_bytes()
    for damaged in (sound[:size], sound + b"\0"):
        state.write_bytes(damaged)
        with pytest.raises(OutputError, match="is damaged"):
            read_state(state)


def test_no_code_in_a_state_is_run(images: Path, run: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(run / "pwned"),)

    torch_file = io.BytesIO()
    torch.save({"step": 2, "networks": Evil()}, torch_file)
    for payload in (pickle.dumps(Evil(), 2), torch_file.getvalue()):
        head = b"kin training state 1 " + hashlib.sha256(payload).hexdigest().encode() + b"\n"
        (run / "state.pt").write_bytes(head + payload)
        assert_refused(kin(*command_line(images, run)), "state.pt: not a readable state", code=1)
    assert not (run / "pwned").exists()


def test_a_pipe_as_state_is_refused_without_waiting(images: Path, run: Path) -> None:
    (run / "state.pt").unlink()
    os.mkfifo(run / "state.pt")
    for extra in ((), ("--overwrite",)):
        assert_refused(kin(*command_line(images, run, *extra)), "state.pt: is not a file that a run makes", code=1)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_changed_log_is_refused_and_a_missing_one_starts_afresh(images: Path, run: Path, overwrite: bool) -> None:
    log = run / "log.csv"
    sound = log.read_bytes()
    for place in np.random.default_rng(1).integers(0, len(sound), 60).tolist():
        damaged = bytearray(sound)
        damaged[place] ^= 1 << place % 8
        log.write_bytes(damaged)
        with pytest.raises(OutputError, match=r"log\.csv: was changed since the state of step 4"):
            CsvLog(log, step=4, saved=_saved(run), note=pytest.fail)
    refused = kin(*command_line(images, run, steps=6))
    assert_refused(refused, str(log), "was changed", "move it away", code=1)
    assert log.read_bytes() == bytes(damaged)
    if overwrite:
        assert kin(*command_line(images, run, "--overwrite", steps=6)).code == 0
        assert [row["step"] for row in rows(run)] == ["1", "2", "3", "4", "5", "6"]
        return
    log.unlink()
    done = kin(*command_line(images, run, steps=6))
    assert done.code == 0
    assert "log.csv: is missing; a new one begins after step 4" in done.err
    assert [row["step"] for row in rows(run)] == ["5", "6"]
    assert kin(*command_line(images, run, steps=8)).code == 0
    assert [row["step"] for row in rows(run)] == ["5", "6", "7", "8"]


def _saved(run: Path) -> dict[str, object]:
    import json

    saved: dict[str, object] = json.loads(read_state(run / "state.pt")["logs"])["log.csv"]
    return saved


def test_a_log_goes_on_from_the_saved_step_whatever_columns_came_later(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    log = CsvLog(path, step=0, note=pytest.fail)
    assert path.read_bytes() == b"\r\n"
    for step in (1, 2):
        log.add({"step": str(step), "value": "a, b"})
    saved, kept = log.as_dict(2), path.read_bytes()
    assert saved["sha256"] == hashlib.sha256(kept).hexdigest()
    log.add({"step": "3", "more": "1"})
    assert path.read_bytes() == b'step,value,more\r\n1,"a, b",\r\n2,"a, b",\r\n3,,1\r\n'
    CsvLog(path, step=2, saved=saved, note=pytest.fail)
    assert path.read_bytes() == kept
    # the run went on without this log
    CsvLog(path, step=9, saved=saved, note=pytest.fail)
    assert path.read_bytes() == kept
    with pytest.raises(OutputError, match="is not a log of this run"):
        CsvLog(path, step=2, saved=None, note=pytest.fail)
    # of a run that was killed before it saved the state
    CsvLog(path, step=0, note=pytest.fail)
    assert path.read_bytes() == b"\r\n"


def test_the_state_of_no_steps_only_marks_the_folder(images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    begin_state(run)
    assert read_state(run / "state.pt")["step"] == 0
    (run / "log.csv").write_text("step\r\n")
    assert kin(*command_line(images, run, steps=2)).code == 0
    assert [row["step"] for row in rows(run)] == ["1", "2"]
