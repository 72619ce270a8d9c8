"""The scripts: they become kin, pass on signals, and find nothing when they torment it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from kin_cli.batch.run import INCOMPLETE, State


def test_the_script_for_a_folder_becomes_kin(tmp_path: Path) -> None:
    stub = tmp_path / "kin"
    stub.write_text("#!/bin/sh\nprintf '%s\\n' $$ \"$@\"\nexit 75\n")
    stub.chmod(0o755)
    script = Path(__file__).resolve().parents[2] / "examples" / "slurm" / "translate_folder.sh"
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = subprocess.Popen(
        [script, "my slides", "out", "--seamless"], env=environment, stdout=subprocess.PIPE, text=True
    )
    shown, _ = process.communicate()
    wanted = [str(process.pid), "batch", "my slides", "--recursive", "-o", "out", "--skip-existing", "--seamless"]
    assert shown.splitlines() == wanted, "signals to the script must reach kin"
    assert process.returncode == 75
    assert subprocess.run([script, "my slides"], capture_output=True, check=False).returncode == 2


@pytest.mark.parametrize("state", get_args(State))
def test_merging_the_status_of_shards_knows_every_state(tmp_path: Path, state: State) -> None:
    folder = tmp_path / "kin-batch"
    folder.mkdir()
    (folder / "slides.json").write_text('{"shards": 1, "slides": [["a.svs", "a.tif"]]}')
    (folder / "status-1-of-1.csv").write_text(f"slide,output,status,reason\na.svs,a.tif,{state},why\n")
    script = Path(__file__).resolve().parents[2] / "examples" / "slurm" / "slurm_merge_status.sh"
    done = subprocess.run([script, tmp_path], capture_output=True, text=True, check=False)
    unfinished = state in ("pending", "running", "stopped")
    assert done.returncode == (75 if unfinished else int(state in INCOMPLETE)), done.stdout + done.stderr
    assert (f"{state}: a.svs: why" in done.stdout) == (state in INCOMPLETE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", ["torture.py --kills 8", "fuzz.py --inputs 60 --slides {data}", "fuzz.py --flips 40"]
)
def test_the_scripts_that_torment_find_nothing(shared_data: Path, script: str) -> None:
    name, *arguments = script.format(data=shared_data).split()
    command = [sys.executable, Path(__file__).resolve().parents[1] / "scripts" / name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 wrong" in done.stdout
