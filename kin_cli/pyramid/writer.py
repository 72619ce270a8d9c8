"""Writing the output file from the tiles in a store: ``write_pyramid`` (TIFF) and ``write_flat`` (PNG or JPEG).

Tiles are copied in a fixed order and the file has no time stamp: the same tiles and metadata give the same bytes,
whatever the order in which the tiles were made, the interruptions, and the number of processes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyvips
import tifffile

from kin_cli.errors import OutputError, UsageError
from kin_cli.pyramid.check import check_file, check_flat
from kin_cli.pyramid.codec import Codec
from kin_cli.pyramid.ifd import Tag, relink
from kin_cli.pyramid.levels import OutputFormat, PyramidLayout
from kin_cli.pyramid.metadata import Digest, ImageInfo, ome_description, plain_description
from kin_cli.store.blobs import BlobStore
from kin_cli.store.files import bytes_text, os_errors_as_output_errors, publish, utf8_name

_CLASSIC_LIMIT = 2**32 - 1
_DIRECTORY_BYTES = 64 << 10  # upper bound of a directory without its tile tables and description
_JPEG_MAX_SIDE = 65_500  # limit of libjpeg, slightly below that of the format, 65,535
_UNKNOWN_PER_MM = 72 / 25.4  # 72 dpi means "unknown"
_VIPS_CACHE = 100  # operations: the default of libvips


def write_pyramid(
    store: BlobStore,
    layout: PyramidLayout,
    *,
    codec: Codec,
    info: ImageInfo,
    destination: Path,
    force_bigtiff: bool = False,
    advance: Callable[[int], None] | None = None,
    before_naming: Callable[[Path], bool] | None = None,
) -> None:
    """Write all tiles of ``store`` as a pyramidal TIFF; as BigTIFF only if it would exceed 4 GiB or is forced.

    ``.ome.tif(f)``: an OME-TIFF whose lower levels are both SubIFDs of the first directory and chained behind it, so
    that all readers see one pyramid. ``.tif(f)``: only the chain, with a JSON description. The file is written into the
    folder of the store, checked against the checksums of the tiles, synced and renamed: a failure never leaves an
    incomplete file under the final name. ``before_naming``: see ``part_file``. ``advance`` is called with the number of
    tiles written since the last call (``layout.tile_count`` in total).

    Memory bound: the bytes of one tile, and about 150 bytes per tile of the largest level (tables).

    Raises ``UsageError`` for another suffix; ``OutputError`` if a tile is missing or damaged, the disk has too little
    room (checked before writing), or the written file does not pass its check.
    """
    kind = OutputFormat.of(destination)
    if not kind.pyramidal:
        raise UsageError(f"{destination}: cannot hold a pyramid", "end the name in .ome.tif or .tif")
    chained = kind is OutputFormat.PLAIN_TIFF
    absent = next(store.missing(range(layout.tile_count)), None)
    if absent is not None:
        level, cell = layout.place(absent)
        raise OutputError(
            f"{destination}: tile {tuple(cell)} (row, col) of level {level} is missing", "run the same command again"
        )
    digests = tile_digests(store, layout)
    description = plain_description(info, digests) if chained else ome_description(info, layout.size, digests)
    size = _bytes_needed(store, layout, len(description) + len(info.icc or b""))
    with part_file(store.folder, destination, size, before_naming) as part:
        written = _Tiff(layout, codec, info, description, chained, force_bigtiff or size > _CLASSIC_LIMIT)
        written.write(store, part, advance or _silent)
        with part.open("r+b") as file:
            relink(file.fileno(), dropped=_dropped(codec, info))
        problems = check_file(part, decode=False)
        if problems:
            raise OutputError(f"{destination}: was written wrongly: {problems[0]}", "check the disk, then run it again")


def tile_digests(store: BlobStore, layout: PyramidLayout) -> list[Digest]:
    """The digest of every level, from the CRC-32s in the store."""
    digests = []
    for level in range(len(layout.sizes)):
        keys, grid = layout.keys(level), layout.grid(level)
        crcs = np.fromiter((store.crc(key) for key in keys), np.uint32, len(keys))
        digests.append(Digest.of(crcs.reshape(grid.rows, grid.cols)))
    return digests


@contextmanager
def part_file(
    folder: Path, destination: Path, bytes_needed: int, before_naming: Callable[[Path], bool] | None = None
) -> Iterator[Path]:
    """Yield a path in ``folder`` to write to; rename it to ``destination`` after the block, or delete it.

    The folder is kin's own, on the disk of ``destination``: beside that, a file of such a name might be the user's.
    ``before_naming`` is called with the finished file just before it is renamed, and tells whether an existing file of
    that name may be replaced (None: it may); it may also raise. The
    file is deleted if the block fails. Raises ``OutputError`` if the disk has no room for ``bytes_needed``, and for
    every ``OSError`` of the block.
    """
    part = folder / "output.part"
    with os_errors_as_output_errors(destination):
        part.unlink(missing_ok=True)  # left by a run that was killed
        free = shutil.disk_usage(destination.parent).free
        if free < bytes_needed:
            raise OutputError(
                f"{destination}: needs {bytes_text(bytes_needed)}, but only {bytes_text(free)} are free on this disk",
                "free some space and run the same command again: it continues where it stopped",
            )
        try:
            yield part
            publish(part, destination, replace=before_naming is None or before_naming(part))
        except BaseException:
            part.unlink(missing_ok=True)
            raise


@dataclass(frozen=True)
class _Tiff:
    """A pyramidal TIFF to write: what all its levels have in common."""

    layout: PyramidLayout
    codec: Codec
    info: ImageInfo
    description: bytes
    chained: bool
    big: bool

    def write(self, store: BlobStore, part: Path, advance: Callable[[int], None]) -> None:
        """Write all levels, the largest first, each as its directory followed by its tiles row by row."""
        with tifffile.TiffWriter(part, bigtiff=self.big, byteorder="<", ome=False) as tiff:
            for level, size in enumerate(self.layout.sizes):
                tiff.write(
                    _payloads(store, self.layout.keys(level), advance),
                    shape=(size.height, size.width, 3),
                    dtype="uint8",
                    tile=(self.layout.tile, self.layout.tile),
                    photometric="rgb",
                    metadata=None,
                    **self._encoding(),
                    **self._resolution(level),
                    **(self._head() if level == 0 else {"subfiletype": 1, "software": False}),
                )

    def _encoding(self) -> dict[str, Any]:
        if self.codec.lossless:
            return {"compression": "adobe_deflate", "predictor": "horizontal"}
        return {"compression": "jpeg", "subsampling": self.codec.chroma_factors}

    def _head(self) -> dict[str, Any]:
        sub_levels = 0 if self.chained else self.layout.top
        return {
            "description": self.description,
            "software": self.info.software,
            "iccprofile": self.info.icc,
            "subifds": sub_levels or None,
        }

    def _resolution(self, level: int) -> dict[str, Any]:
        if self.info.mpp is None:
            return {}
        full, size = self.layout.size, self.layout.sizes[level]
        per_cm = 1e4 / self.info.mpp
        # since sizes are rounded down, the pixels of a level are not exactly square
        resolution = (per_cm * size.width / full.width, per_cm * size.height / full.height)
        return {"resolution": resolution, "resolutionunit": "CENTIMETER"}


def _payloads(store: BlobStore, keys: Sequence[int], advance: Callable[[int], None]) -> Iterator[bytes]:
    for key in keys:
        advance(1)  # before the yield: tifffile does not resume the iterator after the last tile of a level
        yield store.get(key)


def _bytes_needed(store: BlobStore, layout: PyramidLayout, metadata_bytes: int) -> int:
    """Upper bound of the file size; exceeds it by less than 100 kB per level."""
    payloads = sum(store.size(key) for key in range(layout.tile_count))
    return payloads + 16 * layout.tile_count + metadata_bytes + _DIRECTORY_BYTES * len(layout.sizes)


def _dropped(codec: Codec, info: ImageInfo) -> Collection[Tag]:
    """Fields that tifffile writes although they would be wrong."""
    dropped: list[Tag] = []
    if not codec.lossless and codec.subsampling == "444":
        dropped.append(Tag.CHROMA_SUBSAMPLING)  # if it is (1, 1), Bio-Formats converts the colours twice
    if info.mpp is None:
        dropped += [Tag.X_RESOLUTION, Tag.Y_RESOLUTION, Tag.RESOLUTION_UNIT]
    return dropped


def _silent(_tiles: int) -> None:
    """Show no progress."""


# PNG and JPEG


def write_flat(
    store: BlobStore,
    layout: PyramidLayout,
    *,
    codec: Codec,
    info: ImageInfo,
    destination: Path,
    advance: Callable[[int], None] | None = None,
    before_naming: Callable[[Path], bool] | None = None,
) -> None:
    """Write level 0 of ``store`` as ``.png``, or as ``.jpg`` with the quality and subsampling of ``codec``.

    libvips knows no subsampling 422; 444 is used instead. The tiles should be lossless, else they are compressed twice.
    They are first written to a temporary TIFF in the folder of the store, so the disk must hold them a second time. The
    output is written into the same folder, checked and renamed. ``advance`` is called with the number of tiles
    written to the TIFF since the last call.

    Memory bound: a few rows of tiles, i.e. proportional to the width of the image, not to its area.

    Raises ``UsageError`` for another suffix, and ``OutputError`` if the image is too large for the format, a tile is
    missing or damaged, or the disk is full.
    """
    kind = OutputFormat.of(destination)
    if kind.pyramidal:
        raise UsageError(f"{destination}: not a name for a PNG or JPEG")
    if kind is OutputFormat.JPEG and max(layout.size.width, layout.size.height) > _JPEG_MAX_SIDE:
        raise OutputError(
            f"{destination}: {layout.size} pixels are more than a JPEG can hold ({_JPEG_MAX_SIDE:,} a side)",
            "name the output .ome.tif or .png",
        )
    base = PyramidLayout(layout.size, layout.tile, min_side=max(layout.size.width, layout.size.height) + 1)
    tiles = store.folder / "output.tif"
    try:
        write_pyramid(store, base, codec=codec, info=info, destination=tiles, advance=advance)
        with part_file(store.folder, destination, 0, before_naming) as part:
            _convert(tiles, part, kind, codec, info)
            problems = check_flat(part, kind)
            if problems:
                raise OutputError(
                    f"{destination}: was written wrongly: {problems[0]}", "check the disk, then run it again"
                )
    finally:
        tiles.unlink(missing_ok=True)
        _let_go_of_files()


def _let_go_of_files() -> None:
    """Empty the cache of libvips, which keeps deleted files open, so that their disk space is not freed."""
    pyvips.cache_set_max(0)
    pyvips.cache_set_max(_VIPS_CACHE)


def _convert(tiles: Path, part: Path, kind: OutputFormat, codec: Codec, info: ImageInfo) -> None:
    """Convert the TIFF ``tiles`` to a PNG or JPEG, ``part``."""
    per_mm = _UNKNOWN_PER_MM if info.mpp is None else 1e3 / info.mpp
    try:
        with utf8_name(tiles) as source, utf8_name(part, write=True) as target:
            image = pyvips.Image.tiffload(source, access="sequential", fail_on="error").copy(xres=per_mm, yres=per_mm)
            if kind is OutputFormat.PNG:
                image.pngsave(target, keep="icc")
            else:
                chroma = "on" if codec.subsampling == "420" else "off"
                image.jpegsave(target, Q=codec.quality, subsample_mode=chroma, keep="icc:exif")
    except pyvips.Error as error:
        raise OutputError(
            f"{part}: cannot be written: {' '.join(str(error).split())}", "free some space, then run it again"
        ) from error
