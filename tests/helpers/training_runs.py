"""Small training runs, and what they leave, for the tests of training."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from kin_cli.progress import Advance, SilentProgress
from kin_cli.training.settings import (
    Card,
    CutLosses,
    CycleGanLosses,
    Losses,
    LsesimLosses,
    NetworkSettings,
    PatchSettings,
    Schedule,
    TrainSettings,
)
from kin_cli.training.state import read_state

LOSSES: dict[str, Losses] = {
    "cyclegan": CycleGanLosses(pool=3),
    "cut": CutLosses(),
    "lsesim": LsesimLosses(random_features=True, layers=(1, 2), window=4, pool=3),
}


class Interrupting(SilentProgress):
    """Raises after a number of steps, as a signal would."""

    def __init__(self, after: int) -> None:
        self.left = after

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        assert unit == "steps"

        def advance(count: int, detail: str = "", /) -> None:
            assert "gan" in detail
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

        yield advance


class Noting(SilentProgress):
    """Remembers the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def draw_images(folder: Path, side: int = 96) -> Path:
    """Two folders of square pictures: purple dots on pink, and the same kind in blue and brown on white."""
    rng = np.random.default_rng(0)
    for stain, paper, inks in (
        ("he", (235, 190, 215), [(90, 60, 140)]),
        ("ihc", (250, 250, 250), [(140, 150, 200), (120, 80, 40)]),
    ):
        (folder / stain).mkdir()
        for number in range(2):
            picture = np.full((side, side, 3), paper, np.uint8)
            for _ in range(side * side // 153):
                y, x = rng.integers(0, side - 6, 2)
                picture[y : y + 6, x : x + 6] = inks[rng.integers(len(inks))]
            Image.fromarray(picture).save(folder / stain / f"{number}.png")
    return folder


def settings(images: Path, output: Path, framework: str = "cut", **changes: object) -> TrainSettings:
    made = TrainSettings(
        output=output,
        patches=PatchSettings(images / "he", images / "ihc", patch_px=32),
        losses=LOSSES[framework],
        network=NetworkSettings(width=4, blocks=1, disc_width=4, disc_layers=1, init="xavier", init_gain=1.0),
        schedule=Schedule(steps=6, lr=1e-3),
        card=Card(source_stain="H&E", target_stain="IHC", credit="drawn by the test"),
        save_every=2,
        log_every=1,
        device="cpu",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same_state(first: Path, second: Path) -> None:
    a, b = (read_state(run / "state.pt") for run in (first, second))
    for content in (a, b):
        assert json.loads(content.pop("logs"))["log.csv"]["step"] == content["step"]  # seconds differ
    leaves = [list(_leaves(content)) for content in (a, b)]
    assert [name for name, _ in leaves[0]] == [name for name, _ in leaves[1]]
    for (name, one), (_, other) in zip(*leaves, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, name


def _leaves(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _leaves(entry, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for number, entry in enumerate(value):
            yield from _leaves(entry, f"{name}.{number}")
    else:
        yield name, value


def command_line(images: Path, output: Path, *options: object, steps: int = 4) -> tuple[object, ...]:
    """``kin train cut`` with small networks, which saves after every second step."""
    size = ("--patch-size", 32, "--width", 4, "--blocks", 1, "--disc-width", 4, "--disc-layers", 1)
    how = ("--steps", steps, "--save-every", 2, "--log-every", 1, "--device", "cpu", "--lr", 1e-3)
    stains = ("--source", images / "he", "--target", images / "ihc", "-o", output)
    return ("train", "cut", *stains, *size, *how, *options)
