"""The images of a finished TIFF as a check sees them: where their tiles lie, and whether these can be read."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from kin_cli.geometry import Cell, Size
from kin_cli.pyramid.codec import Codec
from kin_cli.pyramid.directories import Directory, MalformedTiffError, Tag, TiffDirectories

Decoder = Callable[[bytes, int], None]  # decodes the bytes of the tile of a number, raises where that fails

_JPEG, _DEFLATE = 7, 8


@dataclass(frozen=True)
class Level:
    """One image of the file: offsets and sizes of its tiles, row by row; strips count as tiles in one column."""

    number: int
    directory: Directory
    size: Size
    tile_size: Size
    offsets: NDArray[Any]
    sizes: NDArray[Any]

    @property
    def cols(self) -> int:
        """Tiles in a row."""
        return -(-self.size.width // self.tile_size.width)

    @property
    def rows(self) -> int:
        """Rows of tiles; where the colours lie apart, those of all colours."""
        return -(-len(self.offsets) // self.cols)

    def __str__(self) -> str:
        return f"level {self.number}"


@dataclass(frozen=True)
class RowReport:
    """CRC-32s of the tiles of a row, uint32 (cols,), and what is wrong with which."""

    crcs: NDArray[np.uint32]
    bad: dict[Cell, str]


def read_levels(tiff: TiffDirectories) -> list[Level]:
    """The images in the main chain, then those that are only SubIFDs; raises ``MalformedTiffError``."""
    directories = {directory.offset: directory for directory in tiff.chain()}
    for directory in list(directories.values()):
        for offset in tiff.values(directory, Tag.SUB_IFDS).flat:
            if int(offset) not in directories:
                directories[int(offset)] = tiff.directory(int(offset))
    return [_level(tiff, number, directory) for number, directory in enumerate(directories.values())]


def _level(tiff: TiffDirectories, number: int, directory: Directory) -> Level:
    sides = [tiff.number(directory, tag) for tag in (Tag.WIDTH, Tag.HEIGHT)]
    if Tag.TILE_OFFSETS in directory.entries:
        tile_sides = [tiff.number(directory, tag) for tag in (Tag.TILE_WIDTH, Tag.TILE_HEIGHT)]
        tables = [tiff.values(directory, tag) for tag in (Tag.TILE_OFFSETS, Tag.TILE_BYTES)]
    else:
        tile_sides = [sides[0], min(tiff.number(directory, Tag.ROWS_PER_STRIP, sides[1]), sides[1])]
        tables = [tiff.values(directory, tag) for tag in (Tag.STRIP_OFFSETS, Tag.STRIP_BYTES)]
    if min(sides + tile_sides) < 1:
        raise MalformedTiffError(f"level {number} has the size {sides} in tiles of {tile_sides}")
    level = Level(number, directory, Size(*sides), Size(*tile_sides), *tables)
    tiles = level.cols * -(-sides[1] // tile_sides[1])
    planes = tiff.number(directory, Tag.SAMPLES, 1) if tiff.number(directory, Tag.PLANAR, 1) == 2 else 1
    if [len(table) for table in tables] != [tiles * planes] * 2:
        raise MalformedTiffError(
            f"level {number} has {len(tables[0])} offsets and {len(tables[1])} sizes for {tiles * planes} tiles"
        )
    return level


def read_row(row: int, *, tiff: TiffDirectories, level: Level, decoder: Decoder | None) -> RowReport:
    """Read every tile in a row of ``level``, and decode it if there is a ``decoder``; may run in several threads."""
    crcs, bad = np.zeros(level.cols, np.uint32), {}
    first = row * level.cols
    for index in range(first, min(first + level.cols, len(level.offsets))):
        col = index - first
        offset, size = int(level.offsets[index]), int(level.sizes[index])
        if offset == 0 or size == 0:
            bad[Cell(row, col)] = "has no bytes"
        elif offset + size > tiff.file_bytes:
            bad[Cell(row, col)] = f"ends at byte {offset + size}, beyond the end of the file at {tiff.file_bytes}"
        else:
            payload = tiff.bytes_at(offset, size)
            crcs[col] = zlib.crc32(payload)
            try:
                if decoder is not None:
                    decoder(payload, index)
            except Exception as error:  # whatever a codec raises is the finding
                bad[Cell(row, col)] = f"does not decode: {' '.join(str(error).split()) or type(error).__name__}"
    return RowReport(crcs, bad)


def own_decoder(tiff: TiffDirectories, level: Level) -> Decoder:
    """The decoder of a level that kin wrote; ``MalformedTiffError`` if the compression is none that kin writes."""
    compression = tiff.number(level.directory, Tag.COMPRESSION)
    if compression not in (_JPEG, _DEFLATE):
        raise MalformedTiffError(f"{level} has compression {compression}, which kin does not write")
    codec, side = Codec("jpeg" if compression == _JPEG else "deflate"), level.tile_size.width

    def decode(payload: bytes, _index: int) -> None:
        shape = codec.decode(payload, side).shape
        if shape != (side, side, 3):
            raise ValueError(f"its pixels have the shape {shape}")

    return decode


def foreign_decoders(path: Path, levels: list[Level]) -> list[Decoder]:
    """The decoders of the levels of any TIFF that tifffile can read, else ``MalformedTiffError``."""
    try:
        with tifffile.TiffFile(path) as tiff:
            pages = {page.offset: page for page in _pages(tiff)}
            return [_foreign_decoder(pages[level.directory.offset]) for level in levels]
    except Exception as error:  # on damaged files it raises almost anything
        raise MalformedTiffError(f"tifffile cannot read it: {' '.join(str(error).split())}") from error


def _pages(tiff: tifffile.TiffFile) -> Iterator[Any]:
    for page in tiff.pages:
        yield page
        yield from page.pages or ()


def _foreign_decoder(page: Any) -> Decoder:
    # now, while tifffile has the file open: both are made on first use
    decode_tile, tables = page.decode, page.jpegtables

    def decode(payload: bytes, index: int) -> None:
        if decode_tile(payload, index, jpegtables=tables)[0] is None:
            raise ValueError("it has no pixels")

    return decode
