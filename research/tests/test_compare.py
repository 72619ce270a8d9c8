"""The script that trains all three frameworks and tabulates them, in a tiny setting."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[1] / "compare_frameworks.sh"


@pytest.mark.slow
def test_the_comparison_of_frameworks_has_a_row_for_each_with_each_method(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("he", "ihc"):
        coarse = rng.integers(60, 250, (32, 32, 3), np.uint8)
        Image.fromarray(coarse).resize((192, 192), Image.Resampling.BILINEAR).save(tmp_path / f"{name}.png")
    command = [str(SCRIPT), str(tmp_path / "he.png"), str(tmp_path / "ihc.png"), str(tmp_path / "out"), "0,0,192,192"]
    command += ["--steps", "2", "--width", "2", "--blocks", "1", "--disc-width", "2", "--disc-layers", "1"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PATCH": "64", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out" / "table.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [(row["framework"], row["method"]) for row in rows] == [
        (framework, method) for framework in ("cyclegan", "cut", "lsesim") for method in ("in", "kin", "seamless")
    ]
    assert all(float(row["seams excess"]) >= 0 and 0 < float(row["ssim"]) < 1 for row in rows)
