"""A map of the seams: every boundary over the slide's pale thumbnail, coloured by what it adds to the texture."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kin_cli.evaluation.slide_seams import SlideSeams
from kin_cli.metrics.colour import Pixels
from kin_cli.metrics.seams import SeamLine

_LEGEND_PX = 80
_LEGEND_WIDTH_PX = 420
_SCALE_END = {"ΔE": 5.0, "8-bit": 12.0}
_NUMBERED = 5
# no excess, half of the scale, all of it
_STOPS = np.array([[90, 140, 190], [250, 190, 40], [190, 0, 30]], np.float64)


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


def _colour(share: float) -> tuple[int, int, int]:
    place = min(max(share, 0.0), 1.0) * (len(_STOPS) - 1)
    red, green, blue = (round(float(np.interp(place, range(len(_STOPS)), channel))) for channel in _STOPS.T)
    return red, green, blue


def _bar(line: SeamLine, scale: float, share: float) -> tuple[float, float, float, float]:
    """The rectangle that stands for a boundary: the wider the worse, shorter than it so that neighbours stay apart."""
    length = line.length * scale
    half, gap = max(0.5 + min(share, 1), length * (0.01 + 0.05 * min(share, 1))), length / 10
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
    for share in (0.0, 0.5, 1.0):
        label = f"{share * top:g}" + ("+" if share == 1 else "")
        draw.text((left + share * 199, upper + 14), label, fill="black", anchor="ma", font=font)
