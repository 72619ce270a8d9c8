from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kin_cli.errors import OutputError
from kin_cli.store import files
from kin_cli.store.work import WorkFolder

FINGERPRINT = {"kernel": "gaussian:7", "patch": 512, "mpp": 0.25, "region": (1, 2, 3, 4), "icc": None}


def test_the_same_command_continues(tmp_path: Path) -> None:
    output = tmp_path / "slide.ome.tif"
    with WorkFolder.open(output, FINGERPRINT) as work:
        assert work.folder == tmp_path / "slide.ome.tif.kin-work"
        work.write_state("passes", {"measured": 17})
        work.path("tiles-0.dat").write_bytes(b"tiles")
    with WorkFolder.open(output, FINGERPRINT) as work:
        assert work.read_state("passes") == {"measured": 17}
        assert work.read_state("nothing") is None
        assert work.path("tiles-0.dat").read_bytes() == b"tiles"
        work.remove()
    assert list(tmp_path.iterdir()) == []


def test_another_command_is_told_what_differs(tmp_path: Path) -> None:
    output = tmp_path / "slide.ome.tif"
    with WorkFolder.open(output, FINGERPRINT) as work:
        work.path("tiles-0.dat").write_bytes(b"tiles")
    other = {**FINGERPRINT, "kernel": "constant:3", "halo": 96}
    del other["mpp"]
    with pytest.raises(OutputError) as caught:
        WorkFolder.open(output, other)
    assert 'halo: (not set) → 96; kernel: "gaussian:7" → "constant:3"; mpp: 0.25 → (not set)' in caught.value.message
    assert caught.value.hint == "--overwrite starts afresh"
    with WorkFolder.open(output, other, overwrite=True) as work:
        assert not work.path("tiles-0.dat").exists()
    with pytest.raises(OutputError, match="other settings"):
        WorkFolder.open(output, FINGERPRINT)


def test_tiles_without_a_fingerprint_are_not_taken_for_ours(tmp_path: Path) -> None:
    folder = tmp_path / "a.tif.kin-work"
    folder.mkdir()
    (folder / ".fingerprint.json.1.tmp").write_bytes(b"{")  # a crash while it was made: harmless
    WorkFolder.open(tmp_path / "a.tif", FINGERPRINT).close()
    (folder / "fingerprint.json").unlink()
    (folder / "tiles-0.dat").write_bytes(b"whose?")
    with pytest.raises(OutputError, match=r"no fingerprint\.json"):
        WorkFolder.open(tmp_path / "a.tif", FINGERPRINT)
    (folder / "fingerprint.json").write_bytes(b"")
    with pytest.raises(OutputError, match="damaged"):
        WorkFolder.open(tmp_path / "a.tif", FINGERPRINT)
    WorkFolder.open(tmp_path / "a.tif", FINGERPRINT, overwrite=True).close()


def test_a_live_claim_is_respected_even_by_overwrite(tmp_path: Path) -> None:
    output = tmp_path / "a.tif"
    with WorkFolder.open(output, FINGERPRINT):
        for overwrite in (False, True):
            with pytest.raises(OutputError, match=rf"a\.tif: is being written by pid {os.getpid()} on"):
                WorkFolder.open(output, FINGERPRINT, overwrite=overwrite)
    WorkFolder.open(output, FINGERPRINT).close()


def test_shards_share_a_folder_but_overwrite_waits_for_all(tmp_path: Path) -> None:
    output = tmp_path / "a.tif"
    with (
        WorkFolder.open(output, FINGERPRINT, shard="1-of-2"),
        WorkFolder.open(output, FINGERPRINT, shard="2-of-2") as second,
    ):
        with pytest.raises(OutputError, match="other settings"):
            WorkFolder.open(output, {}, shard="3")
        with pytest.raises(OutputError, match="is being written"):
            WorkFolder.open(output, {}, shard="3", overwrite=True)
        with pytest.raises(OutputError, match="is being written"):
            second.remove()
        assert second.path("fingerprint.json").exists()


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


def test_a_kill_while_removing_leaves_a_folder_that_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "a.tif"
    with WorkFolder.open(output, FINGERPRINT) as work:
        for name in ("tiles-0.dat", "tiles-0.journal", "z.json"):
            work.path(name).write_bytes(b"x")
        real, calls = Path.unlink, [0]

        def unlink(path: Path, missing_ok: bool = False) -> None:
            calls[0] += 1
            if calls[0] == 3:
                raise KeyboardInterrupt
            real(path, missing_ok)

        monkeypatch.setattr(Path, "unlink", unlink)
        with pytest.raises(KeyboardInterrupt):
            work.remove()
        monkeypatch.undo()
    with WorkFolder.open(output, FINGERPRINT) as work:
        assert [path.name for path in work.folder.glob("t*")] == []
        work.remove()
    assert not work.folder.exists()


def test_output_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nowhere: no such folder"):
        WorkFolder.open(tmp_path / "nowhere" / "a.tif", FINGERPRINT)
    with pytest.raises(OutputError, match="is a folder, not a file"):
        WorkFolder.open(tmp_path, FINGERPRINT)
    (tmp_path / "b.tif.kin-work").write_bytes(b"")
    with pytest.raises(OutputError, match=r"b\.tif\.kin-work"):
        WorkFolder.open(tmp_path / "b.tif", FINGERPRINT)


@pytest.mark.parametrize(("number", "cause"), [(errno.EACCES, "no permission"), (errno.EROFS, "is read-only")])
def test_an_unwritable_output_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, cause: str) -> None:
    def refuse(*args: object, **options: object) -> None:  # tests may run as root, who may write anywhere
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(OutputError, match=rf"a\.tif\.kin-work: .*{cause}"):
        WorkFolder.open(tmp_path / "a.tif", FINGERPRINT)


def test_permission_errors_name_the_file_and_say_what_to_do(tmp_path: Path) -> None:
    error = files.output_error(tmp_path / "a.tif", PermissionError(13, "Permission denied"))
    assert str(error) == f"{tmp_path}/a.tif: no permission (choose an output folder that you may write to)"


@pytest.mark.parametrize("hard_links", [True, False])
def test_create_atomic_never_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool) -> None:
    if not hard_links:

        def refuse(path: Path, target: Path) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(Path, "hardlink_to", refuse)
    assert files.create_atomic(tmp_path / "a", b"one")
    assert not files.create_atomic(tmp_path / "a", b"two")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"one"}


def test_a_failed_write_atomic_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_atomic(tmp_path / "a", b"old")

    def full(fd: int, content: bytes) -> int:
        raise OSError(28, "full")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="full"):
        files.write_atomic(tmp_path / "a", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}
