"""The seam metric on whole slides: the grid and statistic that suit how the file is stored, and a map of the seams.

JPEG tiles with subsampled chroma fake seams: chroma is interpolated inside a tile of the file but not across its edge,
so that an edge on the grid of patches looks like a seam, by a factor of up to 1.4. Reference lines at the same distance
from an edge cancel this; luma does not show it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kin_cli.concurrency import prefetch
from kin_cli.errors import NoTissueError
from kin_cli.evaluation.settings import SeamChoice
from kin_cli.evaluation.tiles import check_same_size
from kin_cli.geometry import Box, Pixels, Size, scale_bar
from kin_cli.metrics.seams import UNITS, SeamGrid, SeamLine, SeamMeter, SeamResult, SeamSummary
from kin_cli.progress import Progress
from kin_cli.pyramid.ifd import Directory, MalformedTiffError, Tag, TiffDirectories
from kin_cli.slide import geojson
from kin_cli.slide.tissue import TissueMask
from kin_cli.slide.view import SlideView

_LUMA_NOTE = (
    "the file stores JPEG tiles with subsampled chroma on the grid of the patches, which looks like seams in colour: "
    "trust step_luma, or measure a lossless output"
)
_JPEG = 7  # TIFF compression
_HEADER_BYTES = 4096
_FRAME_HEADERS = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_PLAIN_PHASE = 16
# An excess below the first is not visible, above the second obvious; the same limits in grey levels: 1 ΔE is about 2.5.
VISIBLE = {"ΔE": (0.5, 2.3), "8-bit": (1.2, 5.8)}
UNITS_IN_WORDS = {"ΔE": "ΔE", "8-bit": "grey levels"}
TOO_FEW = "too few to judge"
# sizes of the map and of its legend
_LEGEND_PX = 80
_LEGEND_WIDTH_PX = 420
_SCALE_END = {"ΔE": 5.0, "8-bit": 12.0}
_IN_GEOJSON = 200
_NUMBERED, _MARK_PX = 5, 9  # worst borders with a number, and the radius of its circle
# colours at no excess, at half of the scale and at its end
_STOPS = np.array([[90, 140, 190], [250, 190, 40], [190, 0, 30]], np.float64)


@dataclass(frozen=True, eq=False)
class SlideSeams:
    """The seams of a slide, the statistic of the headline, and a note on what limits the measurement, if anything."""

    summary: SeamSummary
    statistic: str
    note: str | None

    @property
    def result(self) -> SeamResult:
        """The headline: the chosen statistic over both directions."""
        return self.summary.result(self.statistic)

    @property
    def unit(self) -> str:
        """Unit of the headline's excess."""
        return UNITS[self.statistic]

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the table, ready for JSON; the worst borders by the headline's statistic."""
        worst = [asdict(line) for line in self.summary.worst(self.statistic)]
        return {"headline": self.statistic, "note": self.note, **self.summary.as_dict(), "worst": worst}


def measure_slide_seams(
    view: SlideView,
    choice: SeamChoice,
    *,
    source: SlideView | None,
    mask: TissueMask,
    progress: Progress,
    workers: int,
) -> SlideSeams:
    """Measure the seams of a slide where there is tissue, with its source, if any, as the control.

    Memory bound: see ``SeamMeter``.

    Raises:
        UsageError: patches under 64 px.
        InputError: the source has another size.
        NoTissueError: the mask shows none.
    """
    if not mask.mask.any():
        raise NoTissueError(f"{(source or view).slide.path}: no tissue in it", "--tissue none measures everything")
    views = [view] if source is None else [view, source]
    check_same_size(view, views[-1])
    grid, luma_only = seam_grid(views, choice.patch_px, choice.origin)
    meter = SeamMeter(grid, view.read, source=None if source is None else source.read, mask=mask)
    blocks = list(meter.blocks())
    parts = []
    with progress.stage("seams", sum(map(len, blocks)), "borders") as advance:
        for block, part in zip(blocks, prefetch(meter.measure, blocks, workers=workers, ahead=workers), strict=True):
            parts.append(part)
            advance(len(block))
    statistic, note = ("step_luma", _LUMA_NOTE) if luma_only else ("step", None)
    return SlideSeams(meter.summary(parts), statistic, note)


