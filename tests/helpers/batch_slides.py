"""Small slides, good and bad, and the command line in this process; for the tests of batches and of resuming."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tifffile

from kin_cli.commands.main import run

SMALL = ("--patch-size", "128", "--tissue", "none", "-j", "2")


@dataclass
class Run:
    code: int
    out: str
    err: str


def kin(*arguments: object) -> Run:
    """A command line as the console script runs it, but in this process: importing torch takes seconds."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(list(map(str, arguments)))
    return Run(code, out.getvalue(), err.getvalue())


def write_slide(path: Path, *, width: int = 520, height: int = 1040, seed: int = 0) -> Path:
    """A tiled JPEG TIFF of coloured blobs, read by OpenSlide: tiles of 128 px, 0.5 µm/px."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 240, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
    pixels = np.kron(coarse, np.ones((16, 16, 1), np.uint8))[:height, :width]
    options = {"compression": "jpeg", "resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(128, 128), metadata=None, **options)
    return path


def break_tile(path: Path, number: int) -> None:
    """Overwrite the beginning of a tile, so that it is no JPEG any more."""
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[number]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(64))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class Watcher:
    """A reporter that remembers stages and notes, and calls ``at`` with the stage and the count of its tiles."""

    at: Callable[[str, int], None] = lambda stage, done: None
    stages: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def stage(self, name: str, total: int, unit: str = "tiles") -> Iterator[Callable[[int], None]]:
        self.stages.append(name)
        done = 0

        def advance(tiles: int) -> None:
            nonlocal done
            done += tiles
            self.at(name, done)

        self.at(name, 0)
        yield advance

    def note(self, message: str) -> None:
        self.notes.append(message)
