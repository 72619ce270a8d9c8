"""A batch over good and bad slides, in its real child process: nothing that a slide does stops the others."""

from __future__ import annotations

import csv
import errno
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from kin_cli.batch import run as batch_run
from kin_cli.batch.child import ChildProcess
from kin_cli.batch.run import INCOMPLETE, BatchStatus, SlideBatch, SlideStatus, agree_on_slides, run_batch
from kin_cli.batch.shard import Shard
from kin_cli.batch.tasks import SlideTask
from kin_cli.errors import (
    DeviceError,
    InputError,
    LostDeviceError,
    ModelError,
    NoTissueError,
    OutputError,
    Stopped,
    UsageError,
)
from kin_cli.settings import Settings
from tests.helpers.processes import assert_refused, kin
from tests.helpers.progress import Watcher
from tests.helpers.slides import break_tile, write_slide
from tests.helpers.translations import SMALL, digest, settings

OUT = Path("out")


def rows(folder: Path, stem: str = "status") -> dict[str, dict[str, str]]:
    with (folder / "kin-batch" / f"{stem}.csv").open(newline="") as file:
        return {Path(row["slide"]).name: row for row in csv.DictReader(file)}


def outcome(folder: Path, stem: str = "status") -> dict[str, str]:
    return {name: row["status"] for name, row in rows(folder, stem).items()}


def test_one_bad_slide_never_stops_the_others(tmp_path: Path, tiny_generator: Path) -> None:
    slides, out = tmp_path / "slides", tmp_path / "out"
    (slides / "sub").mkdir(parents=True)
    write_slide(slides / "a.tif", width=260, height=130)
    (slides / "b.svs").write_bytes(b"no slide")
    break_tile(write_slide(slides / "c.tif", width=260, height=130), 0)
    write_slide(slides / "sub" / "a.tif", width=130, height=130, seed=1)
    command = ("batch", slides, "-o", out, "-m", tiny_generator, *SMALL, "--recursive", "--on-read-error", "fill")
    first = kin(*command)
    assert first.code == 1, first.err
    assert "2 done" in first.out
    found = rows(out)
    assert [row["status"] for row in found.values()] == ["done", "failed", "filled"]  # both a.tif have one name here
    assert "not a slide" in found["b.svs"]["reason"]
    assert found["c.tif"]["unreadable_tiles"] == "1"
    assert (out / "sub" / "a.kin.ome.tif").exists()
    summary = json.loads((out / "kin-batch" / "status.json").read_text())
    assert summary["counts"] == {"done": 2, "failed": 1, "filled": 1}
    assert summary["slides"][0]["output_bytes"] == (out / "a.kin.ome.tif").stat().st_size
    before = digest(out / "a.kin.ome.tif")
    again = kin(*command, "--skip-existing")
    assert again.code == 1
    assert outcome(out) == {"a.tif": "skipped", "b.svs": "failed", "c.tif": "filled"}
    assert digest(out / "a.kin.ome.tif") == before


class FakeChild:
    """Does what the table says to each slide, in this process."""

    outcomes: ClassVar[dict[str, Any]] = {}
    closed: ClassVar[int] = 0

    def start(self) -> None:
        pass

    def translate(self, settings: Settings, progress: object, following: object = None) -> dict[str, Any]:
        outcome = self.outcomes.get(settings.source.slide.name)
        if isinstance(outcome, BaseException):
            raise outcome
        plan = {"size": [1, 1], "mpp": None, "patches_with_tissue": 1, "tiles": 1}
        record = {"plan": plan, "unreadable": {"tiles": 0, "patches": 0}, "output_bytes": 1, "peak_rss_bytes": 1}
        return record | (outcome or {})

    def close(self) -> None:
        type(self).closed += 1


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeChild]:
    monkeypatch.setattr(batch_run, "ChildProcess", FakeChild)
    monkeypatch.setattr(FakeChild, "outcomes", {})
    return FakeChild


def fake_batch(tmp_path: Path, count: int, shard: Shard | None = None) -> SlideBatch:
    tasks = [SlideTask(Path(f"{number}.svs"), tmp_path / f"{number}.tif") for number in range(count)]
    return SlideBatch(tasks, lambda task: settings(task.slide, Path("m.pth"), task.output), tmp_path, shard)


