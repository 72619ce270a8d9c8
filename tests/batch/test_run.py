"""A batch over good and bad slides, in its real child process: nothing that a slide does stops the others."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest

from kin_cli.batch import run as batch_run
from kin_cli.batch.child import ChildProcess
from kin_cli.batch.jobs import SlideTask
from kin_cli.batch.run import SlideBatch, run_batch
from kin_cli.batch.shard import Shard
from kin_cli.errors import InputError, KinError, Stopped
from kin_cli.settings import OutputSettings, Settings, SourceSettings
from tests.helpers.batch_slides import Watcher, break_tile, digest, kin, write_slide

SMALL = ("--patch-size", "128", "--tissue", "none", "-j", "2")


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


def settings(slide: Path, model: Path, output: Path) -> Settings:
    return Settings(SourceSettings(slide, tissue="none"), model, OutputSettings(output))


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


class FakeWorker:
    """Does what the table says to each slide, in this process."""

    outcomes: ClassVar[dict[str, Any]] = {}
    closed: ClassVar[int] = 0

    def start(self) -> None:
        pass

    def translate(self, settings: Settings, progress: object) -> dict[str, Any]:
        outcome = self.outcomes.get(settings.source.slide.name)
        if isinstance(outcome, BaseException):
            raise outcome
        plan = {"size": [1, 1], "mpp": None, "patches_with_tissue": 1, "tiles": 1}
        record = {"plan": plan, "unreadable": {"tiles": 0, "patches": 0}, "output_bytes": 1, "peak_rss_bytes": 1}
        return record | (outcome or {})

    def close(self) -> None:
        type(self).closed += 1


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeWorker]:
    monkeypatch.setattr(batch_run, "Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "outcomes", {})
    return FakeWorker


def fake_batch(tmp_path: Path, count: int, shard: Shard | None = None) -> SlideBatch:
    jobs = [SlideTask(Path(f"{number}.svs"), tmp_path / f"{number}.tif") for number in range(count)]
    return SlideBatch(jobs, lambda job: settings(job.slide, Path("m.pth"), job.output), tmp_path, shard)


def test_a_stop_is_written_down_and_passed_on(tmp_path: Path, fake: type[FakeWorker]) -> None:
    fake.outcomes = {"1.svs": InputError("1.svs: is odd", "mend it"), "2.svs": Stopped("stopped", exit_code=75)}
    with pytest.raises(Stopped) as caught:
        run_batch(fake_batch(tmp_path, 4), Watcher())
    assert caught.value.exit_code == 75
    assert outcome(tmp_path) == {"0.svs": "done", "1.svs": "failed", "2.svs": "stopped", "3.svs": "pending"}
    assert rows(tmp_path)["1.svs"]["reason"] == "is odd (mend it)"
    assert fake.closed


def test_parts_do_all_slides_between_them(tmp_path: Path, fake: type[FakeWorker]) -> None:
    for index in (1, 2, 3):
        run_batch(fake_batch(tmp_path, 7, Shard(index, 3)), Watcher())
    done = [name for index in (1, 2, 3) for name in outcome(tmp_path, f"status-{index}-of-3")]
    assert sorted(done) == [f"{number}.svs" for number in range(7)]
    result = kin("batch", "absent", "-o", tmp_path, "--shard", "auto/3")
    assert result.code == 2


def test_bad_requests_are_refused_before_any_work(tmp_path: Path, tiny_generator: Path) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    write_slide(slides / "a.tif", width=130, height=130)
    out = ("-o", tmp_path / "out", "-m", tiny_generator)
    write_slide(slides / "a.tiff", width=130, height=130)
    listed = tmp_path / "slides.csv"
    listed.write_text("wsi,model\nslides/a.tif,absent.pth\n")
    for command, words in {
        ("batch", *out): "no slide was given",
        ("batch", slides, *out): "would both be written to",
        ("batch", slides, *out, "--ext", "ndpi"): "no slide found",
        ("batch", slides / "a.tif", *out, "--patch-size", "30"): "patch size 30",
        ("batch", slides / "a.tif", "-o", tmp_path / "out", "-m", "absent.pth"): "absent.pth: no such file",
        ("batch", "--manifest", listed, *out): "absent.pth: no such file",
        ("batch", slides / "a.tif", "--manifest", listed, *out): "at most one folder",
    }.items():
        result = kin(*command)
        assert (result.code, len(result.err.strip().splitlines())) == (2, 1), result.err
        assert words in result.err
    assert not (tmp_path / "out").exists()
    shown = kin("batch", slides / "a.tif", *out, "--dry-run")
    assert shown.out.strip() == f"{slides / 'a.tif'} → {tmp_path / 'out' / 'a.kin.ome.tif'}"
    assert not (tmp_path / "out").exists()


def test_the_script_for_a_folder_becomes_kin(tmp_path: Path) -> None:
    stub = tmp_path / "kin"
    stub.write_text("#!/bin/sh\nprintf '%s\\n' $$ \"$@\"\nexit 75\n")
    stub.chmod(0o755)
    script = Path(__file__).resolve().parents[2] / "scripts" / "translate_folder.sh"
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = subprocess.Popen(
        [script, "my slides", "out", "--seamless"], env=environment, stdout=subprocess.PIPE, text=True
    )
    shown, _ = process.communicate()
    wanted = [str(process.pid), "batch", "my slides", "--recursive", "-o", "out", "--skip-existing", "--seamless"]
    assert shown.splitlines() == wanted, "signals to the script must reach kin"
    assert process.returncode == 75
    assert subprocess.run([script, "my slides"], capture_output=True, check=False).returncode == 2


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
        def translate(self, settings: Settings, progress: Any) -> dict[str, Any]:
            record = super().translate(settings, progress)
            assert self._child is not None
            pids = (os.getpid(), self._child.process.pid)
            resident.append(tuple(rss_bytes(pid) for pid in pids))
            handles.append(tuple(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids))
            return record

    jobs = [SlideTask(path, tmp_path / f"{path.stem}.ome.tif") for path in sorted(slides.iterdir())]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_run, "Worker", Counting)
        run_batch(SlideBatch(jobs, lambda job: settings(job.slide, tiny_generator, job.output), tmp_path), Watcher())
    assert len(resident) == 200
    for process in (0, 1):
        assert resident[-1][process] <= 1.1 * resident[9][process]
        assert handles[-1][process] == handles[9][process]


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
