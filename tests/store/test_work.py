"""The folder of unfinished work: continued by the same command, refused to any other."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kin_cli.errors import OutputError
from kin_cli.store.work import WorkFolder

FINGERPRINT = {"kernel": "gaussian:7", "patch": 512, "mpp": 0.25, "region": (1, 2, 3, 4), "icc": None}


def test_the_same_command_continues(tmp_path: Path) -> None:
    output = tmp_path / "slide.ome.tif"
    with WorkFolder.open(output, FINGERPRINT) as work:
        assert work.folder == tmp_path / "slide.ome.tif.kin-work"
        work.write_state("begun", {"measured": 17})
        work.path("tiles-0.dat").write_bytes(b"tiles")
    with WorkFolder.open(output, FINGERPRINT) as work:
        assert work.read_state("begun") == {"measured": 17}
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


def test_a_kill_while_removing_leaves_a_folder_that_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "a.tif"
    with WorkFolder.open(output, FINGERPRINT) as work:
        for name in ("tiles-0.dat", "tiles-0.journal", "zeros-0.dat"):
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
