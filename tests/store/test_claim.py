"""Claims on a work folder: live, dead, stale, requeued, lost."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kin_cli.errors import OutputError
from kin_cli.store.work import WorkFolder

FINGERPRINT = {"kernel": "gaussian:7"}


def claim_of_another(output: Path, **fields: object) -> Path:
    with WorkFolder.open(output, FINGERPRINT) as work:
        claim = work.path("claim-0")
        content = {**json.loads(claim.read_text()), **fields}
    claim.write_text(json.dumps(content))
    return claim


def test_a_claim_dies_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, os, signal; from pathlib import Path; from kin_cli.store.work import WorkFolder\n"
        f"WorkFolder.open(Path(sys.argv[1]), {FINGERPRINT!r}); print(os.getpid(), flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a.tif")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    pid = int(child.stdout.readline())
    try:
        with pytest.raises(OutputError, match=f"is being written by pid {pid} on {socket.gethostname()}"):
            WorkFolder.open(tmp_path / "a.tif", FINGERPRINT)
    finally:
        child.kill()
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # dead, but not reaped: a zombie still answers to signals
    WorkFolder.open(tmp_path / "a.tif", FINGERPRINT).close()
    child.communicate()


def test_a_process_number_used_again_is_another_process(tmp_path: Path) -> None:
    claim_of_another(tmp_path / "a.tif", started="another-boot/1")
    WorkFolder.open(tmp_path / "a.tif", FINGERPRINT).close()


@pytest.mark.parametrize("content", [None, b""], ids=["elsewhere", "unreadable"])
def test_a_claim_that_cannot_be_judged_expires(tmp_path: Path, content: bytes | None) -> None:
    claim = claim_of_another(tmp_path / "a.tif", host="node17", pid=4711)
    if content is not None:
        claim.write_bytes(content)
    who = "pid 4711 on node17" if content is None else "an unknown process"
    with pytest.raises(OutputError, match=f"is being written by {who}"):
        WorkFolder.open(tmp_path / "a.tif", FINGERPRINT)
    os.utime(claim, (time.time() - 601, time.time() - 601))
    WorkFolder.open(tmp_path / "a.tif", FINGERPRINT).close()


def test_a_requeued_job_takes_over_from_itself_on_another_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = claim_of_another(tmp_path / "a.tif", host="node17", pid=4711)
    claim.write_text(json.dumps({**json.loads(claim.read_text()), "job": "812", "restarts": 1}))
    for job, restarts in (("813", "2"), ("812", "1"), ("812", ""), ("", "2")):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
        with pytest.raises(OutputError, match="is being written by pid 4711 on node17"):
            WorkFolder.open(tmp_path / "a.tif", FINGERPRINT)
    monkeypatch.setenv("SLURM_JOB_ID", "812")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    with WorkFolder.open(tmp_path / "a.tif", FINGERPRINT):
        assert json.loads(claim.read_text())["restarts"] == 2


def test_touch_renews_and_notices_a_lost_claim(tmp_path: Path) -> None:
    with WorkFolder.open(tmp_path / "a.tif", FINGERPRINT) as work:
        claim = work.path("claim-0")
        os.utime(claim, (1e9, 1e9))
        work.touch()
        assert claim.stat().st_mtime > time.time() - 60
        content = claim.read_bytes()
        claim.write_text(json.dumps({"host": "node17", "pid": 1, "started": ""}))
        with pytest.raises(OutputError, match="another process has taken over"):
            work.touch()
        work.close()
        assert claim.exists()
        claim.write_bytes(content)


def test_a_claim_is_renewed_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kin_cli.store.claim._BEAT_SECONDS", 0.005)
    with WorkFolder.open(tmp_path / "a.tif", FINGERPRINT) as work:
        claim = work.path("claim-0")
        os.utime(claim, (1e9, 1e9))
        for _ in range(2000):
            if claim.stat().st_mtime > 1e9:
                break
            time.sleep(0.01)
        assert claim.stat().st_mtime > time.time() - 60
    assert not claim.exists()
