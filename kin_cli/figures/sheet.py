"""Sheets that compare pictures: rows show the same place in all columns, with a table of metrics below.

Figure 4 of the paper for any slide, and its Figures S8 and S9.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kin_cli.evaluation.run import seam_detail
from kin_cli.evaluation.seams import TOO_FEW, interval_text
from kin_cli.figures.compare import Column, Comparison
from kin_cli.figures.plots import new_figure, shown_name
from kin_cli.geometry import Box, Pixels, Size, scale_bar

_COLUMN_IN = 2.5
_TALLEST = 1.5  # height over width of a picture
_LEFT_IN, _GAP_IN, _EDGE_IN = 1.35, 0.09, 0.15
_TITLE_IN, _LINE_IN, _SECTION_IN = 0.27, 0.2, 0.3
_BOLD_CHARACTER_IN, _SMALL_CHARACTER_IN = 0.1, 0.06  # a little more than the mean width of a character
_GREY = "#555555"
_METRICS = {
    "ssim": "SSIM ↑",
    "fsim": "FSIM ↑",
    "sobel_y": "Sobel, Y ↓",
    "piqe": "PIQE ↓",
    "niqe": "NIQE ↓",
    "histogram": "histogram ↑",
    "fid": "FID ↓",
    "kid": "KID ↓",
}
_NOTE = (
    "R*: step in colour across patch borders over the step beside them, relative to the source; 1 is seamless.  "
    "In brackets: 95 % interval.  "
    "excess: the step alone; under 0.5 ΔE it is not visible.  Red ticks: patch borders."
)


@dataclass(frozen=True)
class Mark:
    """A box to draw on an overview, in pixels of an image of ``size``, with the name of the row of its close-up."""

    box: Box
    size: Size
    name: str


@dataclass(frozen=True, eq=False)
class SheetRow:
    """One picture per column (None: none is drawn); all show the same place.

    ``ticks`` is the (x, y) of the patch borders, as fractions of the picture's sides; ``bar`` the length of a scale bar
    as a fraction of the width, and its label.
    """

    name: str
    pictures: Sequence[Pixels | None]
    marks: Sequence[Mark] = ()
    ticks: tuple[float, float] | None = None
    bar: tuple[float, str] | None = None

    @property
    def height_in(self) -> float:
        """Height of the tallest picture at the width of a column, in inches; at most 1.5 times that width."""
        tallest: float = max(one.shape[0] / one.shape[1] for one in self.pictures if one is not None)
        return _COLUMN_IN * min(tallest, _TALLEST)


@dataclass(frozen=True, eq=False)
class Section:
    """Titles of the columns, rows of pictures, and lines of the table: a name, and a text per column."""

    titles: Sequence[str]
    rows: Sequence[SheetRow]
    table: Sequence[tuple[str, Sequence[str]]]
    name: str = ""

    @property
    def height_in(self) -> float:
        """Height with all gaps, in inches."""
        pictures = sum(row.height_in + _GAP_IN for row in self.rows)
        return _TITLE_IN + pictures + _GAP_IN + _LINE_IN * len(self.table) + _SECTION_IN


def comparison_sheet(found: Comparison) -> Any:
    """Draw Figure 4: source and all variants side by side, whole and in close-ups, with metrics below."""
    columns = (found.source, *found.variants)
    section = Section([column.title for column in columns], _rows(found, columns), _table(found, columns))
    return draw_sheet([section], heading=_heading(found), footnotes=[_NOTE, *found.notes])


def sweep_sheet(found: Comparison, kinds: Sequence[tuple[str, Sequence[str]]]) -> Any:
    """Draw Figures S8 and S9: a section per kind of kernel, with a column per size.

    ``kinds`` holds the name of each section and the names of its variants; a variant may be in several. Each section
    begins with the source. A column that a section above shows already is left free.
    """
    by_name = {column.name: column for column in found.variants}
    sections: list[Section] = []
    shown: set[str] = set()
    for kind, names in kinds:
        whole = [found.source, *(by_name[name] for name in names)]
        columns = [None if column.name in shown else column for column in whole]
        shown |= {column.name for column in whole}
        if any(columns):
            titles = ["" if column is None else column.title for column in columns]
            sections.append(Section(titles, _rows(found, columns), _table(found, columns), name=kind))
    return draw_sheet(sections, heading=_heading(found), footnotes=[_NOTE, *found.notes])


def csv_rows(found: Comparison) -> list[list[object]]:
    """Return a heading and one row per value and column."""
    rows: list[list[object]] = [["column", "metric", "value", "better", "detail"]]
    for column in (found.source, *found.variants):
        for direction in ("both", "vertical", "horizontal"):
            seam = column.seam(direction)
            if seam is not None and column.seams is not None:
                detail = seam_detail(seam, column.seams.statistic)
                ratio = None if seam.too_few else seam.headline
                rows.append([column.name, f"R* {direction}", ratio, "lower", detail])
                rows.append([column.name, f"R of the source {direction}", seam.source_ratio, "", detail])
                rows.append([column.name, f"excess {direction}", seam.excess, "lower", column.seams.unit])
        for value in column.values:
            if not value.metric.startswith("seams "):
                rows.append([column.name, value.metric, value.value, value.better, value.detail])
    return rows


def values_text(found: Comparison) -> str:
    """Return the table of metrics for a terminal: a line per column of the sheet."""
    columns = (found.source, *found.variants)
    table = _table(found, columns)
    lines = [("", *(name for name, _ in table))]
    lines += [(column.title, *(texts[n] for _, texts in table)) for n, column in enumerate(columns)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines
    )


def draw_sheet(sections: Sequence[Section], *, heading: str, footnotes: Sequence[str] = ()) -> Any:
    """Draw a sheet as a ``matplotlib.figure.Figure``."""
    columns = max(len(section.titles) for section in sections)
    width = _LEFT_IN + columns * (_COLUMN_IN + _GAP_IN) + _EDGE_IN
    head = _wrapped(heading, width, character_in=_BOLD_CHARACTER_IN)
    notes = [line for note in footnotes for line in _wrapped(note, width, character_in=_SMALL_CHARACTER_IN)]
    height = sum(section.height_in for section in sections) + _LINE_IN * (len(head) + len(notes) + 1) + 2 * _EDGE_IN
    page = _Page(width, height, _EDGE_IN)
    for line in head:
        page.text(_EDGE_IN, line, ha="left", fontsize=10, weight="bold")
        page.y += _LINE_IN
    page.y += _EDGE_IN / 2
    for section in sections:
        _draw_section(page, section)
    for line in notes:
        page.text(_EDGE_IN, line, ha="left", fontsize=7.5, color=_GREY)
        page.y += _LINE_IN
    return page.figure


@dataclass
class _Page:
    """A figure that is filled from top to bottom; all lengths in inches, ``y`` downwards."""

    width: float
    height: float
    y: float = 0.0
    figure: Any = field(init=False)

    def __post_init__(self) -> None:
        self.figure = new_figure(self.width, self.height)

    def text(self, x: float, text: str, **style: Any) -> None:
        style = {"ha": "center", "va": "top", "fontsize": 8.5} | style
        self.figure.text(x / self.width, 1 - self.y / self.height, text, **style)

    def axes(self, x: float, *, width: float, height: float) -> Any:
        place = (x / self.width, 1 - (self.y + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(place)


def _wrapped(text: str, width_in: float, *, character_in: float) -> list[str]:
    return textwrap.wrap(text, int((width_in - 2 * _EDGE_IN) / character_in))


def _draw_section(page: _Page, section: Section) -> None:
    left = [_LEFT_IN + number * (_COLUMN_IN + _GAP_IN) for number in range(len(section.titles))]
    if section.name:
        page.text(_LEFT_IN - 0.1, section.name, ha="right", fontsize=9.5, weight="bold")
    for x, title in zip(left, section.titles, strict=True):
        page.text(x + _COLUMN_IN / 2, title, fontsize=9.5, weight="bold")
    page.y += _TITLE_IN
    for row in section.rows:
        drawn = [(x, picture) for x, picture in zip(left, row.pictures, strict=True) if picture is not None]
        for number, (x, picture) in enumerate(drawn):
            axes = page.axes(x, width=_COLUMN_IN, height=row.height_in)
            _draw_picture(axes, picture, row=row, first=number == 0)
        page.y += row.height_in / 2
        page.text(_LEFT_IN - 0.1, row.name, ha="right", va="center", fontsize=9)
        page.y += row.height_in / 2 + _GAP_IN
    page.y += _GAP_IN  # below the ticks of the last row
    for name, values in section.table:
        page.text(_LEFT_IN - 0.1, name, ha="right", color=_GREY)
        for x, value in zip(left, values, strict=True):
            page.text(x + _COLUMN_IN / 2, value)
        page.y += _LINE_IN
    page.y += _SECTION_IN


def _draw_picture(axes: Any, picture: Pixels, *, row: SheetRow, first: bool) -> None:
    height, width = picture.shape[:2]
    axes.imshow(picture, extent=(0, width, height, 0))
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(linewidth=0.5, color=_GREY)
    if row.ticks is not None:
        x, y = row.ticks[0] * width, row.ticks[1] * height
        # Outside the picture, to hide nothing of the border.
        axes.set(xticks=[x], yticks=[y], xticklabels=[], yticklabels=[])
        axes.tick_params(length=4, width=1.2, color="#c00000", top=True, right=True)
    for mark in row.marks:
        _draw_mark(axes, mark, scale=(width / mark.size.width, height / mark.size.height), named=first)
    if first and row.bar is not None:
        _draw_bar(axes, row.bar)


def _draw_bar(axes: Any, bar: tuple[float, str]) -> None:
    """Draw a scale bar with its label above it, in the lower right corner."""
    from matplotlib.patheffects import withStroke

    length, label = bar
    ends = (0.96 - length, 0.96)
    for width, colour in ((4.5, "white"), (2.5, "black")):
        axes.plot(ends, (0.05, 0.05), color=colour, lw=width, transform=axes.transAxes, solid_capstyle="butt")
    text = axes.text(0.96 - length / 2, 0.075, label, transform=axes.transAxes, fontsize=7.5, ha="center", va="bottom")
    text.set_path_effects([withStroke(linewidth=2, foreground="white")])


def _draw_mark(axes: Any, mark: Mark, *, scale: tuple[float, float], named: bool) -> None:
    from matplotlib.patches import Rectangle

    x, y = mark.box.x * scale[0], mark.box.y * scale[1]
    width, height = mark.box.width * scale[0], mark.box.height * scale[1]
    axes.add_patch(Rectangle((x, y), width, height, fill=False, linewidth=2, edgecolor="white"))
    axes.add_patch(Rectangle((x, y), width, height, fill=False, linewidth=0.9, edgecolor="black"))
    if named:
        box = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "black", "linewidth": 0.6}
        axes.text(x, y, mark.name, fontsize=7.5, ha="center", va="center", bbox=box, clip_on=False)


def _heading(found: Comparison) -> str:
    base, view = found.settings.base, found.view
    scale = "" if view.mpp is None else f", {view.mpp:.3g} µm/px"
    parts = (
        f"{shown_name(base.source.slide)}, {view.size} px{scale}",
        shown_name(Path(base.model_name)),
        f"patches of {base.norm.patch_px} px",
    )
    return "   ·   ".join(parts)


def _rows(found: Comparison, columns: Sequence[Column | None]) -> list[SheetRow]:
    def pictures(number: int | None) -> list[Pixels | None]:
        return [
            None if column is None else column.overview if number is None else column.close_ups[number]
            for column in columns
        ]

    names = [chr(ord("a") + number) for number in range(len(found.boxes))]
    marks = [Mark(box, found.view.size, name) for box, name in zip(found.boxes, names, strict=True)]
    rows = [SheetRow("whole", pictures(None), marks, bar=_bar(found.view.size.width, found.view.mpp))]
    for number, (box, corner) in enumerate(zip(found.boxes, found.corners, strict=True)):
        ticks = None if corner is None else ((corner.x - box.x) / box.width, (corner.y - box.y) / box.height)
        name = f"{names[number]}   {box.width} px"
        rows.append(SheetRow(name, pictures(number), ticks=ticks, bar=_bar(box.width, found.view.mpp)))
    return rows


def _bar(width_px: int, mpp: float | None) -> tuple[float, str] | None:
    bar = scale_bar(width_px, mpp)
    return None if bar is None else (bar[0] / width_px, bar[1])


def _table(found: Comparison, columns: Sequence[Column | None]) -> list[tuple[str, list[str]]]:
    unit = next((column.seams.unit for column in found.variants if column.seams is not None), "ΔE")
    table = [
        ("R* vertical ↓", [_ratio(found, column, direction="vertical") for column in columns]),
        ("R* horizontal ↓", [_ratio(found, column, direction="horizontal") for column in columns]),
        (f"excess, {unit} ↓", [_excess(column) for column in columns]),
    ]
    for metric, name in _METRICS.items():
        values = [_value(column, metric) for column in columns]
        if any(values):
            columned = zip(columns, values, strict=True)
            table.append((name, ["" if column is None else value or "–" for column, value in columned]))
    return table


def _ratio(found: Comparison, column: Column | None, *, direction: str) -> str:
    if column is None:
        return ""
    seam = column.seam(direction)
    if seam is not None and seam.too_few:
        return f"{TOO_FEW} ({seam.n})"
    if seam is not None:
        interval = "" if seam.interval is None else f" ({interval_text(seam, digits=2)})"
        return "–" if seam.headline is None else f"{seam.headline:.3g}{interval}"
    control = found.variants[0].seam(direction)
    return "–" if control is None or control.source_ratio is None else f"(R {control.source_ratio:.2f})"


def _excess(column: Column | None) -> str:
    if column is None:
        return ""
    seam = column.seam()
    return "–" if seam is None or seam.excess is None else f"{seam.excess:.2f}"


def _value(column: Column | None, metric: str) -> str:
    value = next((value.value for value in (column.values if column else ()) if value.metric == metric), None)
    return "" if value is None else f"{value:.3g}"
