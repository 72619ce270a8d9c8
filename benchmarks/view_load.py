"""Many viewers of one ``kin view``: python benchmarks/view_load.py [SLIDE …] [--viewers 20] [--rate 50] [--seconds 60]

Starts ``kin view`` and asks, like so many browsers, each over one connection, for tiles at random places of all levels
of all slides, with this program on the same cores. Without slides it writes one of 100,000 × 100,000 pixels (0.8 GB)
to a temporary folder and removes it afterwards. Prints tiles per second, failures, time per tile, processor time of the
server per tile, and its resident memory at the start, after 10 seconds and at the end. Exits with 1 on any failure.

``--hostile`` also holds 200 connections that send nothing, and sends requests that have to be refused, all the while.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import tifffile
from scipy.ndimage import gaussian_filter

from kin_cli.pyramid.codec import Codec

BROWSER = (
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0\r\n"
    "Accept: image/avif,image/webp,image/apng,*/*;q=0.8\r\nAccept-Encoding: gzip, deflate, br\r\n"
    "Accept-Language: en\r\nSec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: image\r\n"
)
# each with the statuses that are right for it; {} is the secret
HOSTILE = (
    ("GET /{}/../../../etc/passwd HTTP/1.1", {404}),
    ("GET /{}/%2e%2e/%2e%2e/etc/passwd HTTP/1.1", {404}),
    ("GET /{}/tiles/0/0/0_0.jpg%00.png HTTP/1.1", {404}),
    ("GET /{}/tiles/0/1000000/0_0.jpg HTTP/1.1", {404}),
    ("GET /{}/tiles/0/8/-1_0.jpg HTTP/1.1", {404}),
    ("GET /{}/tiles/0/8/99999999999999999999_0.jpg HTTP/1.1", {404}),
    ("GET /wrong/tiles/0/0/0_0.jpg HTTP/1.1", {404}),
    ("DELETE /{}/ HTTP/1.1", {501}),
)
SILENT = 200


@dataclass
class Load:
    """What came of it: seconds per tile, and what went wrong."""

    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    hostile: int = 0


def write_huge(path: Path, side: int) -> Path:
    """A pyramid of JPEG tiles of 512 px, half of them like tissue, half like background, of a few different ones."""
    noise = np.random.default_rng(0).normal(0, 1, (16, 512, 512, 3))
    smooth = gaussian_filter(noise, (0, 3, 3, 0))
    smooth[:8] = smooth[:8] * (120, 200, 100) + (200, 150, 190)
    smooth[8:] = smooth[8:] * 10 + 235
    tiles = [Codec("jpeg", 75, "420").encode(one) for one in smooth.clip(0, 255).astype(np.uint8)]
    random.Random(0).shuffle(tiles)
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        reduced = 0
        while True:
            file.write(
                itertools.islice(itertools.cycle(tiles), math.ceil(side / 512) ** 2),
                shape=(side, side, 3),
                dtype=np.uint8,
                tile=(512, 512),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                subfiletype=reduced,
                metadata=None,
                resolution=(40000, 40000),
                resolutionunit="CENTIMETER",
            )
            if side <= 512:
                return path
            side, reduced = math.ceil(side / 2), 1


@contextmanager
def viewing(*slides: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``kin view`` as a process of its own, and its address."""
    command = [sys.executable, "-m", "kin_cli", "view", "--no-browser", *map(str, slides)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.terminate()
        if process.wait() != 0:
            raise RuntimeError(f"kin view ended with {process.returncode}")


def memory(pid: int) -> float:
    """Resident memory of a process in MiB."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]) / 1024


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tile_paths(address: str, seed: int) -> Iterator[str]:
    """Addresses of tiles, drawn evenly from all of the first slide's and all others' levels."""
    with urllib.request.urlopen(f"{address}layers.js") as answer:
        layers = json.loads(answer.read().partition(b"=")[2].rstrip(b";\n"))["layers"]
    grids = [
        (number, level, math.ceil(size[0] / tile[0]), math.ceil(size[1] / tile[1]))
        for number, layer in enumerate(layers)
        for level, (size, tile) in enumerate(zip(layer["levels"], layer["tiles"], strict=True))
    ]
    draw = random.Random(seed)
    while True:
        number, level, cols, rows = draw.choices(grids, [cols * rows for _, _, cols, rows in grids])[0]
        yield f"{urlsplit(address).path}tiles/{number}/{level}/{draw.randrange(cols)}_{draw.randrange(rows)}.jpg"


async def view(address: str, paths: Iterator[str], end: float, rate: float, load: Load) -> None:
    """One viewer: a tile every 1/rate seconds, or as soon as the one before has come."""
    host, port = urlsplit(address).hostname, urlsplit(address).port
    reader, writer = await asyncio.open_connection(host, port)
    due = time.monotonic() + random.random() / rate
    while (now := time.monotonic()) < end:
        if now < due:
            await asyncio.sleep(due - now)
        path, asked = next(paths), time.monotonic()
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n{BROWSER}\r\n".encode())
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
            body = await reader.readexactly(int(head.partition(b"Content-Length: ")[2].split(b"\r")[0]))
            if not head.startswith(b"HTTP/1.1 200 ") or not body.startswith(b"\xff\xd8"):
                load.failures.append(f"{path}: {head[:30]!r}")
        except (OSError, ValueError, EOFError, asyncio.TimeoutError) as error:
            load.failures.append(f"{path}: {error!r}")
            reader, writer = await asyncio.open_connection(host, port)
        load.seconds.append(time.monotonic() - asked)
        due += 1 / rate
    writer.close()


async def attack(address: str, end: float, load: Load) -> None:
    """Connections that send nothing, and, ten times a second, a request that has to be refused."""
    host, port, secret = urlsplit(address).hostname, urlsplit(address).port, urlsplit(address).path.strip("/")
    silent: list[socket.socket] = []
    for line, right in itertools.cycle(HOSTILE):
        if time.monotonic() >= end:
            break
        while len(silent) < SILENT:
            silent.append(socket.create_connection((host, port)))
        try:
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(f"{line.format(secret)}\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
            answer = await asyncio.wait_for(reader.read(), 60)
            writer.close()
            if int(answer.split(b" ", 2)[1]) not in right:
                load.failures.append(f"{line}: {answer[:40]!r}")
            load.hostile += 1
        except (OSError, IndexError, asyncio.TimeoutError) as error:
            load.failures.append(f"{line}: {error!r}")
        await asyncio.sleep(0.1)
    for connection in silent:
        connection.close()


async def run(address: str, pid: int, arguments: argparse.Namespace) -> tuple[Load, list[float]]:
    """Load the server, and note its memory each second."""
    load, end = Load(), time.monotonic() + arguments.seconds
    paths = tile_paths(address, arguments.seed)
    tasks = [view(address, paths, end, arguments.rate, load) for _ in range(arguments.viewers)]
    if arguments.hostile:
        tasks.append(attack(address, end, load))
    work, sizes = asyncio.gather(*tasks), [memory(pid)]
    while not work.done():
        await asyncio.wait([work], timeout=1)
        sizes.append(memory(pid))
    await work
    return load, sizes


def report(load: Load, sizes: list[float], seconds: float, busy: float, own: float) -> None:
    times = sorted(load.seconds)
    count = max(len(times), 1)
    middle, late = (1000 * times[int(count * part)] for part in (0.5, 0.99))
    print(f"{len(times) / seconds:.0f} tiles a second, {len(load.failures)} failures")
    print(f"ms per tile: median {middle:.1f}, 99 % within {late:.1f}, slowest {1000 * times[-1]:.0f}")
    print(f"processor ms per tile: {1000 * busy / count:.2f} of the server, {1000 * own / count:.2f} of this program")
    first, early, last = sizes[0], sizes[min(10, len(sizes) - 1)], sizes[-1]
    print(f"MiB at the start, after 10 s, at the end: {first:.0f}, {early:.0f}, {last:.0f}")
    if load.hostile:
        print(f"{load.hostile} hostile requests refused, {SILENT} silent connections")
    for failure in load.failures[:10]:
        print(failure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", nargs="*", type=Path)
    parser.add_argument("--viewers", type=int, default=20)
    parser.add_argument("--rate", type=float, default=50, help="tiles a second that each viewer asks for")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", type=int, default=100_000, help="side of the slide that is made if none is given")
    parser.add_argument("--hostile", action="store_true", help="with silent connections and hostile requests")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        slides = arguments.slides or [write_huge(Path(folder) / "huge.tif", arguments.side)]
        with viewing(*slides) as (process, address):
            before, own = processor_seconds(process.pid), time.process_time()
            load, sizes = asyncio.run(run(address, process.pid, arguments))
            busy, own = processor_seconds(process.pid) - before, time.process_time() - own
    report(load, sizes, arguments.seconds, busy, own)
    return 1 if load.failures else 0


if __name__ == "__main__":
    sys.exit(main())
