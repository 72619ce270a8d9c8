"""Many viewers at once: no request fails and the server's memory stays where it is. A large slide opens at once."""

from __future__ import annotations

import http.client
import itertools
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import tifffile

from kin_cli.pyramid.codec import Codec
from tests.helpers.pages import need_viewer

VIEWERS, PER_SECOND, SECONDS = 20, 50, 60


def write_huge(path: Path, side: int) -> Path:
    """A pyramid of JPEG tiles of 512 px, all made of a few different ones."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
    tiles = [Codec("jpeg", 75, "420").encode(np.kron(one, np.ones((8, 8, 1), np.uint8))) for one in noise]
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        reduced = 0
        while True:
            count = (-(-side // 512)) ** 2
            file.write(
                itertools.islice(itertools.cycle(tiles), count),
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
            side, reduced = -(-side // 2), 1


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
        assert process.wait() == 0


def memory(process: subprocess.Popen[str]) -> int:
    """Resident memory of a process in MiB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) // 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_twenty_viewers_ask_fifty_tiles_a_second_for_a_minute(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    need_viewer()
    huge = write_huge(tmp_path / "huge.tif", 100_000)
    with viewing(huge, huge) as (process, address):
        parts, failures, served, slowest = urlsplit(address), [], [0] * VIEWERS, [0.0] * VIEWERS
        end = time.monotonic() + SECONDS

        def view(number: int) -> None:
            draw, connection = random.Random(number), http.client.HTTPConnection(parts.netloc, timeout=60)
            due, x, y = time.monotonic(), draw.randrange(190), draw.randrange(190)
            while time.monotonic() < end:
                level = draw.choice([8, 8, 8, 7, 6, 5, 0])
                x, y = (min(max(place + draw.randint(-2, 2), 0), 195) for place in (x, y))
                path = f"{parts.path}tiles/{draw.randrange(2)}/{level}/{x >> (8 - level)}_{y >> (8 - level)}.jpg"
                asked = time.monotonic()
                try:
                    connection.request("GET", path)
                    answer = connection.getresponse()
                    body = answer.read()
                    if answer.status != 200 or not body.startswith(b"\xff\xd8"):
                        failures.append((path, answer.status))
                except (OSError, http.client.HTTPException) as error:
                    failures.append((path, repr(error)))
                    connection.close()
                served[number] += 1
                slowest[number] = max(slowest[number], time.monotonic() - asked)
                due += 1 / PER_SECOND
                time.sleep(max(0.0, due - time.monotonic()))

        threads = [threading.Thread(target=view, args=(number,)) for number in range(VIEWERS)]
        for thread in threads:
            thread.start()
        sizes = []
        while any(thread.is_alive() for thread in threads):
            time.sleep(1)
            sizes.append(memory(process))
        record_property("tiles per second", sum(served) / SECONDS)
        record_property("slowest, seconds", max(slowest))
        record_property("MiB", (sizes[5], max(sizes)))
        assert failures == []
        # 256 MiB of tiles, the readers' own caches, and what 20 threads hold
        assert max(sizes) < 900
        assert max(sizes[-10:]) < max(sizes[20:40]) + 64


@pytest.mark.slow
def test_a_slide_of_a_hundred_thousand_pixels_opens(
    tmp_path: Path, browser: object, record_property: Callable[[str, object], None]
) -> None:
    from tests.helpers.pages import opened_page
    from tests.view.test_viewer_in_browser import READY

    need_viewer()
    huge = write_huge(tmp_path / "huge.tif", 100_000)
    begin = time.monotonic()
    with viewing(huge, huge) as (process, address):
        listening = time.monotonic() - begin
        with opened_page(browser, address) as opened:
            opened.until(READY)
            record_property("seconds to listen and to be shown", (listening, time.monotonic() - begin))
            assert opened.complaints == []
        assert memory(process) < 600
