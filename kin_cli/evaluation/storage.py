"""How a file stores its pixels, as far as it fakes seams: tiled JPEG with subsampled chroma.

Chroma is interpolated inside a storage tile but not across its edge, so that an edge on the processing grid looks like
a seam, by a factor of up to 1.4. Reference lines at the same distance from an edge cancel it; luma does not show it.
"""

from __future__ import annotations

import math
from pathlib import Path

from kin_cli.geometry import Size
from kin_cli.metrics.seam_lines import SeamGrid
from kin_cli.pyramid.directories import Directory, MalformedTiffError, Tag, TiffDirectories
from kin_cli.slide.view import SlideView

_JPEG = 7
_HEADER_BYTES = 4096
_FRAME_HEADERS = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_PLAIN_PHASE = 16


def seam_grid(views: list[SlideView], tile_px: int, origin: tuple[int, int]) -> tuple[SeamGrid, bool]:
    """The grid whose reference lines suit the storage of all ``views``, which have one size and one frame.

    The second value is True where only luma can be trusted: the storage tiles' edges are on every boundary of the grid
    or on none of its reference lines.
    """
    phase, luma_only = _PLAIN_PHASE, False
    for view in views:
        side = chroma_tile_px(view.slide.path, view.slide.levels[view.level]) if view.read_px_per_out == 1 else None
        if side is None:
            continue
        if tile_px % side == 0 and side < tile_px:
            phase = math.lcm(phase, side)
        elif side % tile_px == 0:
            corner = (view.region.x + origin[0], view.region.y + origin[1])
            luma_only |= any(place % tile_px == 0 for place in corner)
    if phase > tile_px // 2:
        phase, luma_only = _PLAIN_PHASE, True
    return SeamGrid(views[0].size, tile_px, origin, phase), luma_only


def chroma_tile_px(path: Path, level: Size) -> int | None:
    """Side of the JPEG tiles with subsampled chroma that a TIFF stores a level in; None of any other file."""
    try:
        with path.open("rb") as file:
            tiff = TiffDirectories(file.fileno())
            for directory in tiff.chain():
                size = (tiff.number(directory, Tag.WIDTH, 0), tiff.number(directory, Tag.HEIGHT, 0))
                if size == (level.width, level.height):
                    return _chroma_tile_px(tiff, directory)
    except (MalformedTiffError, OSError):
        pass  # no TIFF, or none that tells: the slide was opened by another reader
    return None


def _chroma_tile_px(tiff: TiffDirectories, directory: Directory) -> int | None:
    offsets = tiff.values(directory, Tag.TILE_OFFSETS)
    if tiff.number(directory, Tag.COMPRESSION, 1) != _JPEG or not offsets.any():
        return None
    # an offset of 0 is a tile that was never written
    start = int(offsets[offsets != 0][0])
    width, height = tiff.number(directory, Tag.TILE_WIDTH, 0), tiff.number(directory, Tag.TILE_HEIGHT, 0)
    subsampled = _chroma_is_subsampled(tiff.bytes_at(start, min(_HEADER_BYTES, tiff.file_bytes - start)))
    return width if subsampled and width == height > 0 else None


def _chroma_is_subsampled(jpeg: bytes) -> bool:
    """What the frame header of a JPEG stream says; TIFF's own field is missing or wrong in many files."""
    at = 2
    while at + 10 <= len(jpeg) and jpeg[at] == 0xFF:
        marker, length = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if marker in _FRAME_HEADERS:
            # length, precision, height, width, number of components; then id, sampling factors and table of each
            components = jpeg[at + 10 : at + 10 + 3 * jpeg[at + 9]]
            return len(set(components[1::3])) > 1
        at += 2 + length
    return False
