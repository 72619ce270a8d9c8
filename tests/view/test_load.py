"""Many viewers at once: no request fails and the server's memory stays where it is. A large slide opens at once."""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.view_load import memory, run, viewing, write_huge
from tests.helpers.pages import need_viewer, opened_page
from tests.view.test_viewer_in_browser import READY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc"),
]


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_viewer()
    return write_huge(tmp_path_factory.mktemp("huge") / "huge.tif", 100_000)


def test_twenty_viewers_ask_fifty_tiles_a_second_for_a_minute_while_others_attack(
    huge: Path, record_property: Callable[[str, object], None]
) -> None:
    wanted = argparse.Namespace(viewers=20, rate=50, seconds=60, seed=0, hostile=True)
    with viewing(huge, huge) as (process, address):
        load, sizes = asyncio.run(run(address, process.pid, wanted))
    record_property("tiles per second", len(load.seconds) / wanted.seconds)
    record_property("slowest, seconds", max(load.seconds))
    record_property("MiB", (sizes[0], sizes[10], sizes[-1]))
    assert load.failures == []
    assert load.hostile > 50
    assert max(sizes) < 200
    assert max(sizes) - sizes[10] < 30


def test_a_slide_of_a_hundred_thousand_pixels_opens(
    huge: Path, browser: object, record_property: Callable[[str, object], None]
) -> None:
    begin = time.monotonic()
    with viewing(huge, huge) as (process, address):
        listening = time.monotonic() - begin
        with opened_page(browser, address) as opened:
            opened.until(READY)
            record_property("seconds to listen and to be shown", (listening, time.monotonic() - begin))
            assert opened.complaints == []
        assert memory(process.pid) < 200


def test_the_script_tells_what_it_measured(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "view_load.py"
    small = write_huge(tmp_path / "small.tif", 3000)
    command = [sys.executable, script, small, "--seconds", "2", "--viewers", "3", "--hostile"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failures" in done.stdout
