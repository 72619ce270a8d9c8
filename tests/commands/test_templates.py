"""kin templates: the job scripts as they are in examples/, which are tested with a real Slurm."""

from __future__ import annotations

import os
from pathlib import Path

from tests.helpers.processes import assert_refused, kin

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_the_scripts_are_written_ready_to_run_and_never_over_others(tmp_path: Path) -> None:
    run = kin("templates", "slurm", "-o", tmp_path / "jobs")
    assert run.code == 0, run.err
    written = [Path(line) for line in run.out.splitlines()]
    assert {path.name for path in written} == {path.name for path in (EXAMPLES / "slurm").iterdir()}
    for path in written:
        assert path.read_bytes() == (EXAMPLES / "slurm" / path.name).read_bytes()
        assert os.access(path, os.X_OK)
    written[0].write_text("mine")
    assert_refused(kin("templates", "slurm", "-o", tmp_path / "jobs"), "exists already", code=1)
    assert written[0].read_text() == "mine"
    assert_refused(kin("templates", "slurm", "-o", tmp_path / "a" / "b"), "no such folder", code=1)
    assert_refused(kin("templates", "pbs"), "pbs", code=2)
