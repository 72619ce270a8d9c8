"""The child's side of a batch: what it answers to each failure, and that it ends with its parent."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from multiprocessing.connection import Pipe
from pathlib import Path

import pytest

from kin_cli.batch import serve
from kin_cli.errors import DeviceError, InputError, KinError, OutputError, Stopped
from kin_cli.plan import Plan, make_plan
from kin_cli.progress import SilentProgress
from kin_cli.settings import Settings
from kin_cli.translation import translate, translate_planned
from tests.helpers.slides import write_slide
from tests.helpers.translations import digest, settings

SLIDE = settings(Path("a.svs"), Path("m.pth"), Path("o.tif"))


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (InputError("a.svs: is odd", "mend it"), "refused", "a.svs: is odd"),
        (OutputError("o.tif: no space"), "refused", "no space"),
        (DeviceError("out of memory"), "failed", "out of memory"),
        (MemoryError(), "failed", "a.svs: out of memory"),
        (ZeroDivisionError("of all things"), "failed", "ZeroDivisionError: of all things"),
        (Stopped("stopped", exit_code=75), "stopped", "stopped"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_failure_has_its_answer(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, kind: str, words: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(serve, "make_plan", fail)
    answer = serve._answer(SLIDE, None, serve.Plans(lambda _opened: None), SilentProgress())  # type: ignore[arg-type]
    assert answer[0] == kind
    assert words in str(answer[1])
    assert answer[3] == (75 if kind == "stopped" else 1)


@pytest.fixture
def two(tmp_path: Path, tiny_generator: Path) -> list[Settings]:
    """Settings of two slides, a.tif and b.tif."""
    slides = [write_slide(tmp_path / f"{name}.tif", width=260, height=130) for name in "ab"]
    return [settings(slide, tiny_generator, slide.with_suffix(".ome.tif")) for slide in slides]


@pytest.fixture
def makers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Which thread began to make a plan of which slide."""
    found = []

    def make(wanted: Settings) -> Plan:
        found.append((threading.current_thread().name, wanted.source.slide.name))
        return make_plan(wanted)

    monkeypatch.setattr(serve, "make_plan", make)
    return found


MAIN = "MainThread"


def test_the_next_slide_is_opened_while_one_is_translated(two: list[Settings], makers: list[tuple[str, str]]) -> None:
    told: list[bool] = []
    plans = serve.Plans(told.append)
    first = plans.take(two[0])
    plans.begin(two[1], beside=first)
    translate_planned(first, SilentProgress())
    second = plans.take(two[1])
    assert second.settings == two[1]
    assert makers == [(MAIN, "a.tif"), ("kin-next", "b.tif")]
    assert told == [False, True, False]
    translate_planned(second, SilentProgress())
    ahead = digest(two[1].output.path)
    two[1].output.path.unlink()
    translate(two[1], SilentProgress())
    assert digest(two[1].output.path) == ahead


def test_a_slide_opened_ahead_fails_in_its_own_turn(two: list[Settings], makers: list[tuple[str, str]]) -> None:
    plans = serve.Plans(lambda _opened: None)
    first = plans.take(two[0])
    content = two[1].source.slide.read_bytes()
    two[1].source.slide.write_bytes(b"no slide")
    plans.begin(two[1], beside=first)
    translate_planned(first, SilentProgress())
    with pytest.raises(KinError, match=r"b\.tif: .*not a slide"):
        plans.take(two[1])
    assert makers[1:] == [("kin-next", "b.tif"), (MAIN, "b.tif")]
    plans.begin(two[1], beside=first)
    assert plans._thread is not None
    plans._thread.join()
    two[1].source.slide.write_bytes(content)  # mended before its turn
    plans.take(two[1]).view.slide.close()


def test_what_changed_since_a_slide_was_opened_ahead_counts(two: list[Settings], makers: list[tuple[str, str]]) -> None:
    plans = serve.Plans(lambda _opened: None)
    first = plans.take(two[0])
    plans.begin(two[1], beside=first)
    translate_planned(first, SilentProgress())
    assert plans._thread is not None
    plans._thread.join()
    write_slide(two[1].source.slide, width=390, height=130)
    second = plans.take(two[1])
    assert second.view.size.width == 390
    assert makers[2:] == [(MAIN, "b.tif")]
    plans.begin(two[0], beside=second)
    with pytest.raises(OutputError, match=r"a\.ome\.tif: exists already"):
        plans.take(two[0])
    plans.begin(two[0], beside=second)
    other = plans.take(replace(two[1], norm=replace(two[1].norm, patch_px=128)))
    assert other.grid.step == 128
    for plan in (second, other):
        plan.view.slide.close()


def test_no_slide_is_opened_ahead_where_memory_is_short_or_a_network_is_the_users(
    two: list[Settings], makers: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []
    plans = serve.Plans(told.append)
    first = plans.take(two[0])
    plans.begin(None, beside=first)
    plans.begin(replace(two[1], network=object()), beside=first)  # type: ignore[arg-type]
    monkeypatch.setattr(serve, "free_memory", lambda: first.host_bytes)
    plans.begin(two[1], beside=first)
    plans.take(two[1]).view.slide.close()
    first.view.slide.close()
    assert makers == [(MAIN, "a.tif"), (MAIN, "b.tif")]
    assert told == [False, False]


def test_progress_arrives_whole_however_often_it_is_told() -> None:
    ours, theirs = Pipe()
    progress = serve._PipeProgress(theirs)
    with progress.stage("apply", 100, "tiles") as advance:
        for _ in range(100):
            advance(1)
        progress.note("a note")
    events = []
    while ours.poll():
        events.append(ours.recv())
    assert events[0] == ("stage", "apply", 100, "tiles")
    assert events[-1] == ("leave",)
    assert sum(event[1] for event in events if event[0] == "advance") == 100
    assert ("note", "a note") in events
    assert len(events) < 50, "a few times a second"


def test_it_ends_when_nobody_listens_any_more() -> None:
    ours, theirs = Pipe()
    command = [sys.executable, "-m", "kin_cli.batch.serve", str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, text=True)
    theirs.close()
    assert ours.recv() == "ready"
    ours.close()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