def test_slides_without_tissue_and_bad_generators_are_counted(tmp_path: Path, fake: type[FakeChild]) -> None:
    fake.outcomes = {
        "0.svs": NoTissueError("0.svs: no tissue in it", "--tissue none translates everything"),
        "1.svs": ModelError("m.pth: its features are not finite", "use another"),
    }
    status = run_batch(fake_batch(tmp_path, 3), Watcher())
    assert status.counts() == {"no tissue": 1, "bad generator": 1, "done": 1}
    assert status.counts().keys() & INCOMPLETE == {"no tissue", "bad generator"}
    assert rows(tmp_path)["0.svs"]["reason"] == "no tissue in it (--tissue none translates everything)"


def test_each_batch_keeps_a_record_of_its_own(tmp_path: Path, fake: type[FakeChild]) -> None:
    fake.outcomes = {"1.svs": InputError("1.svs: is odd", "mend it")}
    batch = replace(
        fake_batch(tmp_path, 2), command=("kin", "batch", "a b"), left_out=("left out: 1 .png (see --ext)",)
    )
    watcher = Watcher()
    run_batch(batch, watcher)
    assert watcher.notes[0] == "left out: 1 .png (see --ext)"
    (first,) = (tmp_path / "kin-batch" / "runs").iterdir()
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d-\d\d-\d\dZ\.json", first.name)
    record = json.loads(first.read_text())
    assert (record["schema"], record["command"], record["counts"]) == (1, "kin batch 'a b'", {"done": 1, "failed": 1})
    assert record["slides"][1]["reason"] == "is odd (mend it)"
    assert record["host"] == platform.node()
    assert record["versions"]["numpy"] == np.__version__
    assert record["left_out"] == ["left out: 1 .png (see --ext)"]
    before = first.read_bytes()
    fake.outcomes = {}
    run_batch(fake_batch(tmp_path, 1), Watcher())
    run_batch(fake_batch(tmp_path, 3, Shard(2, 3)), Watcher())
    assert first.read_bytes() == before
    runs = sorted(path.name for path in (tmp_path / "kin-batch" / "runs").iterdir())
    assert len(runs) == 3
    assert sum("-2-of-3" in name for name in runs) == 1
    assert json.loads((tmp_path / "kin-batch" / "status.json").read_text())["counts"] == {"done": 1}


