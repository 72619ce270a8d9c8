"""Photographs: the image alone, as PNG or JPEG."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyvips

from kin_cli.errors import OutputError, UsageError
from kin_cli.pyramid.check import check_flat
from kin_cli.pyramid.codec import Codec
from kin_cli.pyramid.formats import OutputFormat
from kin_cli.pyramid.layout import PyramidLayout
from kin_cli.pyramid.metadata import ImageInfo
from kin_cli.pyramid.writer import part_file, write_pyramid
from kin_cli.store.blobs import BlobStore

_JPEG_MAX_SIDE = 65_500  # libjpeg's own limit, a little below the format's 65,535
_UNKNOWN_PER_MM = 72 / 25.4  # 72 dpi says: unknown
_VIPS_CACHE = 100  # operations: the default of libvips


def write_flat(
    store: BlobStore,
    layout: PyramidLayout,
    *,
    codec: Codec,
    info: ImageInfo,
    destination: Path,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write level 0 of ``store`` as ``.png``, or as ``.jpg`` of the codec's quality (its subsampling 422 becomes 444).

    The tiles should be lossless, else they are compressed twice. They pass through a TIFF in the store's folder, so
    the disk must hold them once more. Written as ``<destination>.part``, checked and renamed. ``progress`` is called
    with the number of tiles gone into that TIFF since the last call.

    Memory bound: a few rows of tiles, i.e. proportional to the width of the image, not to its area.

    Raises ``UsageError`` for another suffix, and ``OutputError`` where the image is too large for the format, a tile
    is missing or damaged, or the disk is full.
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
    tiles = store.folder / f"{destination.name}.tif"
    try:
        write_pyramid(store, base, codec=codec, info=info, destination=tiles, progress=progress)
        with part_file(destination, 0) as part:
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
    """Empty the cache of libvips, which keeps deleted files open, and so their space on the disk."""
    pyvips.cache_set_max(0)
    pyvips.cache_set_max(_VIPS_CACHE)


def _convert(tiles: Path, part: Path, kind: OutputFormat, codec: Codec, info: ImageInfo) -> None:
    per_mm = _UNKNOWN_PER_MM if info.mpp is None else 1e3 / info.mpp
    try:
        image = pyvips.Image.tiffload(str(tiles), access="sequential", fail_on="error").copy(xres=per_mm, yres=per_mm)
        if kind is OutputFormat.PNG:
            image.pngsave(str(part), keep="icc")
        else:
            chroma = "on" if codec.subsampling == "420" else "off"
            image.jpegsave(str(part), Q=codec.quality, subsample_mode=chroma, keep="icc:exif")
    except pyvips.Error as error:
        raise OutputError(
            f"{part}: cannot be written: {' '.join(str(error).split())}", "free some space, then run it again"
        ) from error
