"""The records by which a blob store remembers what it holds: 28 bytes each, little-endian, each with its own CRC."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

_FIELDS = struct.Struct("<QQII")  # key, offset, size, CRC-32 of the payload
_CRC = struct.Struct("<I")  # CRC-32 of the fields
RECORD_BYTES = _FIELDS.size + _CRC.size


class Record(NamedTuple):
    """Where one payload lies in the data file, and its CRC-32."""

    key: int
    offset: int
    size: int
    crc: int

    def packed(self) -> bytes:
        """The record's 28 bytes."""
        fields = _FIELDS.pack(*self)
        return fields + _CRC.pack(zlib.crc32(fields))


def sound_records(journal: bytes, data_bytes: int) -> Iterator[Record]:
    """The records of ``journal`` in order, up to the first that is torn, damaged or beyond the data file's end.

    What follows a bad record is not trusted: records are appended only after their payloads are on the disk.
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
