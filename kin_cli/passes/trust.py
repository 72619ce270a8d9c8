"""The trust map: how far the statistics of every patch lie from those of the generator's training patches.

Pass 1 leaves the table, and the generator's file a ``Reference``; all that is left is arithmetic. The map depends
neither on kernel nor on halo, and the output is the same with or without it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kin_cli.geometry import AnyArray, Cell, Doubles, Floats, Grid, Mask, Pixels, Size
from kin_cli.models.reference import GROUPS, Reference
from kin_cli.norm.table import StatTable
from kin_cli.slide.geojson import encoded, feature, rectangle
from kin_cli.slide.view import SlideView
from kin_cli.store.files import read_regular

TRUST_MARK = "kin trust map"
"""Marks a PNG and a GeoJSON file as made by kin; followed by the name of the output."""
MEANS = {
    "colour": "colour and brightness",
    "grain": "fine contrast, as of folds and compression",
    "sharpness": "sharpness and texture",
    "structure": "structure",
}
"""What the groups of layers see, in words."""
_MEASUREMENT = "trust percentile, %"
_CELLS_AT_ONCE = 512
_NOTED = 3.0  # a note from this multiple of the fraction that is expected by chance
_NOTED_LEAST = 2  # patches
_NOTED_MEDIAN, _MEDIAN_PATCHES = 0.1, 8  # a whole slide is odd if half of so many patches are that odd
_PALE = 0.55  # how far the slide is brought to white under the colours
# Colours of percentiles from the least to the most believable, told apart by people who do not see red and green
_STEPS = ((0.001, (122, 4, 85)), (0.01, (213, 62, 79)), (0.05, (253, 174, 97)), (1.0, (69, 117, 180)))
_UNJUDGED = (150, 150, 150)


@dataclass(frozen=True, eq=False)
class TrustMap:
    """Trust percentiles of the patches of a slide.

    ``percentile`` and ``group`` are (rows, cols); the first is NaN, the second -1 where nothing is judged: no tissue,
    less than ``Reference.card.min_tissue``, or statistics that are not finite. ``weights`` are tissue fractions.
    """

    grid: Grid
    percentile: Floats
    group: AnyArray
    weights: Floats
    threshold: float
    precision: str
    note: str | None = None

    @property
    def judged(self) -> Mask:
        """The patches with a percentile, (rows, cols)."""
        return np.isfinite(self.percentile)

    @property
    def doubtful(self) -> Mask:
        """The judged patches below the threshold, (rows, cols)."""
        return self.judged & (np.nan_to_num(self.percentile, nan=1.0) < self.threshold)

    def summary(self) -> dict[str, Any]:
        """The numbers of the map as a JSON object, for the record.

        "tissue_below" and "tissue_judged" are fractions of the tissue; "by_group" counts the patches below the
        threshold by the layers that say so; "median" is 0.5 or more for tissue like that of the training.
        """
        judged, doubtful, total = self.judged, self.doubtful, float(self.weights.sum())
        inside = float(self.weights[judged].sum())
        counts = {name: int((doubtful & (self.group == number)).sum()) for number, name in enumerate(GROUPS)}
        return {
            "threshold": self.threshold,
            "patches_judged": int(judged.sum()),
            "patches_below": int(doubtful.sum()),
            "tissue_judged": round(inside / total, 4) if total else 0.0,
            "tissue_below": round(float(self.weights[doubtful].sum()) / inside, 4) if inside else 0.0,
            "by_group": counts,
            "median": round(float(np.median(self.percentile[judged])), 4) if judged.any() else None,
            **({"note": self.note} if self.note else {}),
        }


def trust_map(
    table: StatTable,
    reference: Reference,
    grid: Grid,
    weights: Floats,
    *,
    threshold: float,
    precision: str,
    measured_px: int,
    matched: bool = False,
) -> TrustMap:
    """Score every measured patch of a table against a reference. Memory bound: 512 cells of the table.

    matched: the table is of colours that ``--stain-match`` changed.
    """
    percentile = np.full((grid.rows, grid.cols), np.nan, np.float32)
    group = np.full((grid.rows, grid.cols), -1, np.int8)
    wanted = [cell for cell in table.measured() if weights[cell] >= reference.card.min_tissue]
    for first in range(0, len(wanted), _CELLS_AT_ONCE):
        cells = wanted[first : first + _CELLS_AT_ONCE]
        stats = np.stack([table.read(cell) for cell in cells])
        finite = np.isfinite(stats).all(axis=(1, 2))
        if finite.any():
            scores = reference.scores(stats[finite], precision=precision, matched=matched)
            rows, cols = np.array(cells)[finite].T
            percentile[rows, cols], group[rows, cols] = scores.percentile, scores.group
    note = None
    if measured_px != reference.card.patch_px:
        note = f"its reference was learned on patches of {reference.card.patch_px} px, these have {measured_px}"
    return TrustMap(grid, percentile, group, weights, threshold, precision, note)


def trust_note(summary: Mapping[str, Any], where: str) -> str | None:
    """The line for the console; None if the patches are about as usual as training patches are."""
    if summary["patches_judged"] == 0:
        return "trust: no patch has as much tissue as the training patches had, so none is judged"
    found = _finding(summary)
    caution = f"trust: {summary['note']}, so percentiles may be wrong" if "note" in summary else ""
    if found is None:
        return caution or None
    return f"{found}: see {where}" + (f" ({caution})" if caution else "")


def _finding(summary: Mapping[str, Any]) -> str | None:
    below, expected = float(summary["tissue_below"]), float(summary["threshold"])
    if summary["patches_below"] >= _NOTED_LEAST and below >= _NOTED * expected:
        counts = {name: count for name, count in summary["by_group"].items() if count}
        strongest = max(counts, key=lambda name: counts[name])
        return (
            f"{percent(below)} of the tissue looks like nothing the generator was trained on ({percent(expected)} of"
            f" its training patches do; mostly by {MEANS[strongest]})"
        )
    if summary["patches_judged"] >= _MEDIAN_PATCHES and summary["median"] < _NOTED_MEDIAN:
        return (
            "the slide as a whole is unlike what the generator was trained on: its median patch is as unusual as"
            f" {percent(summary['median'])} of the training patches (expected: 50 % or more)"
        )
    return None


def percent(fraction: float) -> str:
    """A fraction as text in per cent, with the digits that matter."""
    value = 100 * fraction
    return f"{value:.0f} %" if value >= 9.5 or value == 0 else f"{value:.2g} %"


# The map as files


def map_files(found: TrustMap, view: SlideView, background: Pixels, *, output: str) -> tuple[bytes, bytes]:
    """The contents of the PNG and of the GeoJSON file, which name the ``output`` that they belong to."""
    return map_png(found, background, output=output), map_geojson(found, view, output=output)


def map_picture(found: TrustMap, background: Pixels) -> Pixels:
    """The map over a pale overview (h, w, 3) of the slide, with a legend below."""
    from PIL import Image, ImageDraw

    height, width = background.shape[:2]
    base = background.astype(np.float32) * (1 - _PALE) + 255 * _PALE
    grid = found.grid
    rows = ((np.arange(height) + 0.5) * (grid.size.height / height / grid.step)).astype(int)
    cols = ((np.arange(width) + 0.5) * (grid.size.width / width / grid.step)).astype(int)
    colours, shown = cell_colours(found)
    opacity = np.where(shown, 0.6, 0.0)[rows][:, cols][..., None]
    mixed = base * (1 - opacity) + colours[rows][:, cols] * opacity
    line, margin, least = 22, 8, 460
    canvas = Image.new("RGB", (max(width, least), height + line * (len(_STEPS) + 1) + 2 * margin), "white")
    canvas.paste(Image.fromarray(np.rint(mixed).clip(0, 255).astype(np.uint8)))
    draw = ImageDraw.Draw(canvas)
    y = height + margin
    for colour, text in legend():
        draw.rectangle((margin, y + 4, margin + 26, y + 16), fill=colour)
        draw.text((margin + 36, y + 4), text, fill="black")
        y += line
    return np.asarray(canvas)


def legend() -> list[tuple[tuple[int, int, int], str]]:
    """Colours of the map and what they mean."""
    rows, low = [], 0.0
    for high, colour in _STEPS:
        name = f"below {percent(high)}" if low == 0 else f"{percent(low)} to {percent(high)}"
        rows.append((colour, f"{name} of the training patches are as unusual"))
        low = high
    return [*rows, (_UNJUDGED, "too little tissue to be judged")]


def cell_colours(found: TrustMap) -> tuple[Doubles, Mask]:
    """Colour of each cell (rows, cols, 3), and which cells are drawn: all with tissue."""
    values = np.nan_to_num(found.percentile, nan=1.0)
    step = np.searchsorted([high for high, _ in _STEPS[:-1]], values, side="right")
    colours = np.array([colour for _, colour in _STEPS], np.float64)[step]
    colours[~found.judged] = _UNJUDGED
    return colours, found.weights > 0


def map_png(found: TrustMap, background: Pixels, *, output: str) -> bytes:
    """``map_picture`` as a PNG file that says which output it belongs to."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    about, file = PngInfo(), io.BytesIO()
    about.add_itxt("Software", _mark(output))
    Image.fromarray(map_picture(found, background)).save(file, "PNG", pnginfo=about)
    return file.getvalue()


