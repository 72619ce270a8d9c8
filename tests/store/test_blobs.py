from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kin_cli.errors import OutputError
from kin_cli.store.blobs import BlobStore


def payload(key: int) -> bytes:
    return random.Random(key).randbytes(key % 97)


def filled(folder: Path, keys: range, *, shard: str = "0", capacity: int = 2000) -> None:
    with BlobStore(folder, "tiles", shard=shard, capacity=capacity) as store:
        for key in keys:
            store.put(key, payload(key))


def test_what_was_put_comes_back_before_and_after_reopening(tmp_path: Path) -> None:
    with BlobStore(tmp_path, "tiles", capacity=1000) as store:
        for key in range(0, 1000, 3):
            store.put(key, payload(key))
            assert store.get(key) == payload(key)
    with BlobStore(tmp_path, "tiles", capacity=1000, read_only=True) as store:
        assert len(store) == 334
        assert list(store.missing(range(10))) == [1, 2, 4, 5, 7, 8]
        assert all(store.get(key) == payload(key) and store.size(key) == key % 97 for key in range(0, 1000, 3))
        with pytest.raises(KeyError):
            store.get(1)


def test_a_key_is_written_once(tmp_path: Path) -> None:
    with BlobStore(tmp_path, "tiles", capacity=4) as store:
        store.put(2, b"first")
        store.put(2, b"second")
        assert store.get(2) == b"first"
    assert (tmp_path / "tiles-0.dat").read_bytes() == b"first"


