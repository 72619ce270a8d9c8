"""Translate damaged slides and load damaged checkpoints, in batches, and check that each gives at worst a message.

    python scripts/fuzz_slides.py FOLDER_OF_SLIDES --slides 1000 --checkpoints 300 --keep failures/

Mutates the SVS, TIFF and DICOM slides of the folder (flipped bits, cut ends, swapped tags, blanked and repeated
stretches) and the checkpoints of a small generator. Failures are: a traceback, a slide that takes more than a minute
twice, a batch that ends early, and an output that ``kin check`` rejects. Exits 1 if there was any failure.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from kin_cli.models.resnet import ResnetGenerator, ResnetSpec
from kin_cli.pyramid.check import check_file

CHUNK = 25
PATIENCE_SECONDS = 180.0  # beyond --limit, before a batch is killed


def place(rng: random.Random, size: int) -> int:
    """Return a position, half of the time near an end of the file, where headers and directories are."""
    near = min(size, 4096)
    return rng.choice([rng.randrange(size), rng.randrange(size), rng.randrange(near), size - 1 - rng.randrange(near)])


def flip_bits(data: bytearray, rng: random.Random) -> None:
    for _ in range(2 ** rng.randrange(10)):
        data[place(rng, len(data))] ^= 1 << rng.randrange(8)


def cut(data: bytearray, rng: random.Random) -> None:
    del data[place(rng, len(data)) :]


def blank(data: bytearray, rng: random.Random) -> None:
    start = place(rng, len(data))
    length = min(len(data) - start, 2 ** rng.randrange(1, 16))
    data[start : start + length] = bytes([rng.choice((0, 255))]) * length


def repeat(data: bytearray, rng: random.Random) -> None:
    start, target, length = place(rng, len(data)), place(rng, len(data)), 2 ** rng.randrange(1, 12)
    data[target : target + length] = data[start : start + length]


def swap_entries(data: bytearray, rng: random.Random) -> None:
    """Swap tags, types or values of two entries of a TIFF directory or a DICOM file; act as ``repeat`` on others."""
    directories, elements = tiff_directories(bytes(data)), dicom_elements(bytes(data))
    if directories:
        start, count = rng.choice(directories)
        places = [start + 2 + 12 * rng.randrange(count) for _ in range(2)]
        offset, length = rng.choice(((0, 2), (2, 2), (4, 4), (8, 4), (2, 10)))
    elif elements:
        places = rng.choices(elements, k=2)
        offset, length = rng.choice(((0, 4), (4, 2), (6, 2), (8, 4)))
    else:
        repeat(data, rng)
        return
    a, b = (slice(place + offset, place + offset + length) for place in places)
    data[a], data[b] = data[b], data[a]


def dicom_elements(data: bytes) -> list[int]:
    """Return the offsets of the data elements before the pixels, also in sequences; explicit VR, little endian."""
    if data[128:132] != b"DICM":
        return []
    found, offset = [], 132
    while offset < len(data) - 12 and data[offset : offset + 4] != b"\xe0\x7f\x10\x00":
        kind = data[offset + 4 : offset + 6]
        if data[offset : offset + 2] == b"\xfe\xff":  # begin or end of an item, whose elements follow
            offset += 8
            continue
        found.append(offset)
        if kind in (b"OB", b"OD", b"OF", b"OL", b"OW", b"UC", b"UN", b"UR", b"UT"):
            offset += 12 + struct.unpack_from("<I", data, offset + 8)[0]
        else:
            offset += 12 if kind == b"SQ" else 8 + struct.unpack_from("<H", data, offset + 6)[0]
    return found


def tiff_directories(data: bytes) -> list[tuple[int, int]]:
    """Return offset and number of entries of each directory."""
    if data[:4] != b"II*\0":
        return []
    found = []
    (offset,) = struct.unpack_from("<I", data, 4)
    while 0 < offset < len(data) - 6 and len(found) < 16:
        (count,) = struct.unpack_from("<H", data, offset)
        if offset + 6 + 12 * count > len(data):
            break
        found.append((offset, count))
        (offset,) = struct.unpack_from("<I", data, offset + 2 + 12 * count)
    return found


MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (flip_bits, cut, blank, repeat, swap_entries)


def mutated(source: Path, rng: random.Random) -> bytes:
    data = bytearray(source.read_bytes())
    rng.choice(MUTATIONS)(data, rng)
    return bytes(data)


class Fuzz:
    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options = folder, options
        self.random = random.Random(options.seed)
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        torch.manual_seed(0)
        spec = ResnetSpec(width=2, blocks=1, antialias_down=False, antialias_up=False)
        state = ResnetGenerator(spec).state_dict()
        torch.save(state, folder / "tiny.pth")
        torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
        safetensors.torch.save_file(state, folder / "tiny.safetensors")
        Image.fromarray(np.full((64, 64, 3), 128, np.uint8)).save(folder / "grey.png")

    def slides(self, count: int) -> None:
        sources = [path for path in sorted(self.options.slides_in.rglob("*")) if path.suffix in (".svs", ".tif")]
        sources = [path for path in sources if path.stat().st_size < 8 << 20]
        sources += sorted({path.parent for path in self.options.slides_in.rglob("*.dcm")})
        for first in range(0, count, CHUNK):
            batch = self.folder / f"slides{first}"
            batch.mkdir()
            for number in range(first, min(first + CHUNK, count)):
                self._one_slide(sources[number % len(sources)], batch, number)
            mode = self.random.choice(("fail", "fill"))
            # Every pixel is read, few are translated; the pixel size of a damaged header must not decide how many.
            options = ("--recursive", "--source-mpp", "0.5", "--mpp", "4", "--on-read-error", mode)
            self._run(batch, [str(batch), "-m", str(self.folder / "tiny.pth"), *options])

    def _one_slide(self, source: Path, batch: Path, number: int) -> None:
        if source.is_file():
            (batch / f"{number:05d}{source.suffix}").write_bytes(mutated(source, self.random))
            return
        shutil.copytree(source, batch / f"{number:05d}", copy_function=shutil.copyfile)
        victim = self.random.choice(sorted((batch / f"{number:05d}").glob("*.dcm")))
        victim.write_bytes(mutated(victim, self.random))

    def checkpoints(self, count: int) -> None:
        sources = [self.folder / name for name in ("tiny.pth", "legacy.pth", "tiny.safetensors")]
        for first in range(0, count, CHUNK):
            batch = self.folder / f"models{first}"
            batch.mkdir()
            lines = ["wsi,output,model"]
            for number in range(first, min(first + CHUNK, count)):
                source = sources[number % len(sources)]
                model = batch / f"{number:05d}{source.suffix}"
                model.write_bytes(mutated(source, self.random))
                lines.append(f"{self.folder / 'grey.png'},{number:05d}.ome.tif,{model}")
            (batch / "slides.csv").write_text("\n".join(lines) + "\n")
            self._run(batch, ["--manifest", str(batch / "slides.csv"), "--patch-size", "64"])

    def _run(self, batch: Path, arguments: list[str]) -> None:
        output = batch.with_name(batch.name + "-out")
        code = self._batch(arguments, output)
        if code not in (0, 1):
            self._blame(batch, f"the batch ended with code {code}")
        for row in self._rows(output):
            self._judge(batch, row)
        slow = self._slow(output)
        if slow:  # the machine may have been busy: try once more
            shutil.rmtree(output)
            self._batch(arguments, output)
            for name in slow & self._slow(output):
                self._blame(batch, f"{name}: took more than {self.options.limit} s twice")
        print(f"{sum(self.outcomes.values())} done, {len(self.wrong)} wrong: {dict(self.outcomes)}", flush=True)
        shutil.rmtree(batch)
        shutil.rmtree(output, ignore_errors=True)

    def _batch(self, arguments: list[str], output: Path) -> int | None:
        command = [sys.executable, "-m", "kin_cli", "batch", *arguments, "-o", str(output), "-j", "2"]
        with (self.folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        state, since = "", time.monotonic()
        while process.poll() is None:
            time.sleep(0.2)
            now = json.dumps([row["status"] for row in self._rows(output)])
            if now != state:
                state, since = now, time.monotonic()
            elif time.monotonic() - since > self.options.limit + PATIENCE_SECONDS:
                process.kill()
        return process.returncode

    def _slow(self, output: Path) -> set[str]:
        return {row["output"] for row in self._rows(output) if (row["seconds"] or 0) > self.options.limit}

    def _judge(self, batch: Path, row: dict[str, Any]) -> None:
        path, reason = Path(row["output"]), row["reason"]
        died = "died of" in reason
        self.outcomes["child died" if died else row["status"]] += 1
        name = Path(row["slide"]).relative_to(batch) if batch.name.startswith("slides") else path.name.split(".")[0]
        if row["status"] not in ("done", "filled", "failed"):
            self._blame(batch, f"{name}: left as {row['status']}")
        if re.search(r"unexpected(ly| [A-Z]\w*:)|Traceback", reason) or (row["status"] == "failed" and not reason):
            self._blame(batch, f"{name}: {reason}")
        if row["status"] == "failed" and path.exists():
            self._blame(batch, f"{name}: failed, but there is an output")
        if path.exists() and (problems := check_file(path)):
            self._blame(batch, f"{name}: {problems[0]}")

    def _rows(self, output: Path) -> list[dict[str, Any]]:
        try:
            return list(json.loads((output / "kin-batch" / "status.json").read_text())["slides"])
        except FileNotFoundError:
            return []

    def _blame(self, batch: Path, what: str) -> None:
        self.wrong.append(f"{batch.name}: {what}")
        print("WRONG", self.wrong[-1], flush=True)
        if self.options.keep is not None:
            kept = self.options.keep / batch.name
            if not kept.exists():
                shutil.copytree(batch, kept)
                shutil.copy(self.folder / "log", kept / "log")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides_in", type=Path)
    parser.add_argument("--slides", type=int, default=1000)
    parser.add_argument("--checkpoints", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=60.0, help="longest time for a slide, seconds")
    parser.add_argument("--keep", type=Path, help="folder for copies of the batches with failures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        fuzz = Fuzz(Path(temporary), options)
        fuzz.checkpoints(options.checkpoints)
        fuzz.slides(options.slides)
    print(f"{sum(fuzz.outcomes.values())} damaged files, {len(fuzz.wrong)} wrong; {dict(fuzz.outcomes)}")
    return 1 if fuzz.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
