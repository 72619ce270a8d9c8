"""A study that is ready for its readers: which part of which slide each item shows, and every reader's trials."""

from __future__ import annotations

import hashlib
import json
import os
import random
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from kin_cli import __version__
from kin_cli.errors import InputError, OutputError, UsageError
from kin_cli.geometry import Box
from kin_cli.store.files import create_atomic, os_errors_as_output_errors, read_regular
from kin_cli.study.settings import CHALLENGES, StudySettings

PLAN_FILE, ANSWERS_FILE = "study.json", "answers.jsonl"
SOURCE, REFERENCE = "source", "reference"
_FORMAT = 1
_SHUFFLES = 40
_REPEAT_AFTER = 3  # trials at least between an item and its repetition, where there are so many


@dataclass(frozen=True)
class Image:
    """A part of a slide (x, y, width, height in its level 0), shown as a picture of ``size``; ``stamp`` of the file."""

    path: str
    part: tuple[float, float, float, float]
    size: tuple[int, int]
    stamp: tuple[int, int]
    mpp: float | None = None


@dataclass(frozen=True)
class Item:
    """What a trial can be about: a source, a real slide of the target stain, and one image per method."""

    name: str
    dataset: str
    practice: bool
    source: Image
    reference: Image
    methods: Mapping[str, Image]

    def image(self, name: str) -> Image:
        """The image of "source", "reference" or a method."""
        return {SOURCE: self.source, REFERENCE: self.reference}.get(name) or self.methods[name]


@dataclass(frozen=True)
class Trial:
    """One question to one reader.

    Attributes:
        challenge: "quality" or "fidelity".
        item: number of the item.
        slots: what is shown, in this order: methods, or in the fidelity challenge a method and "reference".
        practice: whether the answer does not count.
        repeat_of: number of the reader's trial that this one repeats, in another order; None if it does not.
    """

    challenge: str
    item: int
    slots: tuple[str, ...]
    practice: bool = False
    repeat_of: int | None = None


@dataclass(frozen=True)
class Reader:
    """A reader: a name for the author, a secret for the address, and the trials in their order."""

    name: str
    secret: str
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Study:
    """A made study; see ``StudySettings`` for the fields that it shares with it."""

    id: str
    title: str
    seed: int
    challenges: tuple[str, ...]
    seconds: Mapping[str, float]
    methods: tuple[str, ...]
    items: tuple[Item, ...]
    readers: tuple[Reader, ...] = field(default=())

    def reader(self, secret: str) -> Reader:
        """The reader with this secret. Raises ``LookupError``."""
        for reader in self.readers:
            if reader.secret == secret:
                return reader
        raise LookupError("no such reader")


def planned(settings: StudySettings, items: Sequence[Item]) -> Study:
    """The study of these items: every reader's trials in an order that seed and name decide, and new secrets."""
    readers = tuple(
        Reader(name, secrets.token_urlsafe(16), tuple(reader_trials(settings, items, number)))
        for number, name in enumerate(settings.readers)
    )
    return Study(
        id=secrets.token_hex(8),
        title=settings.title,
        seed=settings.seed,
        challenges=settings.challenges,
        seconds=dict(settings.seconds),
        methods=settings.methods,
        items=tuple(items),
        readers=readers,
    )


def reader_trials(settings: StudySettings, items: Sequence[Item], reader: int) -> Iterator[Trial]:
    """The trials of reader number ``reader``: of each challenge those for practice, then all others and repetitions."""
    done = 0
    for challenge in settings.challenges:
        draw = random.Random(f"{settings.seed}/{settings.readers[reader]}/{challenge}")
        units = list(_units(settings, items, challenge, reader, practice=False))
        spare = list(_units(settings, items, challenge, reader, practice=True)) or units
        ordered = _spread(units, draw)
        trials = [_trial(items, challenge, draw.choice(spare), draw, practice=True) for _ in range(settings.practice)]
        trials += [_trial(items, challenge, unit, draw) for unit in ordered]
        found = _with_repeats(trials, settings.practice, settings.repeat_every, done, draw)
        yield from found
        done += len(found)


def _units(
    settings: StudySettings, items: Sequence[Item], challenge: str, reader: int, *, practice: bool
) -> Iterator[tuple[int, str | None]]:
    """Number of the item and, in the fidelity challenge, the method of each question."""
    for number, item in enumerate(items):
        if item.practice != practice:
            continue
        if challenge == "quality":
            yield number, None
            continue
        names = list(item.methods)
        if settings.one_method:  # every method of an item is seen by about as many readers
            names = [names[(reader + number + settings.seed) % len(names)]]
        yield from ((number, name) for name in names)


def _spread(units: list[tuple[int, str | None]], draw: random.Random) -> list[tuple[int, str | None]]:
    """A random order with as few neighbours of the same item as some tries find."""

    def neighbours(order: list[tuple[int, str | None]]) -> int:
        return sum(one[0] == other[0] for one, other in pairwise(order))

    tries = [draw.sample(units, len(units)) for _ in range(_SHUFFLES)]
    return min(tries, key=neighbours)