def test_files_that_kin_did_not_write_stay(tmp_path: Path, fake: type[FakeChild]) -> None:
    folder = tmp_path / "kin-batch"
    folder.mkdir()
    for name, content in (("status.csv", "case,score\n"), ("status.json", "{}")):
        (folder / name).write_text(content)
        with pytest.raises(OutputError, match=f"{name}: exists, and kin did not write it"):
            run_batch(fake_batch(tmp_path, 1), Watcher())
        assert (folder / name).read_text() == content
        (folder / name).unlink()
    (tmp_path / "elsewhere").mkdir()
    (folder / "runs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="runs: is a symbolic link"):
        run_batch(fake_batch(tmp_path, 1), Watcher())
    assert not list((tmp_path / "elsewhere").iterdir())


def test_manifests_of_the_cases_through_the_command(tmp_path: Path, tiny_generator: Path) -> None:
    write_slide(tmp_path / "small.tif", width=130, height=130)
    options = ("-m", tiny_generator, *SMALL)
    files = {
        "decimal_comma": b"\xef\xbb\xbfwsi;mpp\r\nsmall.tif;0,25\r\n",
        "twice": b"wsi,mpp\nsmall.tif,0.25\nsmall.tif,0.25\n",
    }
    for name, content in files.items():
        (tmp_path / f"{name}.csv").write_bytes(content)
        done = kin("batch", "--manifest", tmp_path / f"{name}.csv", "-o", tmp_path / name, *options)
        assert done.code == 0, done.err
        assert [row["mpp"] for row in rows(tmp_path / name).values()] == ["0.25"]
        assert json.loads((tmp_path / name / "kin-batch" / "status.json").read_text())["counts"] == {"done": 1}
    assert "line 3: the same as line 2, translated once" in done.err
    (tmp_path / "leaves.csv").write_bytes(b"wsi,mpp,output\nsmall.tif,0.5,../outside.ome.tif\n")
    (tmp_path / "nul.csv").write_bytes(b"wsi,mpp\nsm\0all.tif,0.5\n")
    for name in ("leaves", "nul"):
        result = kin("batch", "--manifest", tmp_path / f"{name}.csv", "-o", tmp_path / "out", *options)
        assert_refused(result, f"{name}.csv, line 2: ", code=2)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_read_makes_the_exit_code_1(
    tmp_path: Path, tiny_generator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slides = tmp_path / "slides"
    (slides / "closed").mkdir(parents=True)
    write_slide(slides / "a.tif", width=130, height=130)
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    command = ("batch", slides, "--recursive", "-o", tmp_path / "out", "-m", tiny_generator, *SMALL)
    for arguments in (command, (*command, "--dry-run")):
        result = kin(*arguments)
        assert result.code == 1
        assert f"kin: {slides / 'closed'}: cannot be searched: Permission denied" in result.err
    assert outcome(tmp_path / "out") == {"a.tif": "done"}


def test_a_stop_is_written_down_and_passed_on(tmp_path: Path, fake: type[FakeChild]) -> None:
    fake.outcomes = {"1.svs": InputError("1.svs: is odd", "mend it"), "2.svs": Stopped("stopped", exit_code=75)}
    with pytest.raises(Stopped) as caught:
        run_batch(fake_batch(tmp_path, 4), Watcher())
    assert caught.value.exit_code == 75
    assert outcome(tmp_path) == {"0.svs": "done", "1.svs": "failed", "2.svs": "stopped", "3.svs": "pending"}
    assert rows(tmp_path)["1.svs"]["reason"] == "is odd (mend it)"
    assert fake.closed


def test_a_batch_goes_on_after_a_device_failed_and_stops_when_it_is_gone(tmp_path: Path, fake: type[FakeChild]) -> None:
    fake.outcomes = {"0.svs": LostDeviceError("cuda failed: CUDA error: unspecified launch failure", "see nvidia-smi")}
    assert run_batch(fake_batch(tmp_path, 3), Watcher()).counts() == {"failed": 1, "done": 2}
    assert rows(tmp_path)["0.svs"]["reason"].startswith("cuda failed: CUDA error: unspecified launch failure")
    fake.outcomes |= {f"{number}.svs": LostDeviceError("device 'cuda' is not there") for number in (2, 3, 4)}
    with pytest.raises(LostDeviceError, match="two slides, one after the other: device 'cuda' is not there: the other"):
        run_batch(fake_batch(tmp_path, 6), Watcher())
    assert list(outcome(tmp_path).values()) == ["failed", "done", "failed", "failed", "pending", "pending"]
    fake.outcomes = {
        "0.svs": InputError("0.svs: is odd"),
        "1.svs": LostDeviceError("gone"),
        "2.svs": DeviceError("full"),
    }
    assert run_batch(fake_batch(tmp_path, 4), Watcher()).counts() == {"failed": 3, "done": 1}


def test_a_batch_whose_gpu_failed_does_not_go_on_with_a_cpu(tmp_path: Path, fake: type[FakeChild]) -> None:
    used: list[tuple[str, str]] = []

    class Noting(FakeChild):
        def translate(self, settings: Settings, progress: object, following: object = None) -> dict[str, Any]:
            assert isinstance(following, Settings | None)
            used.append((settings.compute.device, following.compute.device if following else ""))
            return super().translate(settings, progress, following)

    fake.outcomes = {"1.svs": LostDeviceError("cuda failed: CUDA error")}
    tasks = [SlideTask(Path(f"{number}.svs"), tmp_path / f"{number}.tif") for number in range(4)]
    batch = SlideBatch(tasks, lambda task: settings(task.slide, Path("m.pth"), task.output, device="auto"), tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_run, "ChildProcess", Noting)
        run_batch(batch, Watcher())
    assert used == [("auto", "auto"), ("auto", "auto"), ("cuda", "cuda"), ("cuda", "")]


NET = """
import pathlib, torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.InstanceNorm2d(3))

    def forward(self, x):
        if x.shape[-1] == 128 and pathlib.Path(__file__).with_name("fail").exists() and x.std() > 0.1:
            pathlib.Path(__file__).with_name("fail").unlink()
            raise RuntimeError("CUDA error: unspecified launch failure\\nCompile with `TORCH_USE_CUDA_DSA`")
        return torch.tanh(self.layers(x))
"""


def test_a_device_failure_in_a_real_child_costs_one_slide(tmp_path: Path) -> None:
    slides = [write_slide(tmp_path / f"{name}.tif", width=260, height=130) for name in "ab"]
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "fail").touch()
    network = f"{tmp_path / 'net.py'}:Net"
    command = ("batch", *slides, "-o", tmp_path / "out", "--network", network, *SMALL, "--device", "cpu")
    first = kin(*command)
    assert first.code == 1, first.err
    assert outcome(tmp_path / "out") == {"a.tif": "failed", "b.tif": "done"}
    assert rows(tmp_path / "out")["a.tif"]["reason"].startswith("cpu failed: CUDA error: unspecified launch failure (")
    assert "Traceback" not in first.err
    again = kin(*command, "--skip-existing")
    assert outcome(tmp_path / "out") == {"a.tif": "done", "b.tif": "skipped"}, again.err


def test_shards_do_all_slides_between_them(tmp_path: Path, fake: type[FakeChild]) -> None:
    for index in (1, 2, 3):
        run_batch(fake_batch(tmp_path, 7, Shard(index, 3)), Watcher())
    done = [name for index in (1, 2, 3) for name in outcome(tmp_path, f"status-{index}-of-3")]
    assert sorted(done) == [f"{number}.svs" for number in range(7)]
    result = kin("batch", "absent", "-o", tmp_path, "--shard", "auto/3")
    assert result.code == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_signals_stop_the_child_too(tmp_path: Path, tiny_generator: Path, number: signal.Signals, code: int) -> None:
    slide = write_slide(tmp_path / "a.tif", width=2000, height=2000)
    command = ["batch", str(slide), "-o", str(tmp_path), "-m", str(tiny_generator), *SMALL]
    process = subprocess.Popen([sys.executable, "-m", "kin_cli", *command], stderr=subprocess.PIPE, text=True)
    work = tmp_path / "a.kin.ome.tif.kin-work"
    claim, table = work / "claim-0", work / "table-0.dat"
    while not (table.exists() and table.stat().st_size) and process.poll() is None:
        time.sleep(0.01)
    child = json.loads(claim.read_text())["pid"]
    assert child != process.pid
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    deadline = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not claim.exists(), "the child gave up its claim"
    assert rows(tmp_path)["a.tif"]["status"] == ("stopped" if code > 0 else "running")


def test_nothing_is_written_outside_the_output_folder(tmp_path: Path, tiny_generator: Path) -> None:
    slide = write_slide(tmp_path / "a.tif", width=130, height=130)
    home, out = tmp_path / "home", tmp_path / "out"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    places = {"HOME": str(home), "TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "kin_cli", "batch", slide, "-o", out, "-m", tiny_generator, *SMALL, "--report"]
    done = subprocess.run(list(map(str, command)), env=kept | places, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "out"]


def test_a_second_ctrl_c_takes_the_child_along(tmp_path: Path, tiny_generator: Path) -> None:
    slide = write_slide(tmp_path / "a.tif", width=1300, height=1300)
    arguments = ("batch", slide, "-o", tmp_path, "-m", tiny_generator, *SMALL)
    command = [sys.executable, "-m", "kin_cli", *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    work = tmp_path / "a.kin.ome.tif.kin-work"
    table = work / "table-0.dat"
    while not (table.exists() and table.stat().st_size) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode in (130, -signal.SIGINT), err
    assert "Traceback" not in err
    again = kin(*arguments)
    assert again.code == 0, again.err
    assert kin("check", tmp_path / "a.kin.ome.tif").code == 0


@pytest.mark.slow
def test_memory_and_files_do_not_grow_with_the_number_of_slides(tmp_path: Path, tiny_generator: Path) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    for number in range(200):
        write_slide(slides / f"{number:03d}.tif", width=300, height=260, seed=number)
    resident: list[tuple[int, int]] = []
    handles: list[tuple[int, int]] = []

    class Counting(ChildProcess):
        def translate(self, settings: Settings, progress: Any, following: Settings | None = None) -> dict[str, Any]:
            record = super().translate(settings, progress, following)
            assert self._child is not None
            pids = (os.getpid(), self._child.process.pid)
            resident.append(tuple(rss_bytes(pid) for pid in pids))
            handles.append(tuple(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids))
            return record

    tasks = [SlideTask(path, tmp_path / f"{path.stem}.ome.tif") for path in sorted(slides.iterdir())]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_run, "ChildProcess", Counting)
        run_batch(
            SlideBatch(tasks, lambda task: settings(task.slide, tiny_generator, task.output), tmp_path), Watcher()
        )
    assert len(resident) == 200
    for process in (0, 1):
        # the next slide may be open already, or not yet
        early, late = slice(9, 60), slice(150, 200)
        assert max(each[process] for each in resident[late]) <= 1.1 * max(each[process] for each in resident[early])
        assert max(each[process] for each in handles[late]) <= max(each[process] for each in handles[early])


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_shards_of_one_batch_agree(tmp_path: Path) -> None:
    tasks = [SlideTask(Path(f"{name}.svs"), OUT / f"{name}.tif") for name in "abc"]
    for index in (1, 2, 1):
        agree_on_slides(tmp_path, tasks, Shard(index, 2))
    with pytest.raises(UsageError, match="begun in 2 shards, not 1") as caught:
        agree_on_slides(tmp_path, tasks, Shard(1, 1))
    assert "slides.json" in str(caught.value.hint)
    with pytest.raises(UsageError, match=r"not those that this batch was begun with, such as c\.svs"):
        agree_on_slides(tmp_path, tasks[:2], Shard(1, 2))
    with pytest.raises(UsageError, match="their order is another"):
        agree_on_slides(tmp_path, tasks[::-1], Shard(1, 2))
    (tmp_path / "slides.json").write_text('{"shards": 2')
    with pytest.raises(OutputError, match="is damaged"):
        agree_on_slides(tmp_path, tasks, Shard(1, 2))


def test_the_status_is_whole_in_both_files(tmp_path: Path) -> None:
    tasks = [SlideTask(Path("a, \udcff.svs"), OUT / "a.tif"), SlideTask(Path("b.svs"), OUT / "b.tif")]
    batch = SlideBatch(tasks, lambda task: settings(task.slide, Path("m.pth"), task.output), tmp_path)
    status = BatchStatus(tmp_path, "status", batch, tasks)
    status.slides[0].status, status.slides[0].reason = "failed", 'it said "no",\nand died'
    status.save()
    csv, summary = ((tmp_path / f"status.{kind}").read_bytes() for kind in ("csv", "json"))
    assert csv.startswith(b"slide,output,status,reason,seconds,width,height,mpp,patches,tiles,unreadable_tiles")
    assert b'"a, \xff.svs"' in csv
    assert json.loads(summary.decode(errors="surrogateescape"))["counts"] == {"failed": 1, "pending": 1}


def test_a_record_makes_a_status() -> None:
    plan = {"size": [10, 20], "mpp": 0.5, "patches_with_tissue": 3, "tiles": 4}
    record = {"plan": plan, "unreadable": {"tiles": 0, "patches": 0}, "output_bytes": 5, "peak_rss_bytes": 6}
    row = SlideStatus("a.svs", "a.tif")
    row.take(record)
    assert (row.status, row.width, row.height, row.patches) == ("done", 10, 20, 3)
    row.take({**record, "skipped": True})
    assert row.status == "skipped"
    row.take({**record, "unreadable": {"tiles": 1, "patches": 0}})
    assert (row.status, row.unreadable_tiles) == ("filled", 1)