def verdict(result: SeamResult, unit: str) -> str:
    """Say whether seams of this excess are visible."""
    low, high = VISIBLE[unit]
    if result.too_few:
        return TOO_FEW
    if result.excess is None:
        return "unknown"
    if result.excess < low:
        return "not visible"
    return "obvious" if result.excess > high else "perhaps visible"


def interval_text(result: SeamResult, *, digits: int = 3, missing: str = "none") -> str:
    """The 95 % interval of a result."""
    if result.interval is None:
        return missing
    low, high = result.interval
    return f"{low:.{digits}f} to {high:.{digits}f}"


def in_words(seams: SlideSeams) -> str:
    """One sentence on the seams of a slide for people who look at slides, without terms of the metric."""
    result, (low, _) = seams.result, VISIBLE[seams.unit]
    if result.n == 0:
        return "There is no border between two whole patches with tissue, so nothing to judge."
    if result.too_few or result.excess is None:
        return f"Only {result.n} borders between patches could be measured, too few to judge whether they show."
    unit = UNITS_IN_WORDS[seams.unit]
    size = f"{result.excess:.2f} {unit} more than the tissue explains"
    return {
        "not visible": f"The borders between patches are not visible: colours differ across them by {size}, and less"
        f" than {low} cannot be seen.",
        "perhaps visible": "The borders between patches can perhaps be seen where tissue is even: colours differ across"
        f" them by {size}.",
        "obvious": f"The borders between patches are obvious: colours jump across them by {size}. Such a straight edge"
        " is no structure of the tissue.",
    }[verdict(result, seams.unit)]


def seam_map(seams: SlideSeams, thumbnail: Pixels, *, mpp: float | None = None) -> Image.Image:
    """Draw a map of all patch borders, coloured by the excess of the headline's statistic, with a legend.

    The bars of a border are on both sides of it, so that it can be seen between them. The five worst borders are
    numbered. ``thumbnail`` (h, w, 3) is the whole image that was measured; it is drawn pale beneath the bars. ``mpp``
    is the µm per pixel of that image, for the scale bar. The colour scale is the same for every slide; from about half
    of it, seams are obvious.
    """
    lines = seams.summary.lines(seams.statistic)
    height, width = thumbnail.shape[:2]
    scale = width / seams.summary.grid.size.width
    top = _SCALE_END[seams.unit]
    picture = Image.new("RGB", (max(width, _LEGEND_WIDTH_PX), height + _LEGEND_PX), "white")
    picture.paste(Image.fromarray(_pale(thumbnail)))
    draw = ImageDraw.Draw(picture)
    # The strongest last, on top of the others.
    for line in sorted(lines, key=lambda line: line.excess):
        for bar in _bars(line, scale, line.excess / top):
            draw.rectangle(bar, fill=_colour(line.excess / top))
    for number, line in enumerate(seams.summary.worst(seams.statistic, _NUMBERED), start=1):
        _mark(draw, str(number), _beside(line, scale, line.excess / top))
    _legend(draw, seams, height)
    _draw_scale(draw, scale_bar(width / scale, mpp), scale=scale, corner=(width - 10, height - 10))
    return picture


def worst_as_geojson(seams: SlideSeams, view: SlideView) -> bytes:
    """The 200 worst borders of ``view`` as lines with their excess, coloured as in the map, for QuPath."""
    top = _SCALE_END[seams.unit]
    features = []
    for number, worst in enumerate(seams.summary.worst(seams.statistic, _IN_GEOJSON), start=1):
        across = worst.direction == "vertical"
        end = (worst.x, worst.y + worst.length) if across else (worst.x + worst.length, worst.y)
        measured = {f"excess {seams.unit}": worst.excess}
        place = geojson.line(view, worst.x, worst.y, *end)
        colour = _colour(worst.excess / top)
        features.append(geojson.feature(place, "Border", colour, name=f"border {number}", measurements=measured))
    return geojson.encoded(features)


