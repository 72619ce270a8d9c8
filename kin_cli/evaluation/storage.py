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
    if tiff.number(directory, Tag.COMPRESSION, 1) != _JPEG or tiff.number(directory, Tag.SAMPLES, 1) != 3:
        return None
    # where nothing is said, TIFF means 2×2
    factors = [int(factor) for factor in tiff.values(directory, Tag.CHROMA_SUBSAMPLING).flat] or [2, 2]
    width, height = tiff.number(directory, Tag.TILE_WIDTH, 0), tiff.number(directory, Tag.TILE_HEIGHT, 0)
    return width if max(factors) > 1 and width == height > 0 else None
