"""The job scripts on a real Slurm, which the fixture starts on this machine alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.shared import SHARED
from tests.helpers.slides import write_slide
from tests.helpers.translations import digest

pytestmark = pytest.mark.slurm


SCRIPTS = Path(__file__).resolve().parents[2] / "examples" / "slurm"


SMALL = ("--patch-size", "128", "--tissue", "none", "-j", "1")


RESOURCES = ("--cpus-per-task=1", "--mem=1500")


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """The environment for Slurm's commands, with this Python's ``kin`` in the path."""
    script = SHARED / "slurm_local.sh"
    if not script.exists() or os.geteuid() != 0:
        pytest.skip("a Slurm can be started here only by root, with the script slurm_local.sh beside this checkout")
    folder = tempfile.mkdtemp(prefix="kin-slurm-")  # pytest's folders are closed to the user of munge
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    local = {"SLURM_LOCAL_DIR": folder, "SLURM_LOCAL_PORT": str(20000 + os.getpid() % 10000)}
    environment = {**os.environ, **local, "PATH": path, "OMP_NUM_THREADS": "1"}
    started = subprocess.run([script, "start"], env=environment, capture_output=True, text=True, check=False)
    if started.returncode:
        pytest.skip(f"no Slurm can be started here: {started.stderr.strip().splitlines()[-1:]}")
    try:
        yield {**environment, "SLURM_CONF": f"{folder}/slurm.conf"}
    finally:
        subprocess.run([script, "stop"], env=environment, check=True, capture_output=True)
        shutil.rmtree(folder)


def command(slurm: dict[str, str], folder: Path, *words: object, code: int = 0) -> str:
    done = subprocess.run(list(map(str, words)), cwd=folder, env=slurm, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout.strip()


def wait_until(condition: Callable[[], object], what: str, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen in {seconds} s"
        time.sleep(0.2)


def is_over(slurm: dict[str, str], folder: Path, job: str) -> bool:
    return command(slurm, folder, "squeue", "-h", "-j", job) == ""


def exit_codes(slurm: dict[str, str], folder: Path, job: str) -> dict[str, tuple[str, str]]:
    """State and exit code of every task of an array, by its index."""
    found = {}
    for line in command(slurm, folder, "scontrol", "-o", "show", "job", job).splitlines():
        fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
        found[fields["ArrayTaskId"]] = (fields["JobState"], fields["ExitCode"], fields["Restarts"])
    return found


def kin_on_cluster(slurm: dict[str, str], folder: Path, *words: object) -> None:
    command(slurm, folder, sys.executable, "-m", "kin_cli", *words)


def test_an_array_over_slides_survives_a_requeue(slurm: dict[str, str], tmp_path: Path, tiny_generator: Path) -> None:
    slides, out = tmp_path / "slides", tmp_path / "out"
    slides.mkdir()
    for number, name in enumerate("abde"):
        write_slide(slides / f"{name}.tif", width=260, height=260, seed=number)
    (slides / "c.tif").write_bytes(b"no slide")
    large = write_slide(slides / "b.tif", width=1600, height=1600)  # the only one of shard 2 besides e
    options = ("-m", tiny_generator, *SMALL)
    submit = ("sbatch", "--parsable", *RESOURCES, "--array=1-3", SCRIPTS / "slurm_array.sbatch", slides, out, *options)
    shards = {**slurm, "KIN_SHARDS": "3"}
    job = command(shards, tmp_path, *submit)
    table = out / "b.kin.ome.tif.kin-work" / "table-0.dat"
    wait_until(lambda: table.exists() and table.stat().st_size, "the work on b.tif")
    command(shards, tmp_path, "scontrol", "requeue", f"{job}_2")
    wait_until(lambda: is_over(slurm, tmp_path, job), "the end of the array")
    assert exit_codes(slurm, tmp_path, job) == {
        "1": ("COMPLETED", "0:0", "0"),
        "2": ("COMPLETED", "0:0", "1"),
        "3": ("FAILED", "1:0", "0"),
    }
    log = (tmp_path / f"kin-{job}_2.out").read_text()
    assert "stopped by SIGTERM (the same command continues where it stopped)" in log
    merged = command(slurm, tmp_path, SCRIPTS / "slurm_merge_status.sh", out, code=1)
    assert merged.startswith("4 done, 1 failed")
    assert f"failed: {slides / 'c.tif'}: not a slide" in merged
    # the interrupted slide is what an uninterrupted run makes
    kin_on_cluster(slurm, tmp_path, "translate", large, "-o", tmp_path / "b.kin.ome.tif", *options)
    assert digest(tmp_path / "b.kin.ome.tif") == digest(out / "b.kin.ome.tif")
    (out / "kin-batch" / "status-2-of-3.csv").unlink()
    again = command(slurm, tmp_path, SCRIPTS / "slurm_merge_status.sh", out, code=75)
    assert "sbatch --array=2" in again
    # a shard that is submitted again reports a task count of 1, and finds all of its slides done
    job = command(shards, tmp_path, *submit[:4], "--array=2", *submit[5:])
    wait_until(lambda: is_over(slurm, tmp_path, job), "the end of shard 2")
    assert exit_codes(slurm, tmp_path, job) == {"2": ("COMPLETED", "0:0", "0")}
    assert "2 skipped" in command(slurm, tmp_path, SCRIPTS / "slurm_merge_status.sh", out, code=1)
    # another number of shards is refused
    job = command({**slurm, "KIN_SHARDS": "4"}, tmp_path, *submit[:4], "--array=2", *submit[5:])
    wait_until(lambda: is_over(slurm, tmp_path, job), "the refusal")
    assert exit_codes(slurm, tmp_path, job) == {"2": ("FAILED", "2:0", "0")}


def test_the_chain_over_one_slide_equals_one_process(
    slurm: dict[str, str], tmp_path: Path, tiny_generator: Path
) -> None:
    slide = write_slide(tmp_path / "a slide.tif", width=600, height=1600)
    options = ("-m", tiny_generator, *SMALL)
    (tmp_path / "chain").mkdir()
    resources = {**slurm, "SBATCH_OPTIONS": " ".join(RESOURCES)}
    last = command(resources, tmp_path, SCRIPTS / "slurm_one_slide.sh", 3, slide, "chain/out.ome.tif", *options)
    kin_on_cluster(slurm, tmp_path, "translate", slide, "-o", "out.ome.tif", *options)
    wait_until(lambda: is_over(slurm, tmp_path, last), "the end of the chain")
    assert digest(tmp_path / "chain" / "out.ome.tif") == digest(tmp_path / "out.ome.tif")
    assert not (tmp_path / "chain" / "out.ome.tif.kin-work").exists()


@pytest.mark.slow  # the slide must take longer than the limit of a minute, on whatever machine
def test_the_time_limit_only_pauses_the_work(slurm: dict[str, str], tmp_path: Path, tiny_generator: Path) -> None:
    slides, out = tmp_path / "slides", tmp_path / "out"
    slides.mkdir()
    write_slide(slides / "a.tif", width=6000, height=6000)
    margin = {**slurm, "KIN_SHARDS": "1", "KIN_REQUEUE_SECONDS": "40"}  # of a limit of 60
    submit = (
        "sbatch",
        "--parsable",
        *RESOURCES,
        "--array=1-1",
        "--time=1",
        SCRIPTS / "slurm_array.sbatch",
        slides,
        out,
    )
    job = command(margin, tmp_path, *submit, "-m", tiny_generator, *SMALL)
    wait_until(lambda: is_over(slurm, tmp_path, job), "the end of the task", seconds=1500)
    state, code, restarts = exit_codes(slurm, tmp_path, job)["1"]
    assert (state, code) == ("COMPLETED", "0:0")
    assert restarts != "0"
