"""Numbered payloads (encoded tiles, statistics) in append-only files that several jobs fill together.

Each writer, called a shard, appends payloads to ``<name>-<shard>.dat`` and, once they are on disk, one record per
payload to ``<name>-<shard>.journal``. No process writes the files of another shard, so shards on different machines
need no lock between them. A record has 28 bytes, little-endian: key (uint64), offset (uint64) and size (uint32) of the
payload in the data file, CRC-32 of the payload, CRC-32 of these four fields. After a crash everything up to the last
sound record is there, and what follows is cut off.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from kin_cli.errors import OutputError
from kin_cli.store.files import os_errors_as_output_errors, output_error, read_at, sync_data, sync_folder, write_at

_FIELDS = struct.Struct("<QQII")  # key, offset, size, CRC-32 of the payload
_CRC = struct.Struct("<I")  # CRC-32 of the fields
RECORD_BYTES = _FIELDS.size + _CRC.size
_OWN = 0  # index of this process's own shard in a store that is written
_COMMIT_PUTS = 256
_COMMIT_SECONDS = 5.0
_REPLAY_BYTES = RECORD_BYTES << 16  # read at once from a journal


class Record(NamedTuple):
    """Key of a payload, its offset and size in the data file, and its CRC-32."""

    key: int
    offset: int
    size: int
    crc: int

    def packed(self) -> bytes:
        """The record as 28 bytes: the fields and their own CRC-32."""
        fields = _FIELDS.pack(*self)
        return fields + _CRC.pack(zlib.crc32(fields))


def sound_records(journal: bytes, data_bytes: int) -> Iterator[Record]:
    """The records of ``journal`` in order, up to the first that is damaged or points beyond the data file.

    A record is appended only after its payload is on disk, so nothing behind a bad record can be trusted.
    """
    for start in range(0, len(journal) - RECORD_BYTES + 1, RECORD_BYTES):
        fields = journal[start : start + _FIELDS.size]
        (crc,) = _CRC.unpack_from(journal, start + _FIELDS.size)
        if zlib.crc32(fields) != crc:
            return
        record = Record(*_FIELDS.unpack(fields))
        if record.offset + record.size > data_bytes:
            return
        yield record


class _Shard:
    """The data file and the journal of one writer, and how far they have been read or written."""

    def __init__(self, folder: Path, stem: str, *, flags: int = os.O_RDONLY) -> None:
        self.data_path = folder / f"{stem}.dat"
        self.journal_path = folder / f"{stem}.journal"
        self.data_end = 0
        self.journal_end = 0
        mode = "rb" if flags == os.O_RDONLY else "rb+"
        flags |= os.O_NONBLOCK  # regular files know no waiting; a pipe in their place must not block, either
        with os_errors_as_output_errors(self.data_path):
            self.data = FileIO(os.open(self.data_path, flags, 0o666), mode)
        with os_errors_as_output_errors(self.journal_path):
            self.journal = FileIO(os.open(self.journal_path, flags, 0o666), mode)

    def lock(self) -> None:
        """Refuse a second writer; the lock ends with the process, however it ends."""
        try:
            fcntl.flock(self.journal.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"{self.journal_path}: another process is writing to it", "wait for it, or stop it"
            ) from error
        except OSError as error:
            # network file systems without locks: only the claim of the work folder protects them
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                raise output_error(self.journal_path, error) from error

    def new_records(self) -> Iterator[Record]:
        """The sound records that have not been read yet; advances ``journal_end`` and ``data_end`` with each."""
        more = True
        while more:
            raw = read_at(self.journal.fileno(), self.journal_end, _REPLAY_BYTES)
            until = self.journal_end + _REPLAY_BYTES
            for record in sound_records(raw, os.fstat(self.data.fileno()).st_size):
                self.journal_end += RECORD_BYTES
                self.data_end = max(self.data_end, record.offset + record.size)
                yield record
            more = self.journal_end == until

    def cut(self) -> None:
        """Cut off what a crash left behind the last sound record, in both files."""
        with os_errors_as_output_errors(self.data_path):
            os.ftruncate(self.data.fileno(), self.data_end)
        with os_errors_as_output_errors(self.journal_path):
            os.ftruncate(self.journal.fileno(), self.journal_end)

    def append(self, records: list[Record]) -> None:
        """Make the payloads written so far durable, then append ``records`` and make these durable, too."""
        with os_errors_as_output_errors(self.data_path):
            sync_data(self.data.fileno())
        with os_errors_as_output_errors(self.journal_path):
            write_at(self.journal.fileno(), self.journal_end, b"".join(record.packed() for record in records))
            sync_data(self.journal.fileno())
            self.journal_end += RECORD_BYTES * len(records)

    def close(self) -> None:
        self.journal.close()
        self.data.close()


class BlobStore:
    """Payloads under the keys 0 … ``capacity`` − 1, each written once. Thread-safe.

    Opening reads all shards of ``name`` in ``folder`` and continues the one named ``shard`` (unless ``read_only``):
    whatever a crash left behind its last sound record is cut off. If several shards hold a key, this process's own
    counts, else the first by name. ``remedy`` is the hint of errors that the user must resolve.
    Memory bound: 19 bytes per key, plus at most a few hundred records that are not committed yet.

    Raises ``OutputError`` if a file cannot be read or written, if the shard has a live writer already, or if a journal
    names a key beyond ``capacity``.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        shard: str = "0",
        capacity: int,
        read_only: bool = False,
        remedy: str = "--overwrite starts afresh",
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.]+", name) or not re.fullmatch(r"[A-Za-z0-9_.-]+", shard):
            raise ValueError(f"not a name for a store and a shard: {name!r}, {shard!r}")
        if capacity < 1:
            raise ValueError(f"a store needs room for at least one key, got {capacity}")
        self.folder, self._name, self.capacity, self._remedy = folder, name, capacity, remedy
        self._offset = np.zeros(capacity, np.uint64)
        self._size = np.zeros(capacity, np.uint32)
        self._crc = np.zeros(capacity, np.uint32)
        self._shard = np.zeros(capacity, np.uint16)
        self._present = np.zeros(capacity, np.bool_)  # set last, so that readers need no lock
        self._count = 0
        self._pending: list[Record] = []
        self._pending_since = 0.0
        self._put_lock = threading.Lock()
        self._commit_lock = threading.Lock()
        self._own: _Shard | None = None
        self._shards: list[_Shard] = []
        try:
            if not read_only:
                self._own = self._resumed(f"{name}-{shard}")
            self.refresh()
        except BaseException:
            self._close_files()
            raise

    @property
    def writable(self) -> bool:
        """Whether the store takes new payloads."""
        return self._own is not None

    def put(self, key: int, payload: bytes) -> None:
        """Store ``payload`` under ``key``; does nothing if the key is present.

        Durable after the next ``commit``. ``put`` commits by itself after 256 payloads, or if the oldest uncommitted
        payload is more than 5 s old.
        """
        own = self._writable()
        if not 0 <= key < self.capacity:
            raise IndexError(f"key {key} is not in 0 … {self.capacity - 1}")
        crc = zlib.crc32(payload)
        with self._put_lock:
            if self._present[key]:
                return
            record = Record(key, own.data_end, len(payload), crc)
            with os_errors_as_output_errors(own.data_path):
                write_at(own.data.fileno(), own.data_end, payload)
            own.data_end += len(payload)
            if not self._pending:
                self._pending_since = time.monotonic()
            self._pending.append(record)
            self._enter(record, _OWN)
            due = len(self._pending) >= _COMMIT_PUTS or time.monotonic() - self._pending_since > _COMMIT_SECONDS
        if due:
            self.commit()

    def get(self, key: int) -> bytes:
        """The payload of ``key``, committed or not; ``KeyError`` if absent, ``OutputError`` if damaged on disk."""
        if key not in self:
            raise KeyError(key)
        shard = self._shards[self._shard[key]]
        offset, size = int(self._offset[key]), int(self._size[key])
        with os_errors_as_output_errors(shard.data_path):
            payload = read_at(shard.data.fileno(), offset, size)
        if len(payload) != size or zlib.crc32(payload) != self._crc[key]:
            raise OutputError(
                f"{shard.data_path}: bytes {offset} to {offset + size} are damaged (their checksum is wrong)",
                f"check the disk; {self._remedy}",
            )
        return payload

    def size(self, key: int) -> int:
        """Size in bytes of the payload of ``key``; ``KeyError`` if absent."""
        if key not in self:
            raise KeyError(key)
        return int(self._size[key])

    def crc(self, key: int) -> int:
        """CRC-32 of the payload of ``key`` as it was put; ``KeyError`` if absent."""
        if key not in self:
            raise KeyError(key)
        return int(self._crc[key])

    def missing(self, keys: Iterable[int]) -> Iterator[int]:
        """The ``keys`` that the store lacks, in the given order."""
        return (key for key in keys if key not in self)

    def __contains__(self, key: int) -> bool:
        return 0 <= key < self.capacity and bool(self._present[key])

    def __len__(self) -> int:
        return self._count

    def commit(self) -> None:
        """Make all payloads that were put durable: first the payloads, then their records."""
        own = self._writable()
        with self._commit_lock:
            with self._put_lock:
                records, self._pending = self._pending, []
            if not records:
                return
            try:
                own.append(records)
            except BaseException:
                with self._put_lock:
                    self._pending = records + self._pending
                raise

    def refresh(self) -> None:
        """Read what other shards, new ones included, have committed since the last refresh."""
        with self._put_lock:
            known = {shard.journal_path for shard in self._shards}
            for path in sorted(self.folder.glob(f"{self._name}-*.journal")):
                if path not in known:
                    self._shards.append(_Shard(self.folder, path.stem))
            for number, shard in enumerate(self._shards):
                if shard is not self._own:
                    self._take_in(number)

    def close(self) -> None:
        """Commit and close the files."""
        try:
            if self._own is not None and not self._own.journal.closed:
                self.commit()
        finally:
            self._close_files()

    def __enter__(self) -> BlobStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except OutputError:
            # an error that ended the block is the one to raise; it is often the cause of this one
            if error is None:
                raise

    def _resumed(self, stem: str) -> _Shard:
        """Open and lock this process's own shard, read its journal, and cut off what a crash left."""
        own = _Shard(self.folder, stem, flags=os.O_RDWR | os.O_CREAT)
        self._shards.append(own)
        own.lock()
        self._take_in(_OWN)
        own.cut()
        with os_errors_as_output_errors(self.folder):
            sync_folder(self.folder)
        return own

    def _take_in(self, number: int) -> None:
        shard = self._shards[number]
        with os_errors_as_output_errors(shard.journal_path):
            for record in shard.new_records():
                if record.key >= self.capacity:
                    raise OutputError(
                        f"{shard.journal_path}: belongs to another image (key {record.key} of {self.capacity})",
                        self._remedy,
                    )
                if not self._present[record.key]:
                    self._enter(record, number)

    def _enter(self, record: Record, number: int) -> None:
        key = record.key
        self._offset[key], self._size[key], self._crc[key] = record.offset, record.size, record.crc
        self._shard[key] = number
        self._present[key] = True
        self._count += 1

    def _writable(self) -> _Shard:
        if self._own is None:
            raise ValueError("this store was opened to be read only")
        return self._own

    def _close_files(self) -> None:
        for shard in self._shards:
            shard.close()
