"""Checks of finished files.

- ``check_file`` and ``check_flat`` return what is wrong with a file: its structure, its pixel sizes, and every tile of
  every level. Opening the file in a viewer is no such check: most readers open a truncated file and show the missing
  part as black.
- ``finished_record`` and ``verified_record`` decide whether an existing output is the one that a command would make,
  by the record beside it and the checksums in it.
- ``StoredLevel``, ``read_row`` and the decoders read the images of a TIFF for the checks.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyvips
import tifffile
from numpy.typing import NDArray

from kin_cli.concurrency import prefetch
from kin_cli.errors import OutputError
from kin_cli.geometry import AnyArray, Cell, Size
from kin_cli.pyramid.codec import Codec
from kin_cli.pyramid.ifd import Directory, MalformedTiffError, Tag, TiffDirectories
from kin_cli.pyramid.levels import OutputFormat
from kin_cli.pyramid.metadata import Description, Digest, parse_description
from kin_cli.store.files import file_sha256, head_of, named_beside, read_regular, utf8_name
from kin_cli.store.work import as_json, differences

_SAME = 1e-6  # relative tolerance; a resolution is a ratio of two 32-bit integers
_LISTED = 10  # tiles, rows or columns named in a message
_CENTIMETRE = 3  # value of the tag ResolutionUnit
_SHA256 = re.compile("[0-9a-f]{64}")
_JPEG, _DEFLATE = 7, 8  # values of the tag Compression
Decoder = Callable[[bytes, int], None]  # decodes the bytes of a tile, given its number; raises if that fails
Record = dict[str, Any]


@dataclass(frozen=True)
class _Options:
    """The options of ``check_file``."""

    decode: bool
    workers: int
    advance: Callable[[int, int], None] | None


def check_file(
    path: Path, *, decode: bool = True, workers: int = 1, advance: Callable[[int, int], None] | None = None
) -> list[str]:
    """List what is wrong with a finished file, one line per problem; an empty list if the file is sound.

    Checked for a pyramid that kin wrote: the directories are chained (and SubIFDs, in OME-TIFF), each level has half
    the size of the one above, pixel sizes agree with each other and with the description, every tile lies inside the
    file and has the right checksum and, with ``decode``, decodes to its full size. For any other TIFF: tiles or strips
    lie inside the file and, with ``decode``, decode. For a PNG or JPEG: it decodes. ``advance`` is called with the
    number of tiles done so far and the total.

    Memory bound: one tile for each of ``workers``, and about 100 bytes per tile of the file (tables).
    """
    kind = OutputFormat.named_by(path) or OutputFormat.PLAIN_TIFF
    try:
        with path.open("rb") as file:
            if not kind.pyramidal:
                return check_flat(path, kind)
            return _tiff_problems(path, file.fileno(), _Options(decode, workers, advance))
    except MalformedTiffError as error:
        return [f"not a sound TIFF: {error}"]
    except OSError as error:
        return [f"cannot be read: {error.strerror or error}"]


def check_flat(path: Path, kind: OutputFormat) -> list[str]:
    """List what is wrong with a PNG or JPEG, whatever its name: it must decode completely."""
    load = pyvips.Image.pngload if kind is OutputFormat.PNG else pyvips.Image.jpegload
    try:
        with utf8_name(path) as name:
            load(name, access="sequential", fail_on="warning").avg()
    except pyvips.Error as error:
        return [f"does not decode: {' '.join(str(error).split())}"]
    return []


def _tiff_problems(path: Path, fd: int, options: _Options) -> list[str]:
    tiff = TiffDirectories(fd)
    levels = read_levels(tiff)
    first = levels[0].directory
    description = parse_description(tiff.text(first, Tag.DESCRIPTION))
    problems: list[str] = []
    decoders: list[Decoder]
    if description is not None:
        problems += _chain_problems(tiff, levels, description)
        problems += _pixel_size_problems(tiff, levels, description)
        decoders = [own_decoder(tiff, level) for level in levels]
    else:
        if tiff.text(first, Tag.SOFTWARE).startswith(b"kin "):
            problems.append("its description is damaged: the checksums of the tiles cannot be read")
        decoders = foreign_decoders(path, levels)
    done, total = 0, sum(len(level.offsets) for level in levels)
    for level, decoder in zip(levels, decoders, strict=True):
        read = partial(read_row, tiff=tiff, level=level, decoder=decoder if options.decode else None)
        rows = prefetch(read, range(level.rows), workers=options.workers, ahead=2 * options.workers - 1)
        crcs, bad = np.zeros((level.rows, level.cols), np.uint32), dict[Cell, str]()
        with closing(rows) as reports:
            for row, report in enumerate(reports):
                crcs[row] = report.crcs
                bad |= report.bad
                done += level.cols
                if options.advance is not None:
                    options.advance(done, total)
        problems += _tile_problems(level, bad)
        if description is not None and level.number < len(description.digests):
            problems += _checksum_problems(level, description.digests[level.number], Digest.of(crcs), set(bad))
    return problems


def _chain_problems(tiff: TiffDirectories, levels: list[StoredLevel], description: Description) -> Iterator[str]:
    """Directories whose links, marks or sizes are not those of a pyramid that kin writes."""
    chain = [directory.offset for directory in tiff.chain()]
    sub = [int(offset) for offset in tiff.values(levels[0].directory, Tag.SUB_IFDS).flat]
    if len(chain) != len(description.digests):
        yield f"number of chained levels: {len(chain)}, but its description lists {len(description.digests)}"
    if sub != (chain[1:] if description.ome else []):
        yield "its SubIFDs are not the directories chained behind the first"
    for upper, lower in itertools.pairwise(levels):
        halves = Size(max(1, upper.size.width // 2), max(1, upper.size.height // 2))
        if lower.size != halves:
            yield f"{lower}: is {lower.size} pixels, not half of {upper.size}"
    for level in levels:
        if level.tile_size != Size(levels[0].tile_size.width, levels[0].tile_size.width):
            yield f"{level}: has tiles of {level.tile_size} pixels, level 0 has {levels[0].tile_size}"
        if tiff.number(level.directory, Tag.SUBFILE_TYPE, 0) != int(level.number > 0):
            yield f"{level}: is marked wrongly as {'the full' if level.number else 'a reduced'} image"


def _pixel_size_problems(tiff: TiffDirectories, levels: list[StoredLevel], description: Description) -> Iterator[str]:
    """Levels whose resolution does not follow from the pixel size in the description."""
    for level in levels:
        found = [tiff.values(level.directory, tag) for tag in (Tag.X_RESOLUTION, Tag.Y_RESOLUTION)]
        if description.mpp is None or any(values.shape != (1, 2) for values in found):
            if description.mpp is not None or any(values.size for values in found):
                yield f"{level}: its resolution and the description's pixel size of {description.mpp} µm do not agree"
            continue
        full, size = levels[0].size, level.size
        wanted = [1e4 / description.mpp * side / whole for side, whole in zip(_sides(size), _sides(full), strict=True)]
        for values, per_cm in zip(found, wanted, strict=True):
            numerator, denominator = (int(value) for value in values[0])
            if not math.isclose(numerator, per_cm * denominator, rel_tol=_SAME):
                yield f"{level}: has {numerator}/{denominator} pixels a cm, not {per_cm:.6g}"
        if tiff.number(level.directory, Tag.RESOLUTION_UNIT, 2) != _CENTIMETRE:
            yield f"{level}: its resolution is not in centimetres"


def _sides(size: Size) -> tuple[int, int]:
    return size.width, size.height


def _tile_problems(level: StoredLevel, bad: dict[Cell, str]) -> Iterator[str]:
    for cell in sorted(bad)[:_LISTED]:
        yield f"{level}, tile (row {cell.row}, col {cell.col}): {bad[cell]}"
    if len(bad) > _LISTED:
        yield f"{level}: {len(bad) - _LISTED} more bad tiles"


def _checksum_problems(level: StoredLevel, wanted: Digest, found: Digest, known: set[Cell]) -> Iterator[str]:
    """Rows and columns whose checksums differ for other reasons than the tiles ``known`` to be bad."""
    if (len(wanted.rows), len(wanted.cols)) != (level.rows, level.cols):
        yield f"{level}: its checksums are those of another image"
        return
    rows = _differing(wanted.rows, found.rows)
    cols = _differing(wanted.cols, found.cols)
    if set(rows) <= {cell.row for cell in known} and set(cols) <= {cell.col for cell in known}:
        return
    if not rows or not cols:
        yield f"{level}: its checksums contradict each other"
    elif len(rows) == 1 or len(cols) == 1:
        cells = {Cell(row, col): "its bytes are damaged (checksum)" for row in rows for col in cols}
        yield from _tile_problems(level, {cell: what for cell, what in cells.items() if cell not in known})
    else:
        yield f"{level}: tiles are damaged (checksum) where rows {_listed(rows)} meet columns {_listed(cols)}"


def _differing(wanted: tuple[int, ...], found: tuple[int, ...]) -> list[int]:
    return [number for number, pair in enumerate(zip(wanted, found, strict=True)) if pair[0] != pair[1]]


def _listed(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:_LISTED]))
    return f"{shown}, …" if len(numbers) > _LISTED else shown


# An output and the record beside it


def finished_record(output: Path, record_file: Path, settings: Mapping[str, object]) -> Record:
    """The record of ``output`` if it is a finished output of these settings; else ``OutputError`` with the reason.

    The record is written after the output has its final name, and is valid only if the file has the recorded size. A
    setting that is missing on one side counts as None.
    """
    try:
        record = json.loads(read_regular(record_file))
        found, size = dict(record["settings"]), int(record["output_bytes"])
    except FileNotFoundError:
        raise _refusal(output, f"exists, but its record {record_file.name} does not") from None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise _refusal(output, f"exists, but its record {record_file.name} cannot be read") from error
    if differing := differences(_without_none(found), _without_none(as_json(settings))):
        raise _refusal(output, f"was made with other settings ({differing})")
    if not output.exists():
        raise _refusal(output, "is a link to a file that is not there")
    if output.stat().st_size != size:
        raise _refusal(output, f"has {output.stat().st_size} bytes, but its record says {size}")
    return dict(record)


def verified_record(output: Path, record_file: Path, settings: Mapping[str, object]) -> Record:
    """Like ``finished_record``, but also read the output and compare all its bytes with the record's digest."""
    record = finished_record(output, record_file, settings)
    if file_sha256(output) != record.get("output_sha256"):
        problems = check_file(output, decode=False) or ["differs from its record (SHA-256)"]
        raise _refusal(output, f"exists, but is not sound: {problems[0]}")
    return record


