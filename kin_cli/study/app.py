"""The server's side of a study: where each reader is, tiles of the trial there, and answers, on the disk at once."""

from __future__ import annotations

import json
import math
import re
import secrets
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

from kin_cli.study.answers import Event, Journal, answers_of, now
from kin_cli.study.pictures import KIND, StudyPictures, picture_as_dict
from kin_cli.study.plan import REFERENCE, SOURCE, Reader, Study, Trial
from kin_cli.view.http import OPENSEADRAGON, Refusal, Reply, Request, openseadragon, page_file

_TILE = re.compile(r"t/(\d{1,6})/([a-h])/(\d{1,3})/(\d{1,7})_(\d{1,7})\.jpg", re.ASCII)
_KEEP_SECONDS = 600
_GRACE_SECONDS = 1.5  # for an answer's way through the network
LETTERS = "abcdefgh"


@dataclass
class _Running:
    """A trial whose time runs, since ``begin`` on the clock of this run of the server."""

    trial: int
    begin: float
    at: str


class StudyApp:
    """Serves a study to its readers; thread-safe. ``folder`` is the study's.

    Memory bound: that of ``StudyPictures``, and 500 bytes per answer.

    Raises:
        OutputError: another process serves the study.
        InputError: a slide was changed, or the file of answers is damaged.
    """

    def __init__(self, study: Study, folder: Path) -> None:
        self._study, self._pictures = study, StudyPictures(study)
        self._pictures.check()
        self._files = study_files()
        self._run = secrets.token_hex(4)
        self._lock = threading.RLock()
        self._journal = Journal(folder)
        self._answers = answers_of(self._journal.events)
        self._running: dict[str, _Running] = {}
        self._starts = {(event.reader, event.trial): event for event in self._journal.events if event.kind == "start"}

    def answer(self, request: Request) -> Reply:
        """See ``App.answer``."""
        reader = self._study.reader(request.secret)
        path = request.path
        if request.method == "GET":
            if path in self._files:
                return Reply(self._files[path], Path(path).suffix or ".html")
            if path == "plan.js":
                return Reply(b"window.KIN_STUDY = null;\n", ".js")
            if path == "state.json":
                return _json(self.state(reader))
            if found := _TILE.fullmatch(path):
                return self._tile(reader, int(found[1]), found[2], (int(found[3]), int(found[4]), int(found[5])))
            raise Refusal(HTTPStatus.NOT_FOUND)
        if path == "start":
            return _json(self.start(reader, request.json()))
        if path == "answer":
            return _json(self.take(reader, request.json()))
        raise Refusal(HTTPStatus.NOT_FOUND)

    def state(self, reader: Reader) -> dict[str, Any]:
        """Where a reader is: the trial that comes next or whose time runs, or that all is done."""
        with self._lock:
            number = self._current(reader)
            begun = self._left(reader, number)
            if begun is not None and begun <= 0:  # its time ran out while nobody was there
                self._record(reader, number, None, None, late=False)
                number, begun = self._current(reader), None
        return {**trial_state(self._study, reader, number), "left": begun}

    def start(self, reader: Reader, told: Any) -> dict[str, Any]:
        """Begin the time of the reader's next trial, or say how much of it is left."""
        with self._lock:
            number = self._expected(reader, told)
            left = self._left(reader, number)
            if left is None:
                event = Event("start", reader.name, number, now(), run=self._run)
                self._journal.append(event)
                self._starts[reader.name, number] = event
                self._running[reader.name] = _Running(number, time.monotonic(), event.at)
                left = self._limit(reader, number)
        return {"left": max(0.0, left)}

    def take(self, reader: Reader, told: Any) -> dict[str, Any]:
        """Note the answer to a trial, if it is the first one to it; then tell the reader's state."""
        trial = told.get("trial")
        if type(trial) is not int or not 0 <= trial < len(reader.trials):
            raise Refusal(HTTPStatus.BAD_REQUEST)
        choice, seconds = told.get("choice"), told.get("seconds")
        if choice is not None and not (type(choice) is int and 0 <= choice < len(reader.trials[trial].slots)):
            raise Refusal(HTTPStatus.BAD_REQUEST)
        if choice is not None and not (type(seconds) in (int, float) and math.isfinite(seconds) and seconds >= 0):
            raise Refusal(HTTPStatus.BAD_REQUEST)
        with self._lock:
            if (reader.name, trial) not in self._answers:
                if trial != self._current(reader) or (reader.name, trial) not in self._starts:
                    raise Refusal(HTTPStatus.CONFLICT)
                late = choice is not None and self._is_late(reader, trial, seconds)
                self._record(reader, trial, choice, None if choice is None else round(seconds, 3), late=late)
        return self.state(reader)

    def progress(self) -> list[tuple[str, int, int]]:
        """Name, answered trials and all trials of every reader."""
        with self._lock:
            return [
                (
                    reader.name,
                    sum((reader.name, n) in self._answers for n in range(len(reader.trials))),
                    len(reader.trials),
                )
                for reader in self._study.readers
            ]

    def close(self) -> None:
        """Close the answers and all slides."""
        self._journal.close()
        self._pictures.close()

    def _record(self, reader: Reader, trial: int, choice: int | None, seconds: float | None, *, late: bool) -> None:
        event = Event("answer", reader.name, trial, now(), choice, seconds, late, self._run)
        self._journal.append(event)
        self._answers[reader.name, trial] = event

    def _current(self, reader: Reader) -> int:
        """Number of the first trial without an answer; one past the last if there is none."""
        numbers = range(len(reader.trials))
        return next((number for number in numbers if (reader.name, number) not in self._answers), len(numbers))

    def _expected(self, reader: Reader, told: Any) -> int:
        number = self._current(reader)
        if told.get("trial") != number or number == len(reader.trials):
            raise Refusal(HTTPStatus.CONFLICT)
        return number

    def _limit(self, reader: Reader, trial: int) -> float:
        return self._study.seconds[reader.trials[trial].challenge]

    def _left(self, reader: Reader, trial: int) -> float | None:
        """Seconds that are left of a trial; None if it has not begun."""
        start = self._starts.get((reader.name, trial))
        if start is None:
            return None
        running = self._running.get(reader.name)
        if running is not None and running.trial == trial:
            gone = time.monotonic() - running.begin
        else:  # begun in an earlier run of the server
            gone = (datetime.fromisoformat(now()) - datetime.fromisoformat(start.at)).total_seconds()
        return self._limit(reader, trial) - max(0.0, gone)

    def _is_late(self, reader: Reader, trial: int, seconds: float) -> bool:
        """Whether an answer came after its time, by the server's clock if that ran all the while.

        A browser that could not reach the server, since that was killed meanwhile, brings the answer afterwards: then
        its own measurement counts.
        """
        if seconds > self._limit(reader, trial):
            return True
        left = self._left(reader, trial)
        same_run = self._starts[reader.name, trial].run == self._run
        return same_run and left is not None and left < -_GRACE_SECONDS

    def _tile(self, reader: Reader, number: int, letter: str, place: tuple[int, int, int]) -> Reply:
        with self._lock:
            allowed = number == self._current(reader)
        if not allowed or number >= len(reader.trials):  # neither ahead nor back
            raise Refusal(HTTPStatus.NOT_FOUND)
        trial = reader.trials[number]
        shown = dict(zip(LETTERS, shown_images(trial), strict=False))
        if letter not in shown:
            raise Refusal(HTTPStatus.NOT_FOUND)
        try:
            beside = trial.slots if shown[letter] in trial.slots else ()
            body = self._pictures.tile(trial.item, shown[letter], beside, place)
        except LookupError:
            raise Refusal(HTTPStatus.NOT_FOUND) from None
        return Reply(body, KIND, keep=_KEEP_SECONDS)


