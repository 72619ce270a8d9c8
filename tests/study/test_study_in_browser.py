"""Whole studies in a real browser: three readers, clocks, closed browsers, killed servers; also without a server."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kin_cli.study.answers import answers_of, read_events
from kin_cli.study.plan import REFERENCE, Reader, load_study
from tests.helpers.pages import Opened, opened_page, watch
from tests.helpers.processes import kin, succeed
from tests.study.conftest import Making

CARD = "document.querySelector('h1').textContent"
READY = "!document.querySelector('#next').hidden"
RUNNING = "!document.querySelector('#clock').hidden"
DONE = f"{CARD} === 'Thank you'"
WANTED = {"quality": "KIN", "fidelity": REFERENCE}


@contextmanager
def served(folder: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """``kin study serve`` as a process of its own, and the links that it prints."""
    command = [sys.executable, "-m", "kin_cli", "study", "serve", str(folder), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        links = [process.stdout.readline().rpartition(" ")[2].strip() for _ in load_study(folder).readers]
        yield process, links
    finally:
        process.kill()
        process.wait()


def wanted(reader: Reader, number: int) -> int:
    """The place of the image that a reader who knows would choose."""
    trial = reader.trials[number]
    return trial.slots.index(WANTED[trial.challenge])


def begin(opened: Opened) -> int:
    """Go on to the next trial, and its number."""
    opened.until(READY)
    opened.page.click("#next")
    opened.until(RUNNING)
    return int(opened.page.text_content("#progress").split(" ")[0]) - 1


def play(opened: Opened, reader: Reader, *, trials: int = 10**6) -> None:
    """Choose what is wanted, by mouse and by keys in turn, in so many trials or all that are left."""
    for _ in range(trials):
        opened.until(f"{READY} || {DONE}")
        if opened.page.evaluate(DONE):
            return
        number = begin(opened)
        place = wanted(reader, number)
        if number % 2:
            opened.page.keyboard.press("abc"[place])
        else:
            opened.page.locator(".cell button").nth(place).click()
        opened.until(f"!({RUNNING})")


def test_three_readers_play_whole_studies_through(browser: Any, make_study: Making, tmp_path: Path) -> None:
    folder = make_study(quality=2, fidelity=2)
    study = load_study(folder)
    with served(folder) as (process, links):
        port = int(links[0].split(":")[2].split("/")[0])
        # the first closes the browser in a trial, comes back within its time, and lets another one run out
        with opened_page(browser, links[0]) as opened:
            assert opened.page.locator("b").count() == 0
            play(opened, study.readers[0], trials=2)
            begin(opened)
        with opened_page(browser, links[0]) as opened:
            opened.until(f"{READY} || {RUNNING}")
            if opened.page.evaluate(RUNNING):  # its time still ran
                opened.page.keyboard.press("z")  # means nothing
                opened.until(f"!({RUNNING})", seconds=10)
            opened.until(READY)
            begin(opened)
            opened.until(READY, seconds=10)
            assert "time was over" in opened.page.text_content("#text")
            play(opened, study.readers[0])
            assert opened.complaints == []
            assert all(url.startswith((links[0], "data:", "blob:")) for url in opened.requests)
        # the second and third play at the same time; the server is killed while the third has answered
        with opened_page(browser, links[1]) as second, opened_page(browser, links[2]) as third:
            for _ in range(3):
                play(second, study.readers[1], trials=1)
                play(third, study.readers[2], trials=1)
            number = begin(third)
            process.send_signal(signal.SIGKILL)
            process.wait()
            third.page.keyboard.press("abc"[wanted(study.readers[2], number)])
            third.until("document.querySelector('#problem').textContent.includes('cannot be reached')")
            before = answers_of(read_events(folder / "answers.jsonl"))
            assert all((study.readers[r].name, n) in before for r in (1, 2) for n in range(3))
            with served(folder, port) as (_, again):
                assert again == links
                play(third, study.readers[2])
                play(second, study.readers[1])
                assert second.complaints == []
    found = answers_of(read_events(folder / "answers.jsonl"))
    missed = {key for key, event in found.items() if event.missed}
    assert missed == {("reader-1", 2), ("reader-1", 3)}
    for reader in study.readers:
        for number in range(len(reader.trials)):
            event = found[reader.name, number]
            if not event.missed:
                assert (event.choice, event.seconds is not None and event.seconds <= 2) == (
                    wanted(reader, number),
                    True,
                )
    pytest.importorskip("statsmodels")
    told = json.loads(
        succeed("study", "score", folder, "--json", "--csv", tmp_path / "all.csv", "--figure", tmp_path / "f.svg")
    )
    best = {(one["dataset"], one["method"]): one["share"] for one in told["shares"] if one["challenge"] == "quality"}
    assert (best["all", "KIN"], best["all", "IN"]) == (1.0, 0.0)
    with (tmp_path / "all.csv").open() as file:
        assert len(list(csv.DictReader(file))) == sum(len(reader.trials) for reader in study.readers)


def test_images_move_together_within_the_time(browser: Any, make_study: Making) -> None:
    folder = make_study()
    with served(folder) as (_, links), opened_page(browser, links[0]) as opened:
        begin(opened)
        views = (
            "[...document.querySelectorAll('.pane canvas')].filter(c => c.className !== 'marks')"
            ".map(c => c.toDataURL().length > 1000)"
        )
        box = opened.page.locator(".pane").first.bounding_box()
        opened.page.mouse.move(box["x"] + 100, box["y"] + 100)
        opened.page.mouse.wheel(0, -500)
        opened.page.wait_for_timeout(700)
        assert all(opened.page.evaluate(views))
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= 1200
        opened.page.set_viewport_size({"width": 360, "height": 700})
        for button in opened.page.locator(".cell button").all():
            found = button.bounding_box()
            assert found["x"] >= 0
            assert found["x"] + found["width"] <= 360
            assert found["y"] + found["height"] <= 700


def test_a_static_study_is_played_resumed_and_scored(browser: Any, make_study: Making, tmp_path: Path) -> None:
    folder = make_study(readers=1, quality=2, fidelity=2)
    out = succeed("study", "export", folder, tmp_path / "static")
    link = out.splitlines()[0].partition(": ")[2].partition("#")
    address = f"{Path(link[0]).resolve().as_uri()}#{link[2]}"
    study = load_study(folder)
    texts = (tmp_path / "static" / "plan.js").read_text()
    assert not any(name in texts for name in ('"KIN"', "TIN", "real.tif", study.readers[0].secret))
    sizes: dict[str, set[int]] = {}
    for tile in (tmp_path / "static" / "tiles").rglob("*.jpg"):
        sizes.setdefault("/".join(tile.parts[-2:]), set()).add(tile.stat().st_size)
    assert all(len(found) <= 2 for found in sizes.values())  # one length for each of the two items
    context = browser.new_context(viewport={"width": 1000, "height": 700}, accept_downloads=True)
    opened = Opened(context.new_page())
    watch(opened)
    opened.page.goto(address)
    play(opened, study.readers[0], trials=2)
    begin(opened)
    opened.page.close()
    opened.page = context.new_page()
    watch(opened)
    opened.page.goto(address)
    opened.until(f"({READY} || {RUNNING})")
    opened.until(READY, seconds=10)
    play(opened, study.readers[0])
    with opened.page.expect_download() as download:
        opened.page.click("#save")
    download.value.save_as(tmp_path / "back.json")
    assert opened.complaints == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in opened.requests)
    context.close()
    pytest.importorskip("statsmodels")
    told = json.loads(succeed("study", "score", folder, tmp_path / "back.json", "--json"))
    assert told["readers"]["reader-1"]["missed"] == 1
    best = {
        one["method"]: one["share"]
        for one in told["shares"]
        if (one["challenge"], one["dataset"]) == ("quality", "all")
    }
    assert best == {"IN": 0.0, "TIN": 0.0, "KIN": 1.0}
    assert (tmp_path / "made" / "answers.jsonl").exists() is False
    assert kin("study", "score", folder).code == 1
    with opened_page(browser, address.partition("#")[0]) as lost:
        lost.until(f"{CARD}.includes('not complete')")