def is_image_file(path: Path) -> bool:
    """Whether ``check_file`` knows the file's kind: a TIFF, PNG or JPEG by its first bytes, or what cannot be read."""
    try:
        head = head_of(path, 8)
    except OSError:
        return True
    ndpi = path.suffix.lower() == ".ndpi"  # a TIFF by its first bytes, but with offsets of its own beyond 4 GiB
    return head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\x89PNG", b"\xff\xd8\xff")) and not ndpi


def is_record(value: object) -> bool:
    """Whether a JSON value is a run record, of any output: it has a schema number and all that such a record tells."""
    if not isinstance(value, dict):
        return False
    schema, sha256 = value.get("schema"), value.get("output_sha256")
    whole = all(isinstance(value.get(name), dict) for name in ("settings", "plan", "slide_files"))
    texts = all(isinstance(value.get(name), str) for name in ("kin", "slide", "model", "output"))
    numbered = isinstance(schema, int) and schema >= 1 and isinstance(value.get("output_bytes"), int)
    return whole and texts and numbered and isinstance(sha256, str) and bool(_SHA256.fullmatch(sha256))


def compared_with_record(output: Path) -> tuple[list[str], str]:
    """Compare a sound file with the record beside it: what is wrong, and in words how far it is known to be right."""
    file = named_beside(output, ".json")
    unknown = "sound, as far as can be told without its record ({}): unused bytes were not compared"
    try:
        content = read_regular(file)
    except FileNotFoundError:
        return [], unknown.format(f"there is no {file.name} beside it")
    except OSError as error:
        return [f"its record {file.name} cannot be read ({error.strerror}), so its bytes cannot be compared"], ""
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        record = None
    if not is_record(record):
        if b'"output_sha256"' in content or b'"slide_files"' in content:
            return [f"its record {file.name} is damaged, so its bytes cannot be compared"], ""
        return [], unknown.format(f"{file.name} is something else")
    named = Path(record["output"]).name
    renamed = "" if named == output.name else f", of the time when it was named {named}"
    if file_sha256(output) == record["output_sha256"]:
        return [], f"sound: identical to its record{renamed}"
    return [f"differs from its record (SHA-256){'' if not renamed else f': {file.name} is that of {named}'}"], ""


