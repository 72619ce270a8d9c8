"""Image file directories (IFDs) of TIFF: reading them with every offset checked, and linking them afresh.

tifffile gives no access to directories at this level.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kin_cli.store.files import read_at, write_all

# TIFF field type → numpy type; rationals (5, 10) are pairs of integers
_TYPES = {1: "u1", 2: "u1", 3: "u2", 4: "u4", 5: "2u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 10: "2i4"}
_TYPES |= {11: "f4", 12: "f8", 13: "u4", 16: "u8", 17: "i8", 18: "u8"}
_MAX_DIRECTORIES = 10_000


class Tag(IntEnum):
    """Numbers of the TIFF tags that kin uses."""

    SUBFILE_TYPE = 254
    WIDTH = 256
    HEIGHT = 257
    COMPRESSION = 259
    DESCRIPTION = 270
    STRIP_OFFSETS = 273
    SAMPLES = 277
    ROWS_PER_STRIP = 278
    STRIP_BYTES = 279
    X_RESOLUTION = 282
    Y_RESOLUTION = 283
    PLANAR = 284
    RESOLUTION_UNIT = 296
    SOFTWARE = 305
    TILE_WIDTH = 322
    TILE_HEIGHT = 323
    TILE_OFFSETS = 324
    TILE_BYTES = 325
    SUB_IFDS = 330
    CHROMA_SUBSAMPLING = 530


class MalformedTiffError(ValueError):
    """The file is not a TIFF, or its directories are inconsistent."""


class IfdField(NamedTuple):
    """One field of a directory: its TIFF type (``kind``), the number of values, and their offset ``at`` in the file."""

    kind: int
    values: int
    at: int


@dataclass(frozen=True)
class Directory:
    """An image file directory at byte ``offset``; ``following`` is the offset of the next one, 0 for the last."""

    offset: int
    entries: dict[int, IfdField]
    following: int


class TiffDirectories:
    """Reader of the directories of an open TIFF or BigTIFF, of either byte order.

    All methods raise ``MalformedTiffError`` if what they read is missing or lies outside the file. Nothing is cached.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.file_bytes = os.fstat(fd).st_size
        head = read_at(fd, 0, 16)
        self.order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
        version = struct.unpack(f"{self.order}H", head[2:4])[0] if self.order and len(head) >= 4 else 0
        if version not in (42, 43):
            raise MalformedTiffError("it does not start like a TIFF")
        self.big = version == 43
        self._count, self._word = (
            (f"{self.order}Q", f"{self.order}Q") if self.big else (f"{self.order}H", f"{self.order}I")
        )
        self._entry_bytes = 20 if self.big else 12
        self._first_at = 8 if self.big else 4

    def chain(self) -> list[Directory]:
        """The directories in the main chain."""
        directories: list[Directory] = []
        offset = self._unpack(self._word, self._first_at)
        while offset:
            if len(directories) >= _MAX_DIRECTORIES or any(offset == known.offset for known in directories):
                raise MalformedTiffError("the chain of its directories does not end")
            directories.append(self.directory(offset))
            offset = directories[-1].following
        if not directories:
            raise MalformedTiffError("it has no image (it was not finished)")
        return directories

    def directory(self, offset: int) -> Directory:
        """The directory at byte ``offset`` of the file."""
        first = offset + struct.calcsize(self._count)
        entries: dict[int, IfdField] = {}
        for number in range(self._unpack(self._count, offset)):
            at = first + number * self._entry_bytes
            tag, type_ = struct.unpack(f"{self.order}HH", self.bytes_at(at, 4))
            count = self._unpack(self._word, at + 4)
            value_at = at + 4 + struct.calcsize(self._word)
            if type_ in _TYPES and count * np.dtype(_TYPES[type_]).itemsize > struct.calcsize(self._word):
                value_at = self._unpack(self._word, value_at)
            entries[tag] = IfdField(type_, count, value_at)
        end = first + self._unpack(self._count, offset) * self._entry_bytes
        return Directory(offset, entries, self._unpack(self._word, end))

    def values(self, directory: Directory, tag: Tag) -> NDArray[np.generic]:
        """The values of a field, shape (count,), for rationals (count, 2); shape (0,) if the field is missing."""
        entry = directory.entries.get(tag)
        if entry is None:
            return np.zeros(0, np.int64)
        if entry.kind not in _TYPES:
            raise MalformedTiffError(f"field {tag.name} has the unknown type {entry.kind}")
        code = _TYPES[entry.kind]
        dtype = np.dtype(f"{self.order}{code[-2:]}")
        width = 2 if len(code) == 3 else 1
        values = np.frombuffer(self.bytes_at(entry.at, entry.values * width * dtype.itemsize), dtype)
        return values.reshape(-1, 2) if width == 2 else values

    def number(self, directory: Directory, tag: Tag, default: int | None = None) -> int:
        """The first value of an integer field, or ``default`` if the field is missing."""
        values = self.values(directory, tag)
        if values.size and values.dtype.kind in "iu":
            return int(values.flat[0])
        if default is None:
            raise MalformedTiffError(f"field {tag.name} is missing or no integer")
        return default

    def text(self, directory: Directory, tag: Tag) -> bytes:
        """The bytes of a text field up to its first NUL; empty if the field is missing."""
        return self.values(directory, tag).tobytes().partition(b"\0")[0]

    def packed(self, entries: list[bytes], following: int) -> bytes:
        """A directory as bytes, from raw entries (see ``raw_entries``) and the offset of the next directory."""
        return struct.pack(self._count, len(entries)) + b"".join(entries) + struct.pack(self._word, following)

    def raw_entries(self, directory: Directory) -> dict[int, bytes]:
        """The entries of a directory as stored in the file, by tag."""
        first = directory.offset + struct.calcsize(self._count)
        return {
            tag: self.bytes_at(first + number * self._entry_bytes, self._entry_bytes)
            for number, tag in enumerate(directory.entries)
        }

    def _unpack(self, form: str, at: int) -> int:
        return int(struct.unpack(form, self.bytes_at(at, struct.calcsize(form)))[0])

    def bytes_at(self, at: int, size: int) -> bytes:
        """``size`` bytes from byte ``at`` of the file."""
        if at + size > self.file_bytes:
            raise MalformedTiffError(f"it is cut short: it ends at byte {self.file_bytes}, but needs {at + size}")
        return read_at(self._fd, at, size)


def relink(fd: int, *, dropped: Collection[Tag]) -> None:
    """Append the SubIFDs of the first directory to the main chain, too, and remove the ``dropped`` fields everywhere.

    OpenSlide follows the chain only; Bio-Formats and tifffile (for OME) follow the SubIFDs only. Fields are dropped
    because tifffile writes some that must not be in the file.
    """
    tiff = TiffDirectories(fd)
    chain = tiff.chain()
    sub_offsets = [int(offset) for offset in tiff.values(chain[0], Tag.SUB_IFDS).flat]
    levels = [chain[0], *map(tiff.directory, sub_offsets)] if sub_offsets else chain
    for level, following in zip(levels, [*[level.offset for level in levels[1:]], 0], strict=True):
        entries = [raw for tag, raw in tiff.raw_entries(level).items() if tag not in dropped]
        os.lseek(fd, level.offset, os.SEEK_SET)
        write_all(fd, tiff.packed(entries, following))
