"""Studies: a small one of files, and ones of planted answers without any."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tifffile

from kin_cli.study.answers import Event
from kin_cli.study.plan import Image, Item, Study, Trial, planned
from kin_cli.study.settings import StudySettings

METHODS = ("IN", "TIN", "KIN")


def write_study(folder: Path, *, readers: int = 3, quality: float = 20, fidelity: float = 20, more: str = "") -> Path:
    """Flat coloured slides, so that a test knows each image by its colour, and a study.toml of two items."""
    for number, name in enumerate(("source", "real", *METHODS)):
        pixels = np.full((900, 1100, 3), 60 + 35 * number, np.uint8)
        pixels[::7, ::5] += np.uint8(number)  # each has tiles of another length
        how = {"compression": "deflate", "resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(folder / f"{name}.tif", pixels, photometric="rgb", tile=(256, 256), metadata=None, **how)
    methods = ", ".join(f'{name} = "{name}.tif"' for name in METHODS)
    items = "".join(
        f'[[item]]\nname = "{name}"\ndataset = "{name}"\nsource = "source.tif"\nreference = "real.tif"\n'
        f"regions = [[{x}, 40, 600, 600]]\nmethods = {{ {methods} }}\n"
        for name, x in (("one", 10), ("two", 300))
    )
    file = folder / "study.toml"
    file.write_text(
        f"title = 'A <b>study</b>'\nreaders = {readers}\nseed = 5\npractice = 1\nrepeat_every = 4\n{more}"
        f"[quality]\nseconds = {quality}\n[fidelity]\nseconds = {fidelity}\n{items}"
    )
    return file


def paper_study(items: int = 20, readers: int = 5, *, seed: int = 0, repeat_every: int = 10) -> Study:
    """A study of the paper's kind, of files that do not exist: two data sets, three methods, both challenges."""
    settings = StudySettings(
        title="paper",
        seed=seed,
        readers=tuple(f"r{number}" for number in range(readers)),
        practice=2,
        repeat_every=repeat_every,
        challenges=("fidelity", "quality"),
        seconds={"fidelity": 10.0, "quality": 30.0},
        one_method=False,
        items=(),
    )
    image = Image("none.tif", (0.0, 0.0, 1.0, 1.0), (1, 1), (0, 0))
    made = [
        Item(f"i{n}", "even" if n % 2 == 0 else "odd", False, image, image, dict.fromkeys(METHODS, image))
        for n in range(items)
    ]
    study = planned(settings, made)
    return Study(**{**study.__dict__, "methods": METHODS})


def answered(
    study: Study, choose: Callable[[str, Trial, random.Random], str | None], seed: int = 0
) -> Mapping[tuple[str, int], Event]:
    """Answers to every trial: ``choose`` names the image that a reader takes, or None for a missed answer."""
    draw, found = random.Random(seed), {}
    for reader in study.readers:
        for number, trial in enumerate(reader.trials):
            name = choose(reader.name, trial, draw)
            choice = None if name is None else trial.slots.index(name)
            seconds = None if name is None else 1.0 + number % 5
            found[reader.name, number] = Event(
                "answer", reader.name, number, "2026-01-01T00:00:00.000+00:00", choice, seconds
            )
    return found


def at_random(_reader: str, trial: Trial, draw: random.Random) -> str:
    """A reader who does not look."""
    options: Sequence[str] = trial.slots
    return draw.choice(options)