def shown_images(trial: Trial) -> tuple[str, ...]:
    """Names of the images that a trial shows: those to choose from, then, for quality, source and reference."""
    return trial.slots if trial.challenge == "fidelity" else (*trial.slots, SOURCE, REFERENCE)


def trial_state(study: Study, reader: Reader, number: int) -> dict[str, Any]:
    """What the page may know of a reader's trial: what is asked, and the sizes of the images, but not their names."""
    state: dict[str, Any] = {"title": study.title, "trial": number, "of": len(reader.trials)}
    if number >= len(reader.trials):
        return {**state, "done": True}
    trial = reader.trials[number]
    first = number == 0 or reader.trials[number - 1].challenge != trial.challenge
    images = [picture_as_dict(study.items[trial.item].image(name)) for name in shown_images(trial)]
    for letter, image in zip(LETTERS, images, strict=False):
        image["id"] = letter
    if trial.challenge == "quality":
        images[-2]["role"], images[-1]["role"] = SOURCE, REFERENCE
    return {
        **state,
        "done": False,
        "challenge": trial.challenge,
        "practice": trial.practice,
        "first": first,
        "counts": not first and not trial.practice and reader.trials[number - 1].practice,
        "seconds": study.seconds[trial.challenge],
        "choices": len(trial.slots),
        "images": images,
    }


def study_files() -> dict[str, bytes]:
    """The files of the page by their paths; the page itself has the path "". Raises ``KinError`` without a viewer."""
    return {
        "": page_file("study", "index.html"),
        OPENSEADRAGON: openseadragon(),
        "page.css": page_file("view", "page.css"),
        "panes.js": page_file("view", "panes.js"),
        "study.css": page_file("study", "study.css"),
        "study.js": page_file("study", "study.js"),
    }


def _json(value: Any) -> Reply:
    return Reply(json.dumps(value).encode(), ".json")
