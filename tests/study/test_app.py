"""The server's side of a study: order, clock, tiles that give nothing away, and what it refuses."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from http import HTTPStatus
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kin_cli.study import app as module
from kin_cli.study.answers import answers_of, read_events
from kin_cli.study.app import StudyApp
from kin_cli.study.plan import Study, load_study
from kin_cli.view.http import Refusal, Request
from tests.helpers.studies import METHODS
from tests.study.conftest import Making

COLOURS = {"source": 60, "reference": 95, **{name: 130 + 35 * number for number, name in enumerate(METHODS)}}


class Client:
    """A reader who sends requests."""

    def __init__(self, app: StudyApp, secret: str) -> None:
        self.app, self.secret = app, secret

    def get(self, path: str) -> bytes:
        return self.app.answer(Request("GET", self.secret, path)).body

    def post(self, path: str, **told: Any) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            self.app.answer(Request("POST", self.secret, path, json.dumps(told).encode())).body
        )
        return found

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get("state.json"))
        return found

    def refused(self, method: str, path: str, **told: Any) -> HTTPStatus:
        with pytest.raises(Refusal) as refusal:
            self.app.answer(Request(method, self.secret, path, json.dumps(told).encode()))
        return refusal.value.status


@pytest.fixture
def folder(make_study: Making) -> Path:
    return make_study(quality=5, fidelity=5)


@pytest.fixture
def study(folder: Path) -> Study:
    return load_study(folder)


@pytest.fixture
def app(study: Study, folder: Path) -> Iterator[StudyApp]:
    made = StudyApp(study, folder)
    yield made
    made.close()


@pytest.fixture
def reader(app: StudyApp, study: Study) -> Client:
    return Client(app, study.readers[0].secret)


def test_a_reader_goes_through_all_trials_and_all_is_on_the_disk(reader: Client, study: Study, folder: Path) -> None:
    trials = study.readers[0].trials
    for number, trial in enumerate(trials):
        state = reader.state()
        assert (state["trial"], state["challenge"], state["practice"]) == (number, trial.challenge, trial.practice)
        assert reader.post("start", trial=number)["left"] == pytest.approx(5, abs=0.5)
        reader.post("answer", trial=number, choice=number % 2, seconds=0.5)
        events = answers_of(read_events(folder / "answers.jsonl"))
        assert (events["reader-1", number].choice, events["reader-1", number].late) == (number % 2, False)
    assert reader.state()["done"] is True
    assert reader.app.progress()[0] == ("reader-1", len(trials), len(trials))


def test_tiles_show_the_slots_in_the_readers_order_and_are_equally_long(reader: Client, study: Study) -> None:
    for number, trial in enumerate(study.readers[0].trials):
        names = trial.slots if trial.challenge == "fidelity" else (*trial.slots, "source", "reference")
        bodies = [reader.get(f"t/{number}/{letter}/1/0_0.jpg") for letter, _ in zip("abcdefgh", names, strict=False)]
        for name, body in zip(names, bodies, strict=True):
            assert np.median(np.asarray(Image.open(BytesIO(body)))) == pytest.approx(COLOURS[name], abs=1)
        assert len({len(body) for body in bodies[: len(trial.slots)]}) == 1
        reader.post("start", trial=number)
        reader.post("answer", trial=number, choice=None)


def test_nothing_that_a_reader_gets_names_a_method_or_a_file(reader: Client, study: Study) -> None:
    for number in range(len(study.readers[0].trials)):
        text = reader.get("state.json").decode()
        for name in (*METHODS, "real.tif", "reference/", "source.tif", "one", "two"):
            assert f'"{name}' not in text.replace('"role": "reference"', "").replace('"done"', "")
        sizes = {
            json.dumps({k: v for k, v in image.items() if k not in ("id", "role")})
            for image in json.loads(text)["images"]
        }
        assert len(sizes) == 1
        reader.post("start", trial=number)
        reader.post("answer", trial=number, choice=0, seconds=1)


def test_nobody_looks_ahead_or_back_or_answers_for_others(app: StudyApp, reader: Client, study: Study) -> None:
    other = Client(app, study.readers[1].secret)
    assert reader.refused("GET", "t/1/a/0/0_0.jpg") == 404
    assert reader.refused("POST", "start", trial=1) == 409
    assert reader.refused("POST", "answer", trial=0, choice=0, seconds=1) == 409  # not begun
    reader.post("start", trial=0)
    reader.post("answer", trial=0, choice=0, seconds=1)
    assert reader.refused("GET", "t/0/a/0/0_0.jpg") == 404
    assert other.state()["trial"] == 0
    assert reader.post("answer", trial=0, choice=1, seconds=1)["trial"] == 1  # the first answer stays
    assert answers_of(read_events(Path(app._journal._file)))["reader-1", 0].choice == 0


NO_SENSE: list[dict[str, Any]] = [
    {},
    {"trial": -1},
    {"trial": "0"},
    {"trial": 10**9},
    {"trial": True},
    {"trial": 0, "choice": 2},
    {"trial": 0, "choice": -1},
    {"trial": 0, "choice": True, "seconds": 1},
    {"trial": 0, "choice": 0},
    {"trial": 0, "choice": 0, "seconds": "1"},
    {"trial": 0, "choice": 0, "seconds": -1},
    {"trial": 0, "choice": 0, "seconds": float("nan")},
]
NOWHERE = [
    *("t/0/z/0/0_0.jpg", "t/0/c/0/0_0.jpg", "t/0/a/1000000/0_0.jpg", "t/0/a/9/0_0.jpg", "t/0/a/0/9_9.jpg"),
    *("t/99/a/0/0_0.jpg", "t/0/../../study.json", "study.json", "answers.jsonl", "../study.json", "start"),
]


@pytest.mark.parametrize("told", NO_SENSE)
def test_answers_that_make_no_sense_are_refused(reader: Client, told: dict[str, Any]) -> None:
    reader.post("start", trial=0)
    assert reader.refused("POST", "answer", **told) == 400


@pytest.mark.parametrize("path", NOWHERE)
def test_there_is_nothing_else(reader: Client, path: str) -> None:
    assert reader.refused("GET", path) == 404


def test_a_late_answer_is_a_missed_one_by_the_servers_clock(
    reader: Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = time.monotonic()
    reader.post("start", trial=0)
    monkeypatch.setattr(module.time, "monotonic", lambda: begin + 60)
    reader.post("answer", trial=0, choice=0, seconds=1)  # whatever the browser says
    monkeypatch.undo()
    reader.post("start", trial=1)
    reader.post("answer", trial=1, choice=0, seconds=5.2)  # its own clock admits it
    found = answers_of(read_events(folder / "answers.jsonl"))
    assert [found["reader-1", trial].missed for trial in (0, 1)] == [True, True]


def test_a_trial_that_was_left_goes_on_and_then_is_missed(reader: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = time.monotonic()
    assert reader.state()["left"] is None
    reader.post("start", trial=0)
    monkeypatch.setattr(module.time, "monotonic", lambda: begin + 2)
    assert reader.state()["left"] == pytest.approx(3, abs=0.5)
    assert reader.post("start", trial=0)["left"] == pytest.approx(3, abs=0.5)  # it does not begin again
    monkeypatch.setattr(module.time, "monotonic", lambda: begin + 10)
    assert (reader.state()["trial"], reader.state()["left"]) == (1, None)


def test_an_answer_that_a_killed_server_kept_out_counts_afterwards(study: Study, folder: Path) -> None:
    first = StudyApp(study, folder)
    Client(first, study.readers[0].secret).post("start", trial=0)
    first.close()  # as if killed: the answer did not reach it
    later = StudyApp(study, folder)
    later._starts["reader-1", 0] = type(later._starts["reader-1", 0])(
        **{**later._starts["reader-1", 0].__dict__, "at": "2020-01-01T00:00:00.000+00:00"}
    )
    Client(later, study.readers[0].secret).post("answer", trial=0, choice=1, seconds=2)
    later.close()
    assert not answers_of(read_events(folder / "answers.jsonl"))["reader-1", 0].missed
