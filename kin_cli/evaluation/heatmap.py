"""A map of the seams: every boundary over the slide's pale thumbnail, coloured by what it adds to the texture."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kin_cli.evaluation.slide_seams import SlideSeams
from kin_cli.metrics.colour import Pixels
from kin_cli.metrics.seams import SeamLine

_LEGEND_PX = 64
_NUMBERED = 5
# no excess, half of the scale, all of it
_STOPS = np.array([[90, 140, 190], [250, 190, 40], [190, 0, 30]], np.float64)


def seam_map(seams: SlideSeams, thumbnail: Pixels) -> Image.Image:
    """The map: boundaries coloured by their excess in the headline's statistic, the five worst numbered, a legend.

    ``thumbnail`` (h, w, 3) shows the whole image that was measured. The scale ends at the largest of the worst
    excesses but one in a hundred, at least 1.
    """
    lines = seams.report.lines(seams.statistic)
    height, width = thumbnail.shape[:2]
    scale = width / seams.report.grid.size.width
    top = _scale_end([line.excess for line in lines])
    picture = Image.new("RGB", (max(width, 420), height + _LEGEND_PX), "white")
    picture.paste(Image.fromarray(_pale(thumbnail)))
    draw = ImageDraw.Draw(picture)
    # the strongest are drawn last, over the others
    for line in sorted(lines, key=lambda line: line.excess):
        draw.rectangle(_bar(line, scale), fill=_colour(line.excess / top))
    for number, line in enumerate(seams.report.worst(seams.statistic, _NUMBERED), start=1):
        left, upper, right, lower = _bar(line, scale)
        _mark(draw, str(number), ((left + right) / 2, (upper + lower) / 2))
    _legend(draw, seams, (height, top))
    return picture


def _pale(thumbnail: Pixels) -> Pixels:
    grey = np.asarray(Image.fromarray(thumbnail).convert("L").convert("RGB"), np.float32)
    return np.rint(255 - 0.45 * (255 - (0.6 * grey + 0.4 * thumbnail))).astype(np.uint8)


def _scale_end(excesses: list[float]) -> float:
    strong = float(np.percentile(excesses, 99)) if excesses else 0.0
    return max(1.0, math.ceil(2 * strong) / 2)


def _colour(share: float) -> tuple[int, int, int]:
    place = min(max(share, 0.0), 1.0) * (len(_STOPS) - 1)
    red, green, blue = (round(float(np.interp(place, range(len(_STOPS)), channel))) for channel in _STOPS.T)
    return red, green, blue


def _bar(line: SeamLine, scale: float) -> tuple[float, float, float, float]:
    """The rectangle that stands for a boundary, a little shorter than it so that neighbours stay apart."""
    length = line.length * scale
    half, gap = max(1.0, length / 16), length / 10
    x, y = line.x * scale, line.y * scale
    if line.direction == "vertical":
        return x - half, y + gap, x + half, y + length - gap
    return x + gap, y - half, x + length - gap, y + half


def _mark(draw: ImageDraw.ImageDraw, text: str, centre: tuple[float, float]) -> None:
    x, y = centre
    draw.ellipse((x - 9, y - 9, x + 9, y + 9), fill="white", outline="black", width=2)
    draw.text((x, y), text, fill="black", anchor="mm", font=ImageFont.load_default(13))


def _legend(draw: ImageDraw.ImageDraw, seams: SlideSeams, place: tuple[int, float]) -> None:
    height, top = place
    left, upper = 16, height + 30
    for step in range(200):
        draw.line((left + step, upper, left + step, upper + 12), fill=_colour(step / 199))
    font = ImageFont.load_default(13)
    count = len(seams.report.table)
    text = f"excess at {count} boundaries of {seams.report.grid.tile} px ({seams.statistic}, {_plain(seams.unit)})"
    draw.text((left, height + 8), text, fill="black", font=font)
    for share in (0.0, 0.5, 1.0):
        label = f"{share * top:g}" + ("+" if share == 1 else "")
        draw.text((left + share * 199, upper + 14), label, fill="black", anchor="ma", font=font)


def _plain(unit: str) -> str:
    """The unit in letters that Pillow's own font has."""
    return unit.replace("ΔE", "dE")
