"""Damage to bytes: flipped bits, cut ends, blanked, repeated and swapped parts, other tags of a TIFF or DICOM file."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

Damage = Callable[[bytearray, random.Random], None]
_EDGES = (0, 1, 2, 3, 5, 7, 8, 16, 127, 255, 256, 4096, 65520, 65535, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)


def place(rng: random.Random, size: int) -> int:
    """Return a position, half of the time near an end of the file, where headers and directories are."""
    near = min(size, 4096)
    return rng.choice([rng.randrange(size), rng.randrange(size), rng.randrange(near), size - 1 - rng.randrange(near)])


def flip_bits(data: bytearray, rng: random.Random) -> None:
    for _ in range(2 ** rng.randrange(10)):
        data[place(rng, len(data))] ^= 1 << rng.randrange(8)


def cut(data: bytearray, rng: random.Random) -> None:
    del data[place(rng, len(data)) :]


def blank(data: bytearray, rng: random.Random) -> None:
    start = place(rng, len(data))
    length = min(len(data) - start, 2 ** rng.randrange(1, 16))
    data[start : start + length] = bytes([rng.choice((0, 255))]) * length


def repeat(data: bytearray, rng: random.Random) -> None:
    start, target, length = place(rng, len(data)), place(rng, len(data)), 2 ** rng.randrange(1, 12)
    data[target : target + length] = data[start : start + length]


def append(data: bytearray, rng: random.Random) -> None:
    data += rng.randbytes(rng.randrange(1, 64))


def swap_blocks(data: bytearray, rng: random.Random) -> None:
    """Exchange two parts of the same length, which differ."""
    for _ in range(100):
        length = min(2 ** rng.randrange(12), len(data) // 2)
        a, b = sorted(rng.randrange(len(data) - length + 1) for _ in range(2))
        if b - a >= length and data[a : a + length] != data[b : b + length]:
            data[a : a + length], data[b : b + length] = data[b : b + length], data[a : a + length]
            return
    flip_bits(data, rng)


def swap_entries(data: bytearray, rng: random.Random) -> None:
    """Swap tags, types or values of two entries of a TIFF directory or a DICOM file; act as ``repeat`` on others."""
    directories, elements = tiff_directories(bytes(data)), dicom_elements(bytes(data))
    if directories:
        start, count = rng.choice(directories)
        places = [start + 2 + 12 * rng.randrange(count) for _ in range(2)]
        offset, length = rng.choice(((0, 2), (2, 2), (4, 4), (8, 4), (2, 10)))
    elif elements:
        places = rng.choices(elements, k=2)
        offset, length = rng.choice(((0, 4), (4, 2), (6, 2), (8, 4)))
    else:
        repeat(data, rng)
        return
    a, b = (slice(place + offset, place + offset + length) for place in places)
    data[a], data[b] = data[b], data[a]


def change_entry(data: bytearray, rng: random.Random) -> None:
    """Give an entry of a TIFF directory another tag, type, count or value, or the directory another successor."""
    directories = tiff_directories(bytes(data))
    if not directories:
        flip_bits(data, rng)
        return
    start, count = rng.choice(directories)
    entry, what = start + 2 + 12 * rng.randrange(count), rng.randrange(8)
    if what == 0:
        struct.pack_into("<I", data, start + 2 + 12 * count, rng.choice((0, start, 8, *_EDGES)))
    elif what == 1:
        struct.pack_into("<H", data, entry + rng.choice((0, 2)), rng.choice(_EDGES) & 0xFFFF)
    elif what == 2:
        struct.pack_into("<I", data, entry + 4, rng.choice(_EDGES))
    else:
        struct.pack_into("<I", data, entry + 8, rng.choice(_EDGES))


def dicom_elements(data: bytes) -> list[int]:
    """Return the offsets of the data elements before the pixels, also in sequences; explicit VR, little endian."""
    if data[128:132] != b"DICM":
        return []
    found, offset = [], 132
    while offset < len(data) - 12 and data[offset : offset + 4] != b"\xe0\x7f\x10\x00":
        kind = data[offset + 4 : offset + 6]
        if data[offset : offset + 2] == b"\xfe\xff":  # begin or end of an item, whose elements follow
            offset += 8
            continue
        found.append(offset)
        if kind in (b"OB", b"OD", b"OF", b"OL", b"OW", b"UC", b"UN", b"UR", b"UT"):
            offset += 12 + struct.unpack_from("<I", data, offset + 8)[0]
        else:
            offset += 12 if kind == b"SQ" else 8 + struct.unpack_from("<H", data, offset + 6)[0]
    return found


def tiff_directories(data: bytes) -> list[tuple[int, int]]:
    """Return offset and number of entries of each directory."""
    if data[:4] != b"II*\0":
        return []
    found = []
    (offset,) = struct.unpack_from("<I", data, 4)
    while 0 < offset < len(data) - 6 and len(found) < 16:
        (count,) = struct.unpack_from("<H", data, offset)
        if not count or offset + 6 + 12 * count > len(data):
            break
        found.append((offset, count))
        (offset,) = struct.unpack_from("<I", data, offset + 2 + 12 * count)
    return found


MUTATIONS: tuple[Damage, ...] = (flip_bits, cut, blank, repeat, append, swap_blocks, swap_entries, change_entry)


def damaged(content: bytes, rng: random.Random, *, of: tuple[Damage, ...] = MUTATIONS) -> tuple[str, bytes]:
    """Return the name of a mutation and the content after it."""
    data, mutation = bytearray(content), rng.choice(of)
    if data:
        mutation(data, rng)
    return mutation.__name__, bytes(data)
