"""A comparison as a sheet: Figure 4 of the paper for any slide, and its Figures S8 and S9."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kin_cli.compare.run import Column, Comparison
from kin_cli.compare.sheet import Mark, Row, Section, draw_sheet

_SHOWN = {
    "ssim": "SSIM ↑",
    "fsim": "FSIM ↑",
    "sobel_y": "Sobel, Y ↓",
    "piqe": "PIQE ↓",
    "niqe": "NIQE ↓",
    "histogram": "histogram ↑",
    "fid": "FID ↓",
}
_NOTE = (
    "R*: step in colour across the patch borders over that beside them, relative to the source; 1 is seamless.  "
    "excess: the step alone; under 0.5 ΔE it is not visible.  Red ticks: patch borders."
)


def comparison_sheet(found: Comparison) -> Any:
    """Figure 4: the source and all variants side by side, the whole and close-ups, and the figures below."""
    columns = (found.source, *found.variants)
    section = Section([column.title for column in columns], _rows(found, columns), _table(found, columns))
    return draw_sheet([section], heading=_heading(found), footnotes=[_NOTE, *found.notes])


def sweep_sheet(found: Comparison, kinds: Sequence[tuple[str, Sequence[str]]]) -> Any:
    """Figures S8 and S9: a section for each kind of kernel, in it a column for each size.

    ``kinds`` names the variants of each section, which begins with the source; one may stand in several.
    """
    by_name = {column.name: column for column in found.variants}
    sections = []
    for kind, names in kinds:
        columns = [found.source, *(by_name[name] for name in names)]
        titles = [column.title for column in columns]
        sections.append(Section(titles, _rows(found, columns), _table(found, columns), name=kind))
    return draw_sheet(sections, heading=_heading(found), footnotes=[_NOTE, *found.notes])


def csv_rows(found: Comparison) -> list[list[object]]:
    """A heading and a row for every figure of every column."""
    rows: list[list[object]] = [["column", "metric", "value", "better", "detail"]]
    for column in (found.source, *found.variants):
        for direction in ("both", "vertical", "horizontal"):
            seam = column.seam(direction)
            if seam is not None and column.seams is not None:
                detail = f"{column.seams.statistic}, {seam.n} boundaries"
                rows.append([column.name, f"R* {direction}", seam.headline, "lower", detail])
                rows.append([column.name, f"R of the source {direction}", seam.source_ratio, "", detail])
                rows.append([column.name, f"excess {direction}", seam.excess, "lower", column.seams.unit])
        for figure in column.figures:
            if not figure.metric.startswith("seams "):
                rows.append([column.name, figure.metric, figure.value, figure.better, figure.detail])
    return rows


def figures_text(found: Comparison) -> str:
    """The table of figures for a terminal: a line for each column of the sheet."""
    columns = (found.source, *found.variants)
    table = _table(found, columns)
    lines = [("", *(name for name, _ in table))]
    lines += [(column.title, *(texts[n] for _, texts in table)) for n, column in enumerate(columns)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines
    )


def _heading(found: Comparison) -> str:
    base, view = found.settings.base, found.view
    scale = "" if view.mpp is None else f", {view.mpp:.3g} µm/px"
    parts = (f"{base.source.slide.name}, {view.size} px{scale}", base.model.name, f"patches of {base.norm.patch_px} px")
    return "   ·   ".join(parts)


def _rows(found: Comparison, columns: Sequence[Column]) -> list[Row]:
    names = [chr(ord("a") + number) for number in range(len(found.boxes))]
    marks = [Mark(box, found.view.size, name) for box, name in zip(found.boxes, names, strict=True)]
    rows = [Row("whole", [column.overview for column in columns], marks)]
    for number, (box, corner) in enumerate(zip(found.boxes, found.corners, strict=True)):
        ticks = None if corner is None else ((corner.x - box.x) / box.width, (corner.y - box.y) / box.height)
        name = f"{names[number]}   {box.width} px"
        rows.append(Row(name, [column.close_ups[number] for column in columns], ticks=ticks))
    return rows


def _table(found: Comparison, columns: Sequence[Column]) -> list[tuple[str, list[str]]]:
    unit = next((column.seams.unit for column in found.variants if column.seams is not None), "ΔE")
    table = [
        ("R* vertical ↓", [_ratio(found, column, direction="vertical") for column in columns]),
        ("R* horizontal ↓", [_ratio(found, column, direction="horizontal") for column in columns]),
        (f"excess, {unit} ↓", [_excess(column) for column in columns]),
    ]
    for metric, name in _SHOWN.items():
        values = [_value(column, metric) for column in columns]
        if any(values):
            table.append((name, [value or "–" for value in values]))
    return table


def _ratio(found: Comparison, column: Column, *, direction: str) -> str:
    seam = column.seam(direction)
    if seam is not None:
        return "–" if seam.headline is None else f"{seam.headline:.3g}"
    control = found.variants[0].seam(direction)
    return "–" if control is None or control.source_ratio is None else f"(R {control.source_ratio:.2f})"


def _excess(column: Column) -> str:
    seam = column.seam()
    return "–" if seam is None or seam.excess is None else f"{seam.excess:.2f}"


def _value(column: Column, metric: str) -> str:
    value = next((figure.value for figure in column.figures if figure.metric == metric), None)
    return "" if value is None else f"{value:.3g}"
