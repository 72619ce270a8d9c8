"""Whether a finished file is sound: its structure, its pixel sizes, and every tile of every level.

Readers are no such check: most open a file that was cut short, and show the rest as black.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyvips

from kin_cli.errors import UsageError
from kin_cli.geometry import Cell, Size
from kin_cli.pyramid.directories import MalformedTiffError, Tag, TiffDirectories
from kin_cli.pyramid.formats import OutputFormat
from kin_cli.pyramid.levels import Decoder, Level, foreign_decoders, own_decoder, read_levels, read_row
from kin_cli.pyramid.metadata import Description, Digest, parse_description
from kin_cli.pyramid.threads import in_order

_SAME = 1e-6  # relative; a resolution is a ratio of two 32-bit integers
_LISTED = 10
_CENTIMETRE = 3


@dataclass(frozen=True)
class _Options:
    decode: bool
    workers: int
    progress: Callable[[int, int], None] | None


def check_file(
    path: Path, *, decode: bool = True, workers: int = 1, progress: Callable[[int, int], None] | None = None
) -> list[str]:
    """What is wrong with a finished file, one line a problem; none if it is sound.

    Of a pyramid that kin wrote: the directories are chained (and SubIFDs, in OME-TIFF), their sizes halve, their pixel
    sizes agree with each other and with the description, every tile lies in the file, its bytes have their checksums,
    and, with ``decode``, it decodes to its full size. Of any other TIFF: that its tiles or strips lie in the file and
    decode. Of a PNG or JPEG: that it decodes. ``progress`` is called with the tiles done so far and their number.

    Memory bound: one tile for each of ``workers``, and about 100 bytes for each tile of the file (tables).
    """
    try:
        kind = OutputFormat.of(path)
    except UsageError:
        kind = OutputFormat.PLAIN_TIFF
    try:
        with path.open("rb") as file:
            if not kind.pyramidal:
                return check_flat(path, kind)
            return _tiff_problems(path, file.fileno(), _Options(decode, workers, progress))
    except MalformedTiffError as error:
        return [f"not a sound TIFF: {error}"]
    except OSError as error:
        return [f"cannot be read: {error.strerror or error}"]


def check_flat(path: Path, kind: OutputFormat) -> list[str]:
    """What is wrong with a PNG or JPEG, whatever its name: that it does not decode to its end."""
    load = pyvips.Image.pngload if kind is OutputFormat.PNG else pyvips.Image.jpegload
    try:
        load(str(path), access="sequential", fail_on="warning").avg()
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
        rows = in_order((partial(read, row) for row in range(level.rows)), workers=options.workers)
        crcs, bad = np.zeros((level.rows, level.cols), np.uint32), dict[Cell, str]()
        with closing(rows) as reports:
            for row, report in enumerate(reports):
                crcs[row] = report.crcs
                bad |= report.bad
                done += level.cols
                if options.progress is not None:
                    options.progress(done, total)
        problems += _tile_problems(level, bad)
        if description is not None and level.number < len(description.digests):
            problems += _checksum_problems(level, description.digests[level.number], Digest.of(crcs), set(bad))
    return problems


def _chain_problems(tiff: TiffDirectories, levels: list[Level], description: Description) -> Iterator[str]:
    """Directories that are not linked, marked or sized as those of a pyramid are."""
    chain = [directory.offset for directory in tiff.chain()]
    sub = [int(offset) for offset in tiff.values(levels[0].directory, Tag.SUB_IFDS).flat]
    if len(chain) != len(description.digests):
        yield f"{len(chain)} levels are chained, but its description tells of {len(description.digests)}"
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


def _pixel_size_problems(tiff: TiffDirectories, levels: list[Level], description: Description) -> Iterator[str]:
    """Levels whose resolution is not the description's pixel size, scaled."""
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


def _tile_problems(level: Level, bad: dict[Cell, str]) -> Iterator[str]:
    for cell in sorted(bad)[:_LISTED]:
        yield f"{level}, tile (row {cell.row}, col {cell.col}): {bad[cell]}"
    if len(bad) > _LISTED:
        yield f"{level}: {len(bad) - _LISTED} more bad tiles"


def _checksum_problems(level: Level, wanted: Digest, found: Digest, known: set[Cell]) -> Iterator[str]:
    """Rows and columns whose checksums differ, but for those of tiles that are known to be bad."""
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
