"""The child process of a batch: it dies, is told to stop, is killed; its slide alone is lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import tifffile

from kin_cli.batch.child import ChildProcess
from kin_cli.errors import KinError, NoTissueError, Stopped
from tests.helpers.progress import Watcher
from tests.helpers.slides import write_slide
from tests.helpers.translations import settings


def test_a_child_that_dies_takes_only_its_slide_along(tmp_path: Path, tiny_generator: Path) -> None:
    slide = write_slide(tmp_path / "a.tif", width=260, height=130)
    worker = ChildProcess()

    def abort(stage: str, _done: int) -> None:
        if stage == "measure" and worker._child is not None:
            os.kill(worker._child.process.pid, signal.SIGABRT)

    try:
        with pytest.raises(KinError, match=r"a\.tif: its process died of SIGABRT"):
            worker.translate(settings(slide, tiny_generator, tmp_path / "a.ome.tif"), Watcher(abort))
        record = worker.translate(settings(slide, tiny_generator, tmp_path / "a.ome.tif"), Watcher())
        assert record["plan"]["size"] == [260, 130]
        with pytest.raises(KinError, match="no such file") as caught:
            worker.translate(settings(tmp_path / "absent.svs", tiny_generator, tmp_path / "b.ome.tif"), Watcher())
        assert not isinstance(caught.value, Stopped)
        assert worker._child is not None, "a healthy child goes on to the next slide"
        os.kill(worker._child.process.pid, signal.SIGTERM)
        with pytest.raises(Stopped):
            worker.translate(settings(slide, tiny_generator, tmp_path / "c.ome.tif"), Watcher())
    finally:
        worker.close()
    assert not list(tmp_path.glob("*.kin-work"))


def test_a_death_while_the_next_slide_is_open_is_not_put_down_to_this_one(tmp_path: Path, tiny_generator: Path) -> None:
    slides = [write_slide(tmp_path / f"{name}.tif", width=260, height=130) for name in "ab"]
    first, second = (settings(slide, tiny_generator, slide.with_suffix(".ome.tif")) for slide in slides)
    worker = ChildProcess()
    deaths: list[bool] = []

    def abort_once(stage: str, _done: int) -> None:
        if stage == "measure" and worker._child is not None and not deaths:
            deaths.append(worker._child.is_ahead)
            os.kill(worker._child.process.pid, signal.SIGABRT)

    watcher = Watcher(abort_once)
    try:
        record = worker.translate(first, watcher, second)
        assert record["output"] == str(first.output.path)
        assert f"{slides[0]}: its process died of SIGABRT, with the next slide open: it is continued alone" in [
            note.split(" (")[0] for note in watcher.notes
        ]
        assert deaths == [True]
        deaths.clear()
        with pytest.raises(KinError, match=r"b\.tif: its process died of SIGABRT"):
            worker.translate(second, watcher)
        assert deaths == [False]
    finally:
        worker.close()


def test_the_kind_of_a_failure_reaches_the_parent(tmp_path: Path, tiny_generator: Path) -> None:
    white = tmp_path / "white.tif"
    tifffile.imwrite(white, np.full((256, 256, 3), 255, np.uint8), photometric="rgb", tile=(128, 128))
    worker = ChildProcess()
    try:
        with pytest.raises(NoTissueError, match=r"white\.tif: no tissue"):
            worker.translate(settings(white, tiny_generator, tmp_path / "white.ome.tif", tissue="auto"), Watcher())
        assert worker._child is not None, "a healthy child goes on to the next slide"
    finally:
        worker.close()
    assert [path.name for path in tmp_path.iterdir()] == ["white.tif"]