def map_geojson(found: TrustMap, view: SlideView, *, output: str) -> bytes:
    """The map for QuPath: one square for every judged patch, on the slide that was translated.

    Measurements hold the percentile; the classification says whether it is below the threshold, and by which layers;
    "tissue" is the tissue fraction. ``read_map`` reads it again.
    """
    size = found.grid.size
    return encoded(
        (_feature(found, view, Cell(int(row), int(col))) for row, col in np.argwhere(found.judged)),
        generator=_mark(output),
        grid={"width": size.width, "height": size.height, "patch": found.grid.step, "threshold": found.threshold},
    )


def _mark(output: str) -> str:
    """What says in a file that kin made it, and for which output."""
    return f"{TRUST_MARK} of {output.encode(errors='replace').decode()}"


def _feature(found: TrustMap, view: SlideView, cell: Cell) -> dict[str, Any]:
    value, group = float(found.percentile[cell]), GROUPS[int(found.group[cell])]
    name = f"unlike training: {MEANS[group]}" if value < found.threshold else "like training"
    step = int(np.searchsorted([high for high, _ in _STEPS[:-1]], value, side="right"))
    square = rectangle(view, found.grid.clipped(cell))
    made = feature(square, name, _STEPS[step][1], measurements={_MEASUREMENT: 100 * value})
    tissue = round(float(found.weights[cell]), 6)
    made["properties"] |= {"isLocked": True, "cell": list(cell), "group": int(found.group[cell]), "tissue": tissue}
    return made


def read_map(path: Path) -> TrustMap | None:
    """The map that ``map_geojson`` wrote to a file; None if there is none, or it is another program's.

    Weights are those of the judged patches, 0 elsewhere.
    """
    try:
        content = json.loads(read_regular(path))
        if not str(content["generator"]).startswith(TRUST_MARK):
            return None
        known = content["grid"]
        grid = Grid(Size(int(known["width"]), int(known["height"])), int(known["patch"]))
        percentile = np.full((grid.rows, grid.cols), np.nan, np.float32)
        group = np.full(percentile.shape, -1, np.int8)
        weights = np.zeros(percentile.shape, np.float32)
        for entry in content["features"]:
            row, col = (int(number) for number in entry["properties"]["cell"])
            percentile[row, col] = float(entry["properties"]["measurements"][_MEASUREMENT]) / 100
            group[row, col] = int(entry["properties"]["group"])
            weights[row, col] = float(entry["properties"].get("tissue", 1))
        return TrustMap(grid, percentile, group, weights, float(known["threshold"]), "fp32")
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None