def test_many_threads_put_and_get(tmp_path: Path) -> None:
    with BlobStore(tmp_path, "tiles", capacity=2000) as store:

        def work(start: int) -> None:
            for key in range(start, 2000, 4):
                store.put(key, payload(key))
                assert store.get(key) == payload(key)

        threads = [threading.Thread(target=work, args=(start,)) for start in (0, 1, 2, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(store) == 1500
    with BlobStore(tmp_path, "tiles", capacity=2000) as store:
        assert all(store.get(key) == payload(key) for key in range(2000) if key % 4 != 3)


def test_shards_are_seen_together_and_refreshed(tmp_path: Path) -> None:
    filled(tmp_path, range(10), shard="0")
    with (
        BlobStore(tmp_path, "tiles", shard="1-of-2", capacity=2000) as writer,
        BlobStore(tmp_path, "tiles", capacity=2000, read_only=True) as reader,
    ):
        assert 5 in writer
        writer.put(5, b"not again")
        writer.put(11, b"new")
        reader.refresh()
        assert 11 not in reader
        writer.commit()
        reader.refresh()
        assert reader.get(11) == b"new"
        filled(tmp_path, range(20, 30), shard="late")
        reader.refresh()
        assert (len(reader), reader.get(25)) == (21, payload(25))
        with pytest.raises(ValueError, match="read only"):
            reader.put(0, b"")


def test_a_torn_record_of_another_shard_waits_for_its_rest(tmp_path: Path) -> None:
    filled(tmp_path, range(5))
    journal = tmp_path / "tiles-0.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-10])
    with BlobStore(tmp_path, "tiles", capacity=2000, read_only=True) as reader:
        assert len(reader) == 4
        journal.write_bytes(whole)
        reader.refresh()
        assert len(reader) == 5
    assert journal.read_bytes() == whole


@pytest.mark.parametrize("seed", range(20))
def test_any_cut_or_flip_leaves_a_sound_beginning(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    filled(tmp_path, range(1, 60))
    for name in ("tiles-0.dat", "tiles-0.journal"):
        path = tmp_path / name
        content = bytearray(path.read_bytes())
        del content[chance.randrange(len(content)) :]
        if content and name.endswith("journal") and chance.random() < 0.5:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
    with BlobStore(tmp_path, "tiles", capacity=2000) as store:
        kept = len(store)
        assert [key for key in range(1, 60) if key in store] == list(range(1, kept + 1))
        assert (tmp_path / "tiles-0.journal").stat().st_size == kept * 28
        assert (tmp_path / "tiles-0.dat").stat().st_size == sum(key % 97 for key in range(1, kept + 1))
    filled(tmp_path, range(1, 60))
    with BlobStore(tmp_path, "tiles", capacity=2000, read_only=True) as store:
        assert all(store.get(key) == payload(key) for key in range(1, 60))


def test_damaged_payload_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    filled(tmp_path, range(50, 60))
    path = tmp_path / "tiles-0.dat"
    content = bytearray(path.read_bytes())
    content[-1] ^= 4
    path.write_bytes(content)
    with BlobStore(tmp_path, "tiles", capacity=2000) as store:
        assert store.get(58) == payload(58)
        with pytest.raises(OutputError, match=r"tiles-0\.dat: bytes \d+ to \d+ are damaged"):
            store.get(59)


def test_a_smaller_store_refuses_the_journal_of_a_larger(tmp_path: Path) -> None:
    filled(tmp_path, range(90, 100))
    before = (tmp_path / "tiles-0.journal").read_bytes()
    with pytest.raises(OutputError, match="belongs to another image"):
        BlobStore(tmp_path, "tiles", capacity=95)
    assert (tmp_path / "tiles-0.journal").read_bytes() == before


def test_a_shard_has_one_writer(tmp_path: Path) -> None:
    with BlobStore(tmp_path, "tiles", capacity=5):
        with pytest.raises(OutputError, match="another process is writing"):
            BlobStore(tmp_path, "tiles", capacity=5)
        BlobStore(tmp_path, "tiles", capacity=5, shard="1").close()
    BlobStore(tmp_path, "tiles", capacity=5).close()


def test_commits_by_itself_every_256_puts(tmp_path: Path) -> None:
    with BlobStore(tmp_path, "tiles", capacity=2000) as store:
        for key in range(255):
            store.put(key, b"x")
        assert (tmp_path / "tiles-0.journal").stat().st_size == 0
        store.put(255, b"x")
        assert (tmp_path / "tiles-0.journal").stat().st_size == 256 * 28


def test_commits_by_itself_when_the_oldest_put_is_5_s_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("kin_cli.store.blobs.time.monotonic", lambda: clock[0])
    with BlobStore(tmp_path, "tiles", capacity=2000) as store:
        store.put(0, b"x")
        clock[0] += 4.0
        store.put(1, b"x")
        assert (tmp_path / "tiles-0.journal").stat().st_size == 0
        clock[0] += 2.0
        store.put(2, b"x")
        assert (tmp_path / "tiles-0.journal").stat().st_size == 3 * 28


def test_payloads_are_on_the_disk_before_their_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    real_write, real_sync = os.write, os.fsync

    def name(fd: int) -> str:
        return {path.stat().st_ino: path.suffix for path in tmp_path.iterdir()}[os.fstat(fd).st_ino]

    def write(fd: int, content: bytes) -> int:
        events.append(f"write{name(fd)}")
        return real_write(fd, content)

    def sync(fd: int) -> None:
        events.append(f"sync{name(fd)}")
        real_sync(fd)

    with BlobStore(tmp_path, "tiles", capacity=2000) as store:
        monkeypatch.setattr(os, "write", write)
        monkeypatch.setattr("kin_cli.store.blobs.sync_data", sync)
        store.put(0, b"x")
        store.commit()
    assert events == ["write.dat", "sync.dat", "write.journal", "sync.journal"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_full_disk_in_the_middle_of_a_payload_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real, room = os.write, [30]

    def write(fd: int, content: bytes) -> int:
        if room[0] == 0:
            raise OSError(number, os.strerror(number))
        count = real(fd, bytes(content)[: room[0]])  # short writes on the way
        room[0] -= count
        return count

    with BlobStore(tmp_path, "tiles", capacity=2000) as store:
        monkeypatch.setattr(os, "write", write)
        store.put(20, payload(20))
        with pytest.raises(OutputError, match=r"tiles-0\.dat: ") as caught:
            store.put(21, payload(21))
        assert "continues where it stopped" in str(caught.value)
        with pytest.raises(OutputError, match=r"tiles-0\.journal: "):
            store.commit()
        monkeypatch.setattr(os, "write", real)  # space was freed: the very store goes on
        store.put(21, payload(21))
    filled(tmp_path, range(20, 30))
    with BlobStore(tmp_path, "tiles", capacity=2000, read_only=True) as store:
        assert all(store.get(key) == payload(key) for key in range(20, 30))


def test_the_first_failure_is_the_one_that_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "full")

    def failing() -> None:
        with BlobStore(tmp_path, "tiles", capacity=2000) as store:
            store.put(1, b"x")
            monkeypatch.setattr(os, "write", full)
            raise KeyError("first")

    with pytest.raises(KeyError, match="first"):
        failing()


def test_a_limit_on_the_file_size_is_told(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from kin_cli.store.blobs import BlobStore\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "with BlobStore(Path(sys.argv[1]), 'tiles', capacity=100) as store:\n"
        "    for key in range(100): store.put(key, bytes([key]) * 300)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "larger than this disk or `ulimit -f` allows" in run.stderr
    with BlobStore(tmp_path, "tiles", capacity=100) as store:
        assert len(store) == 16
        assert store.get(15) == bytes([15]) * 300


def test_a_folder_that_is_not_there_or_not_writable(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no such file or folder"):
        BlobStore(tmp_path / "nowhere", "tiles", capacity=5)


@pytest.mark.parametrize(("name", "shard"), [("a-b", "0"), ("a/b", "0"), ("", "0"), ("a", ""), ("a", "../x")])
def test_names_that_would_mix_up_files_are_refused(tmp_path: Path, name: str, shard: str) -> None:
    with pytest.raises(ValueError, match="not a name"):
        BlobStore(tmp_path, name, shard=shard, capacity=5)