def close_up(x: int, y: int, *, side: int, size: Size) -> Box:
    """Return a square around (x, y), moved inside an image of ``size`` and no larger than it."""
    width, height = min(side, size.width), min(side, size.height)
    left = min(max(0, x - width // 2), size.width - width)
    upper = min(max(0, y - height // 2), size.height - height)
    return Box(left, upper, width, height)


def seam_grid(views: list[SlideView], patch_px: int, origin: tuple[int, int]) -> tuple[SeamGrid, bool]:
    """Choose a grid whose reference lines suit the storage of all ``views``, which show the same area at the same size.

    The second value is True if only luma can be trusted: edges of the files' tiles are on every border of the grid,
    and no reference line can be on one.
    """
    phase, luma_only = _PLAIN_PHASE, False
    for view in views:
        side = chroma_tile_px(view.slide.path, view.slide.levels[view.level]) if view.read_px_per_out == 1 else None
        if side is None:
            continue
        if patch_px % side == 0 and side < patch_px:
            phase = math.lcm(phase, side)
        elif side % patch_px == 0:
            corner = (view.region.x + origin[0], view.region.y + origin[1])
            luma_only |= any(place % patch_px == 0 for place in corner)
    if phase > patch_px // 2:
        phase, luma_only = _PLAIN_PHASE, True
    return SeamGrid(views[0].size, patch_px, origin, phase), luma_only


def chroma_tile_px(path: Path, level: Size) -> int | None:
    """Side of the JPEG tiles with subsampled chroma in which a TIFF stores a level; None if it is stored otherwise."""
    try:
        with path.open("rb") as file:
            tiff = TiffDirectories(file.fileno())
            for directory in tiff.chain():
                size = (tiff.number(directory, Tag.WIDTH, 0), tiff.number(directory, Tag.HEIGHT, 0))
                if size == (level.width, level.height):
                    return _chroma_tile_px(tiff, directory)
    except (MalformedTiffError, OSError):
        pass  # not a TIFF that this reader understands; the slide was opened by another one
    return None


def _chroma_tile_px(tiff: TiffDirectories, directory: Directory) -> int | None:
    offsets = tiff.values(directory, Tag.TILE_OFFSETS)
    if tiff.number(directory, Tag.COMPRESSION, 1) != _JPEG or not offsets.any():
        return None
    # The offset of a tile that was never written is 0.
    start = int(offsets[offsets != 0][0])
    width, height = tiff.number(directory, Tag.TILE_WIDTH, 0), tiff.number(directory, Tag.TILE_HEIGHT, 0)
    subsampled = _chroma_is_subsampled(tiff.bytes_at(start, min(_HEADER_BYTES, tiff.file_bytes - start)))
    return width if subsampled and width == height > 0 else None


def _chroma_is_subsampled(jpeg: bytes) -> bool:
    """Tell by the frame header of a JPEG stream; the field in the TIFF is missing or wrong in many files."""
    at = 2
    while at + 10 <= len(jpeg) and jpeg[at] == 0xFF:
        marker, length = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if marker in _FRAME_HEADERS:
            # length, precision, height, width, number of components; then id, sampling factors, table of each component
            components = jpeg[at + 10 : at + 10 + 3 * jpeg[at + 9]]
            return len(set(components[1::3])) > 1
        at += 2 + length
    return False


def _pale(thumbnail: Pixels) -> Pixels:
    grey = np.asarray(Image.fromarray(thumbnail).convert("L").convert("RGB"), np.float32)
    return np.rint(255 - 0.45 * (255 - (0.6 * grey + 0.4 * thumbnail))).astype(np.uint8)


def _colour(fraction: float) -> tuple[int, int, int]:
    place = min(max(fraction, 0.0), 1.0) * (len(_STOPS) - 1)
    red, green, blue = (round(float(np.interp(place, range(len(_STOPS)), channel))) for channel in _STOPS.T)
    return red, green, blue


def _bars(line: SeamLine, scale: float, fraction: float) -> tuple[tuple[float, float, float, float], ...]:
    """Corners of the two bars of a border: thicker if it is worse, shorter than it so that bars do not touch."""
    length = line.length * scale
    away, thick = _distance_and_thickness(length, fraction)
    x, y, gap = round(line.x * scale), round(line.y * scale), length / 10
    # Pillow draws the last row and column of a rectangle, too
    low, high = (-away - thick, -away - 1), (away, away + thick - 1)
    if line.direction == "vertical":
        return tuple((x + near, y + gap, x + far, y + length - gap) for near, far in (low, high))
    return tuple((x + gap, y + near, x + length - gap, y + far) for near, far in (low, high))


def _distance_and_thickness(length: float, fraction: float) -> tuple[int, int]:
    """Pixels between a border and its bars, and thickness of each, for a border of ``length`` pixels in the map."""
    return max(1, round(length * 0.03)), max(1, round(length * (0.01 + 0.05 * min(fraction, 1))))


def _beside(line: SeamLine, scale: float, fraction: float) -> tuple[float, float]:
    """Centre of the number of a border, beyond one of its bars."""
    x, y = (place * scale for place in line.middle)
    away = sum(_distance_and_thickness(line.length * scale, fraction)) + _MARK_PX + 1
    return (x + away, y) if line.direction == "vertical" else (x, y + away)


def _draw_scale(
    draw: ImageDraw.ImageDraw, bar: tuple[float, str] | None, *, scale: float, corner: tuple[int, int]
) -> None:
    """Draw a scale bar with its label above it, its lower right end at ``corner``; nothing if there is none."""
    if bar is None:
        return
    (x, y), length = corner, bar[0] * scale
    draw.rectangle((x - length - 1, y - 5, x + 1, y + 1), fill="white")
    draw.rectangle((x - length, y - 4, x, y), fill="black")
    font, middle = ImageFont.load_default(13), (x - length / 2, y - 7)
    label = bar[1].replace("µ", "u")  # Pillow's built-in font has no Greek letters
    draw.text(middle, label, fill="black", anchor="mb", font=font, stroke_width=2, stroke_fill="white")


def _mark(draw: ImageDraw.ImageDraw, text: str, centre: tuple[float, float]) -> None:
    x, y = centre
    around = (x - _MARK_PX, y - _MARK_PX, x + _MARK_PX, y + _MARK_PX)
    draw.ellipse(around, fill="white", outline="black", width=2)
    draw.text((x, y), text, fill="black", anchor="mm", font=ImageFont.load_default(13))


def _legend(draw: ImageDraw.ImageDraw, seams: SlideSeams, height: int) -> None:
    summary, top = seams.summary, _SCALE_END[seams.unit]
    left, upper = 16, height + 46
    for step in range(200):
        draw.line((left + step, upper, left + step, upper + 12), fill=_colour(step / 199))
    font = ImageFont.load_default(13)
    # Pillow's built-in font has no Greek letters.
    unit = seams.unit.replace("ΔE", "dE")
    text = f"excess at {len(summary.table)} borders of {summary.grid.patch_px} px ({seams.statistic}, {unit})"
    draw.text((left, height + 8), text, fill="black", font=font)
    control = "no source: the slide's own edges count" if summary.table.source is None else "against the source"
    draw.text((left, height + 25), control, fill="black", font=font)
    for fraction in (0.0, 0.5, 1.0):
        label = f"{fraction * top:g}" + ("+" if fraction == 1 else "")
        draw.text((left + fraction * 199, upper + 14), label, fill="black", anchor="ma", font=font)
