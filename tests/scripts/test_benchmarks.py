"""The scripts beside the package that run benchmarks and show their results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


def test_the_results_become_tables_and_a_picture(measured: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    (tmp_path / "one.json").write_text(json.dumps(measured))
    full = {**measured, "settings": {**measured["settings"], "quick": False}}
    (tmp_path / "two.json").write_text(json.dumps(full))
    (tmp_path / "failed.json").write_text("")
    done = subprocess.run([sys.executable, SCRIPTS / "report_bench.py", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [row[1].strip() for row in rows] == ["run", "one", "two"]
    assert len({len(row) for row in rows}) == 1
    assert "failed.json: not JSON" in done.stderr
    assert Image.open(tmp_path / "stages.png").size[0] > 500


@pytest.mark.slow
def test_the_script_for_a_gpu_in_rehearsal(tmp_path: Path) -> None:
    small = {
        "WIDTH": "2",
        "BLOCKS": "1",
        "SIZE": "1024",
        "SMALL": "512",
        "SIDES": "3072,4096",
        "BATCHES": "1",
        "BUDGET": "3600",
    }
    variables = {"DEVICE": "cpu", "PRECISION": "fp32", "RESULTS": str(tmp_path), "PYTHON": sys.executable, **small}
    done = subprocess.run([SCRIPTS / "gpu.sh"], capture_output=True, text=True, env=os.environ | variables)
    (folder,) = tmp_path.iterdir()
    assert done.returncode == 0, (folder / "summary.txt").read_text() + done.stderr
    names = {file.name for file in folder.iterdir()}
    assert {"machine.txt", "summary.txt", "runs.json", "tests.txt", "profile.txt", "memory.txt", "tables.txt"} <= names
    assert len(names) <= 8
    assert {"first", "cut", "cyclegan"} <= json.loads((folder / "runs.json").read_text()).keys()
    assert "ms per patch" in done.stdout