def record_beside(output: Path) -> Record | None:
    """The record beside ``output``; None if there is none, or it is of a file of another name."""
    try:
        record = json.loads(read_regular(named_beside(output, ".json")))
    except (OSError, ValueError, RecursionError):
        return None
    return dict(record) if is_record(record) and Path(record["output"]).name == output.name else None


def _refusal(output: Path, what: str) -> OutputError:
    return OutputError(f"{output}: {what}", "--overwrite replaces it")


def _without_none(settings: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in settings.items() if value is not None}


# Reading the images of a TIFF


@dataclass(frozen=True)
class StoredLevel:
    """One image of a TIFF: offsets and sizes (bytes) of its tiles, row by row; strips are tiles in a single column."""

    number: int
    directory: Directory
    size: Size
    tile_size: Size
    offsets: AnyArray
    sizes: AnyArray

    @property
    def cols(self) -> int:
        """Number of tiles in a row."""
        return -(-self.size.width // self.tile_size.width)

    @property
    def rows(self) -> int:
        """Number of rows of tiles; if colours are stored apart, the rows of all colours together."""
        return -(-len(self.offsets) // self.cols)

    def __str__(self) -> str:
        return f"level {self.number}"


@dataclass(frozen=True)
class RowCheck:
    """CRC-32s of the tiles of a row, uint32 (cols,), and the problem of each bad tile."""

    crcs: NDArray[np.uint32]
    bad: dict[Cell, str]


def read_levels(tiff: TiffDirectories) -> list[StoredLevel]:
    """The images in the main chain, followed by those that are only SubIFDs; may raise ``MalformedTiffError``."""
    directories = {directory.offset: directory for directory in tiff.chain()}
    for directory in list(directories.values()):
        for offset in tiff.values(directory, Tag.SUB_IFDS).flat:
            if int(offset) not in directories:
                directories[int(offset)] = tiff.directory(int(offset))
    return [_level(tiff, number, directory) for number, directory in enumerate(directories.values())]


def _level(tiff: TiffDirectories, number: int, directory: Directory) -> StoredLevel:
    sides = [tiff.number(directory, tag) for tag in (Tag.WIDTH, Tag.HEIGHT)]
    if Tag.TILE_OFFSETS in directory.entries:
        tile_sides = [tiff.number(directory, tag) for tag in (Tag.TILE_WIDTH, Tag.TILE_HEIGHT)]
        tables = [tiff.values(directory, tag) for tag in (Tag.TILE_OFFSETS, Tag.TILE_BYTES)]
    else:
        tile_sides = [sides[0], min(tiff.number(directory, Tag.ROWS_PER_STRIP, sides[1]), sides[1])]
        tables = [tiff.values(directory, tag) for tag in (Tag.STRIP_OFFSETS, Tag.STRIP_BYTES)]
    if min(sides + tile_sides) < 1:
        raise MalformedTiffError(f"level {number} has the size {sides} in tiles of {tile_sides}")
    level = StoredLevel(number, directory, Size(*sides), Size(*tile_sides), *tables)
    tiles = level.cols * -(-sides[1] // tile_sides[1])
    planes = tiff.number(directory, Tag.SAMPLES, 1) if tiff.number(directory, Tag.PLANAR, 1) == 2 else 1
    if [len(table) for table in tables] != [tiles * planes] * 2:
        raise MalformedTiffError(
            f"level {number} has {len(tables[0])} offsets and {len(tables[1])} sizes for {tiles * planes} tiles"
        )
    return level


def read_row(row: int, *, tiff: TiffDirectories, level: StoredLevel, decoder: Decoder | None) -> RowCheck:
    """Read every tile in a row of ``level``, and decode it if there is a ``decoder``. Thread-safe."""
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
            except Exception as error:  # codecs raise many types; any of them means a damaged tile
                bad[Cell(row, col)] = f"does not decode: {' '.join(str(error).split()) or type(error).__name__}"
    return RowCheck(crcs, bad)


def own_decoder(tiff: TiffDirectories, level: StoredLevel) -> Decoder:
    """The decoder of a level that kin wrote; ``MalformedTiffError`` if kin does not write its compression."""
    compression = tiff.number(level.directory, Tag.COMPRESSION)
    if compression not in (_JPEG, _DEFLATE):
        raise MalformedTiffError(f"{level} has compression {compression}, which kin does not write")
    codec, side = Codec("jpeg" if compression == _JPEG else "deflate"), level.tile_size.width

    def decode(payload: bytes, _index: int) -> None:
        shape = codec.decode(payload, side).shape
        if shape != (side, side, 3):
            raise ValueError(f"its pixels have the shape {shape}")

    return decode


def foreign_decoders(path: Path, levels: list[StoredLevel]) -> list[Decoder]:
    """The decoders of the levels of any TIFF, by tifffile; ``MalformedTiffError`` if tifffile cannot read the file."""
    try:
        with tifffile.TiffFile(path) as tiff:
            pages = {page.offset: page for page in _pages(tiff)}
            return [_foreign_decoder(pages[level.directory.offset]) for level in levels]
    except Exception as error:  # tifffile raises almost any type for damaged files
        raise MalformedTiffError(f"tifffile cannot read it: {' '.join(str(error).split())}") from error


def _pages(tiff: tifffile.TiffFile) -> Iterator[Any]:
    for page in tiff.pages:
        yield page
        yield from page.pages or ()


def _foreign_decoder(page: Any) -> Decoder:
    # both are computed on first use, so get them here, while tifffile has the file open
    decode_tile, tables = page.decode, page.jpegtables

    def decode(payload: bytes, index: int) -> None:
        if decode_tile(payload, index, jpegtables=tables)[0] is None:
            raise ValueError("it has no pixels")

    return decode