def _trial(
    items: Sequence[Item], challenge: str, unit: tuple[int, str | None], draw: random.Random, *, practice: bool = False
) -> Trial:
    number, method = unit
    slots = list(items[number].methods) if method is None else [method, REFERENCE]
    draw.shuffle(slots)
    return Trial(challenge, number, tuple(slots), practice)


def _with_repeats(trials: list[Trial], practice: int, every: int, done: int, draw: random.Random) -> list[Trial]:
    """The trials of a challenge with one of every ``every`` that count shown again later.

    ``practice`` of them come first, and ``done`` trials of the reader come before all.
    """
    order: list[tuple[Trial, Trial | None]] = [(trial, None) for trial in trials]
    repeated = [trials[place] for place in range(practice + every - 1, len(trials), every)] if every else []
    for trial in repeated:
        first = next(place for place, entry in enumerate(order) if entry[0] is trial)
        slots = list(trial.slots)
        draw.shuffle(slots)
        place = draw.randint(min(first + 1 + _REPEAT_AFTER, len(order)), len(order))
        order.insert(place, (Trial(trial.challenge, trial.item, tuple(slots)), trial))
    places = {id(trial): done + place for place, (trial, _) in enumerate(order)}
    return [
        trial if of is None else Trial(trial.challenge, trial.item, trial.slots, repeat_of=places[id(of)])
        for trial, of in order
    ]


def reader_key(secret: str) -> str:
    """How the static version names a reader's plan: a digest, so that the folder does not hold the links."""
    return hashlib.sha256(secret.encode()).hexdigest()[:32]


# The folder of a study


def check_new(folder: Path) -> None:
    """Raise ``OutputError`` unless a study can be made in ``folder``, before any work."""
    with os_errors_as_output_errors(folder):
        if folder.is_dir() and any(folder.iterdir()):
            raise OutputError(f"{folder}: is not empty", "name a new folder for the study")
        if not folder.parent.is_dir():
            raise OutputError(f"{folder.parent}: no such folder", "create it, or choose another place")
        if os.path.lexists(folder) and not folder.is_dir():
            raise OutputError(f"{folder}: is a file", "name a new folder for the study")


def save_study(study: Study, folder: Path) -> None:
    """Write a study into a new or empty folder; only its owner may read it, since it holds the key and the links.

    Raises:
        OutputError: the folder holds something, or cannot be written.
    """
    content = {"kin": __version__, "format": _FORMAT, **asdict(study)}
    check_new(folder)
    with os_errors_as_output_errors(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        mask = os.umask(0o077)
        try:
            made = create_atomic(folder / PLAN_FILE, json.dumps(content, indent=1).encode() + b"\n")
        finally:
            os.umask(mask)
    if not made:
        raise OutputError(f"{folder}: a study was made there meanwhile", "name a new folder for the study")


def load_study(folder: Path) -> Study:
    """Read a study that ``save_study`` wrote. Raises ``InputError``."""
    file = folder / PLAN_FILE
    try:
        content = json.loads(read_regular(file))
        if content["format"] != _FORMAT:
            raise InputError(f"{file}: made by another version of kin ({content['kin']})", "use that version")
        return _study(content)
    except OSError as error:
        hint = "kin study make makes a study"
        raise InputError(f"{file}: cannot be read: {error.strerror or error}", hint) from None
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise InputError(f"{file}: not a study: {type(error).__name__} {error}", "restore it from a copy") from None


def _study(content: Mapping[str, Any]) -> Study:
    items = tuple(
        Item(
            str(entry["name"]),
            str(entry["dataset"]),
            bool(entry["practice"]),
            _image(entry["source"]),
            _image(entry["reference"]),
            {str(name): _image(value) for name, value in entry["methods"].items()},
        )
        for entry in content["items"]
    )
    readers = tuple(
        Reader(str(entry["name"]), str(entry["secret"]), tuple(map(partial(_read_trial, items), entry["trials"])))
        for entry in content["readers"]
    )
    seconds = {name: float(content["seconds"][name]) for name in CHALLENGES}
    return Study(
        id=str(content["id"]),
        title=str(content["title"]),
        seed=int(content["seed"]),
        challenges=tuple(content["challenges"]),
        seconds=seconds,
        methods=tuple(content["methods"]),
        items=items,
        readers=readers,
    )


def _image(entry: Mapping[str, Any]) -> Image:
    x, y, width, height = map(float, entry["part"])
    columns, rows = map(int, entry["size"])
    size, time = map(int, entry["stamp"])
    return Image(str(entry["path"]), (x, y, width, height), (columns, rows), (size, time), entry["mpp"])


def _read_trial(items: tuple[Item, ...], entry: Mapping[str, Any]) -> Trial:
    trial = Trial(
        entry["challenge"], int(entry["item"]), tuple(entry["slots"]), bool(entry["practice"]), entry["repeat_of"]
    )
    for name in trial.slots:
        items[trial.item].image(name)
    return trial


def check_box(box: Box, width: int, height: int, what: str) -> None:
    """Raise ``UsageError`` unless a box lies inside a slide of this width and height; ``what`` names both."""
    if box.x < 0 or box.y < 0 or box.right > width or box.bottom > height:
        region = f"{box.x},{box.y},{box.width},{box.height}"
        raise UsageError(f"{what}: the region {region} reaches outside of {width}×{height} pixels")
