"""The seam metric on whole slides: which grid, which statistic, tissue only, tile by tile."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kin_cli.concurrency import prefetch
from kin_cli.evaluation.settings import SeamChoice
from kin_cli.evaluation.tiles import check_same_size
from kin_cli.geometry import Size
from kin_cli.metrics.colour import Pixels
from kin_cli.metrics.seams import UNITS, SeamGrid, SeamLine, SeamMeter, SeamResult, SeamSummary
from kin_cli.progress import Progress
from kin_cli.pyramid.ifd import Directory, MalformedTiffError, Tag, TiffDirectories
from kin_cli.slide.tissue import TissueMask
from kin_cli.slide.view import SlideView

_LUMA_NOTE = (
    "the file stores tiled JPEG with subsampled chroma on this very grid, which looks like seams in colour: "
    "trust step_luma, or measure a lossless output"
)
_JPEG = 7
_HEADER_BYTES = 4096
_FRAME_HEADERS = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_PLAIN_PHASE = 16
_LEGEND_PX = 80
_LEGEND_WIDTH_PX = 420
_SCALE_END = {"ΔE": 5.0, "8-bit": 12.0}
_NUMBERED = 5
# no excess, half of the scale, all of it
_STOPS = np.array([[90, 140, 190], [250, 190, 40], [190, 0, 30]], np.float64)


# FROM evaluation.slide_seams: The seam metric on whole slides: which grid, which statistic, tissue only, tile by tile.


@dataclass(frozen=True, eq=False)
class SlideSeams:
    """The seams of a slide, the statistic to look at first, and what the reader must know."""

    report: SeamSummary
    statistic: str
    note: str | None

    @property
    def figure(self) -> SeamResult:
        """The headline: both directions."""
        return self.report.figure(self.statistic)

    @property
    def unit(self) -> str:
        """Unit of the headline's excess."""
        return UNITS[self.statistic]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; the worst boundaries are those of the headline's statistic."""
        worst = [asdict(line) for line in self.report.worst(self.statistic)]
        return {"headline": self.statistic, "note": self.note, **self.report.as_dict(), "worst": worst}


def measure_slide_seams(
    view: SlideView,
    choice: SeamChoice,
    *,
    source: SlideView | None,
    mask: TissueMask,
    progress: Progress,
    workers: int,
) -> SlideSeams:
    """Measure a slide, with its source as the control where there is one. Memory bound: see ``SeamMeter``.

    Raises:
        UsageError: tiles under 64 px.
        InputError: the source has another size.
    """
    views = [view] if source is None else [view, source]
    check_same_size(view, views[-1])
    grid, luma_only = seam_grid(views, choice.patch_px, choice.origin)
    meter = SeamMeter(grid, view.read, source=None if source is None else source.read, mask=mask)
    blocks = list(meter.blocks())
    parts = []
    with progress.stage("seams", sum(map(len, blocks))) as advance:
        for block, part in zip(blocks, prefetch(meter.measure, blocks, workers=workers, ahead=workers), strict=True):
            parts.append(part)
            advance(len(block))
    statistic, note = ("step_luma", _LUMA_NOTE) if luma_only else ("step", None)
    return SlideSeams(meter.report(parts), statistic, note)


# FROM evaluation.storage: How a file stores its pixels, as far as it fakes seams: tiled JPEG with subsampled chroma. Chroma is interpolated inside a storage tile but not across its edge, so that an edge on the processing grid looks like a seam, by a factor of up to 1.4. Reference lines at the same distance from an edge cancel it; luma does not show it.


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


# FROM evaluation.heatmap: A map of the seams: every boundary over the slide's pale thumbnail, coloured by what it adds to the texture.


def seam_map(seams: SlideSeams, thumbnail: Pixels) -> Image.Image:
    """The map: boundaries coloured by their excess in the headline's statistic, the five worst numbered, a legend.

    ``thumbnail`` (h, w, 3) shows the whole image that was measured. The scale is the same for every slide: half of it
    is about where a seam becomes obvious.
    """
    lines = seams.report.lines(seams.statistic)
    height, width = thumbnail.shape[:2]
    scale = width / seams.report.grid.size.width
    top = _SCALE_END[seams.unit]
    picture = Image.new("RGB", (max(width, _LEGEND_WIDTH_PX), height + _LEGEND_PX), "white")
    picture.paste(Image.fromarray(_pale(thumbnail)))
    draw = ImageDraw.Draw(picture)
    # the strongest are drawn last, over the others
    for line in sorted(lines, key=lambda line: line.excess):
        draw.rectangle(_bar(line, scale, line.excess / top), fill=_colour(line.excess / top))
    for number, line in enumerate(seams.report.worst(seams.statistic, _NUMBERED), start=1):
        left, upper, right, lower = _bar(line, scale, 0)
        _mark(draw, str(number), ((left + right) / 2, (upper + lower) / 2))
    _legend(draw, seams, height)
    return picture


def _pale(thumbnail: Pixels) -> Pixels:
    grey = np.asarray(Image.fromarray(thumbnail).convert("L").convert("RGB"), np.float32)
    return np.rint(255 - 0.45 * (255 - (0.6 * grey + 0.4 * thumbnail))).astype(np.uint8)


def _colour(fraction: float) -> tuple[int, int, int]:
    place = min(max(fraction, 0.0), 1.0) * (len(_STOPS) - 1)
    red, green, blue = (round(float(np.interp(place, range(len(_STOPS)), channel))) for channel in _STOPS.T)
    return red, green, blue


def _bar(line: SeamLine, scale: float, fraction: float) -> tuple[float, float, float, float]:
    """The rectangle that stands for a boundary: the wider the worse, shorter than it so that neighbours stay apart."""
    length = line.length * scale
    half, gap = max(0.5 + min(fraction, 1), length * (0.01 + 0.05 * min(fraction, 1))), length / 10
    x, y = line.x * scale, line.y * scale
    if line.direction == "vertical":
        return x - half, y + gap, x + half, y + length - gap
    return x + gap, y - half, x + length - gap, y + half


def _mark(draw: ImageDraw.ImageDraw, text: str, centre: tuple[float, float]) -> None:
    x, y = centre
    draw.ellipse((x - 9, y - 9, x + 9, y + 9), fill="white", outline="black", width=2)
    draw.text((x, y), text, fill="black", anchor="mm", font=ImageFont.load_default(13))


def _legend(draw: ImageDraw.ImageDraw, seams: SlideSeams, height: int) -> None:
    report, top = seams.report, _SCALE_END[seams.unit]
    left, upper = 16, height + 46
    for step in range(200):
        draw.line((left + step, upper, left + step, upper + 12), fill=_colour(step / 199))
    font = ImageFont.load_default(13)
    # Pillow's own font has no Greek letters
    unit = seams.unit.replace("ΔE", "dE")
    text = f"excess at {len(report.table)} boundaries of {report.grid.tile} px ({seams.statistic}, {unit})"
    draw.text((left, height + 8), text, fill="black", font=font)
    control = "no source: the slide's own edges count" if report.table.source is None else "against the source"
    draw.text((left, height + 25), control, fill="black", font=font)
    for fraction in (0.0, 0.5, 1.0):
        label = f"{fraction * top:g}" + ("+" if fraction == 1 else "")
        draw.text((left + fraction * 199, upper + 14), label, fill="black", anchor="ma", font=font)
