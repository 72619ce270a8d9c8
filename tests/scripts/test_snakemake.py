"""The Snakefile of the examples, run by Snakemake if it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.slides import write_slide

SNAKEFILE = Path(__file__).resolve().parents[2] / "examples" / "snakemake" / "Snakefile"


@pytest.mark.skipif(shutil.which("snakemake") is None, reason="snakemake is not on the PATH: pipx install snakemake")
def test_every_slide_is_translated_and_nothing_is_done_twice(tmp_path: Path, tiny_generator: Path) -> None:
    (tmp_path / "slides").mkdir()
    for name in ("a", "b c"):
        write_slide(tmp_path / "slides" / f"{name}.tif", width=256, height=192)
    command = [
        *("snakemake", "--snakefile", SNAKEFILE, "--directory", tmp_path, "--cores", "2", "--config"),
        *("slides=slides", "out=out", f"model={tiny_generator}", "options=--patch-size 64 --tissue none"),
    ]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for again in (False, True):
        done = subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        if again:
            assert "Nothing to be done" in done.stderr
    assert {file.name for file in (tmp_path / "out").glob("*.tif")} == {"a.kin.ome.tif", "b c.kin.ome.tif"}
