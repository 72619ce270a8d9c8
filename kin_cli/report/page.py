"""Pieces of HTML. Every text that goes in is escaped here; what comes out is markup."""

from __future__ import annotations

import base64
import html
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from kin_cli import __version__
from kin_cli.errors import KinError, Stopped
from kin_cli.evaluation.seams import SlideSeams, seam_map
from kin_cli.geometry import Box, Size
from kin_cli.metrics.colour import Pixels
from kin_cli.metrics.seams import SeamLine, SeamResult
from kin_cli.progress import Progress
from kin_cli.pyramid.codec import Codec
from kin_cli.report.evidence import Evidence, Place, gather
from kin_cli.settings import Settings
from kin_cli.store.files import os_errors_as_output_errors, write_atomic

# chroma at full resolution: subsampling would add steps of its own, at every 16th pixel
_CODEC = Codec("jpeg", 85, "444")
# Under the first it is not visible, over the second obvious: ΔE as `kin seams` reads it, and 2.5 grey levels for 1 ΔE.
_VISIBLE = {"ΔE": (0.5, 2.3), "8-bit": (1.2, 5.8)}
_UNITS = {"ΔE": "ΔE", "8-bit": "grey levels"}
_CLOSE_UP_BORDER = 12  # so that the border of the patches, in the middle, is seen at once
_TICK_FRACTION = 6  # per cent of a close-up's side
_STAGES = {
    "measure": "measure (pass 1)",
    "apply": "apply (pass 2)",
    "background": "background",
    "pyramid": "levels and file",
}
Record = Mapping[str, Any]
_HEAD_BYTES = 1024
_AGAIN = "the output is complete; the same command with --skip-existing makes the report"


# FROM report.markup: Pieces of HTML. Every text that goes in is escaped here; what comes out is markup.


def text(value: object) -> str:
    """Any value as text in HTML, also within a quoted attribute."""
    return html.escape(str(value), quote=True)


def jpeg_address(pixels: Pixels) -> str:
    """A picture (h, w, 3) as a ``data:`` address."""
    return "data:image/jpeg;base64," + base64.b64encode(_CODEC.encode(pixels)).decode()


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: int = 0) -> str:
    """A table with a line of names; all columns from ``numbers`` on hold numbers (0: none does)."""

    def cell(tag: str, place: int, value: object) -> str:
        kind = ' class="number"' if numbers and place >= numbers else ""
        return f"<{tag}{kind}>{text(value)}</{tag}>"

    lines = ["".join(cell("td", place, value) for place, value in enumerate(row)) for row in rows]
    names = "".join(cell("th", place, name) for place, name in enumerate(head))
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{names}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def pairs(rows: Iterable[tuple[object, object]]) -> str:
    """A table of names and values."""
    body = "\n".join(f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>' for name, value in rows)
    return f'<div class="wide"><table><tbody>\n{body}\n</tbody></table></div>'


def cards(rows: Iterable[tuple[str, str]]) -> str:
    """The few numbers to see first."""
    inner = "\n".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in rows)
    return f'<dl class="tiles">\n{inner}\n</dl>'


def bars(rows: Sequence[tuple[str, float, str]]) -> str:
    """Horizontal bars: name, length, label; the longest fills the width."""
    longest = max((length for _, length, _ in rows), default=0) or 1
    cells = (
        f'<span>{text(name)}</span><span><i style="width:{100 * length / longest:.1f}%"></i></span>'
        f"<span>{text(label)}</span>"
        for name, length, label in rows
    )
    return '<div class="bars">\n' + "\n".join(cells) + "\n</div>"


def comparison(before: Pixels, after: Pixels, *, name: str, marks: str, border: int = 50) -> str:
    """Two pictures of one size above each other, and the slider that says how much of each is seen.

    ``border`` is where the border between them is at first, in per cent from the left; ``marks`` is markup on top.
    """
    height, width = before.shape[:2]
    size = f'width="{width}" height="{height}"'
    return (
        f'<div class="compare" style="--at:{border}%;--ratio:{width / height:.3f}">'
        f'<img class="before" {size} alt="{text(name)}: source" src="{jpeg_address(before)}">'
        f'<img class="after" {size} alt="{text(name)}: translation" src="{jpeg_address(after)}">'
        f'<span class="edge"></span><span class="name left">source</span><span class="name right">translation</span>'
        f'<input type="range" min="0" max="100" step="any" value="{border}"'
        f' aria-label="{text(name)}: border between source and translation, from the left">{marks}</div>'
    )


# FROM report.page: The page of a report: the record and the evidence in the template that comes with the package.


def page(record: Record, evidence: Evidence, *, mark: str) -> str:
    """The whole HTML document; ``mark`` tells which output it is about."""
    slide, output = Path(record["slide"]).name, Path(record["output"]).name
    template = resources.files("kin_cli.report").joinpath("template.html").read_text(encoding="utf-8")
    measured = any(place.line is not None for place in evidence.places)
    return Template(template).substitute(
        mark=text(mark),
        version=text(__version__),
        title=text(f"{output} – kin report"),
        heading=text(slide),
        subtitle=f"translated to <code>{text(output)}</code> with <code>{text(Path(record['model']).name)}</code>"
        f" by kin {text(record['kin'])}, method {text(method(record['settings']))}",
        warnings=_warnings(record, evidence),
        summary=_summary(record, evidence),
        overview=_overview(evidence),
        seams=_seams(evidence),
        closeups_heading="The worst borders" if measured else "Close-up",
        closeups=_close_ups(evidence),
        figures=_likeness(evidence),
        run=_run(record),
    )


def method(settings: Record) -> str:
    """The normalisation in a few words."""
    if settings["method"] == "tin":
        return "tin"
    halo = f", halo {settings['halo']} px" if settings["halo"] else ""
    return f"{settings['method']}, kernel {settings['kernel']}, {settings['interpolation']}{halo}"


def verdict(figure: SeamResult, unit: str) -> str:
    """What the excess at the borders means to an eye."""
    low, high = _VISIBLE[unit]
    if figure.excess is None:
        return "unknown"
    if figure.excess < low:
        return "not visible"
    return "obvious" if figure.excess > high else "perhaps visible"


def _warnings(record: Record, evidence: Evidence) -> str:
    unread = record["unreadable"]
    lines = [*record.get("warnings", ()), *record.get("model_notes", ()), *evidence.left_out]
    if unread["tiles"] or unread["patches"]:
        lines.append(
            f"parts of {unread['tiles']} tiles could not be read and were filled; {unread['patches']} patches were left"
            " out of the statistics"
        )
    lines.append("for research only, not for diagnosis")
    return '<ul class="warnings" aria-label="Notes">' + "".join(f"<li>{text(line)}</li>" for line in lines) + "</ul>"


def _summary(record: Record, evidence: Evidence) -> str:
    plan, rows = record["plan"], []
    width, height = plan["size"]
    rows.append(("image, px", f"{width:,} × {height:,}"))
    rows.append(("pixel size", "unknown" if plan["mpp"] is None else f"{plan['mpp']:.4g} µm"))
    rows.append(("patches with tissue", f"{plan['patches_with_tissue']:,} of {plan['patches']:,}"))
    if evidence.seams is not None:
        found = evidence.seams.figure
        rows.append(("step at borders", f"{_excess(found, evidence.seams)}, {verdict(found, evidence.seams.unit)}"))
    rows.append(("time", _duration(sum(record["seconds"].values()))))
    rows.append(("memory", _bytes(record["peak_rss_bytes"])))
    return cards(rows)


def _overview(evidence: Evidence) -> str:
    spots = "".join(_spot(number, place, evidence.size) for number, place in enumerate(evidence.places, start=1))
    return f"<figure>{comparison(evidence.before, evidence.after, name='Overview', marks=spots)}</figure>"


def _spot(number: int, place: Place, size: Size) -> str:
    left = 100 * (place.box.x + place.box.width / 2) / size.width
    top = 100 * (place.box.y + place.box.height / 2) / size.height
    return (
        f'<a class="spot" href="#place-{number}" style="left:{left:.2f}%;top:{top:.2f}%"'
        f' aria-label="close-up {number}">{number}</a>'
    )


def _seams(evidence: Evidence) -> str:
    seams = evidence.seams
    if seams is None:
        return "<p>Not measured.</p>"
    if seams.figure.n == 0:
        return "<p>No border between two whole patches with tissue, so nothing to measure.</p>"
    head = [
        "borders",
        "R*",
        "95 % interval",
        "R translation",
        "R source",
        "excess translation",
        "excess source",
        "number",
    ]
    rows = []
    for direction, name in (("both", "all"), ("vertical", "left | right"), ("horizontal", "upper / lower")):
        figure, own = seams.report.figure(seams.statistic, direction), evidence.own.get(direction)
        interval = "–" if figure.interval is None else f"{figure.interval[0]:.3f} – {figure.interval[1]:.3f}"
        excess = (_excess(found, seams) for found in (figure, own))
        ratios = (_number(value, 3) for value in (figure.ratio_to_source, figure.ratio, figure.source_ratio))
        first, *others = ratios
        rows.append([name, first, interval, *others, *excess, f"{figure.n:,}"])
    note = "" if seams.note is None else f'<p class="soft">Note: {text(seams.note)}.</p>'
    low, high = _VISIBLE[seams.unit]
    unit = f"in {_UNITS[seams.unit]}: under {low} it cannot be seen, over {high} it is obvious"
    chart = jpeg_address(np.asarray(seam_map(seams, evidence.after)))
    alt = "Map of the borders over the pale translation: the stronger the step, the redder"
    return (
        "<p>R compares the step in colour across the borders of the patches with lines beside them: 1 where a border is"
        " like any other place. R* is R of the translation over R of the source at the same lines. The excess is the"
        f" step itself, {unit}. The source, which has no borders, shows what texture alone gives.</p>"
        f"{table(head, rows, numbers=1)}{note}"
        "<details><summary>Map of all borders, the worst five numbered</summary>"
        f'<figure><img class="map" alt="{alt}" src="{chart}"></figure></details>'
    )


def _close_ups(evidence: Evidence) -> str:
    figures = "\n".join(_close_up(number, place, evidence) for number, place in enumerate(evidence.places, start=1))
    seams, more, intro = evidence.seams, "", ""
    if seams is not None and any(place.line is not None for place in evidence.places):
        intro = (
            "<p>The borders with the largest steps that neither their surroundings nor the source explain, at full"
            " resolution. Blue ticks at the edges show where the border runs.</p>"
        )
        unit = _UNITS[seams.unit]
        head = ["border", "x, px", "y, px", "length, px", f"excess, {unit}", f"step, {unit}", "beside it"]
        worst = seams.report.worst(seams.statistic)
        rows = [
            (
                line.direction,
                line.x,
                line.y,
                line.length,
                f"{line.excess:.2f}",
                f"{line.value:.2f}",
                f"{line.reference:.2f}",
            )
            for line in worst
        ]
        caption = f"The {len(worst)} worst, in pixels of the translation"
        more = f"<details><summary>{caption}</summary>{table(head, rows, numbers=1)}</details>"
    return f'{intro}<div class="columns">\n{figures}\n</div>{more}'


def _close_up(number: int, place: Place, evidence: Evidence) -> str:
    box, line, marks = place.box, place.line, ""
    caption = f"{number}. {box.width} × {box.height} px from {box.x}, {box.y}"
    caption += f" (level 0 of the slide: {place.l0_x:.0f}, {place.l0_y:.0f})"
    if line is not None and evidence.seams is not None:
        marks = _ticks(line, box)
        at = f"x = {line.x}" if line.direction == "vertical" else f"y = {line.y}"
        excess = f"excess {line.excess:.2f} {_UNITS[evidence.seams.unit]}, texture beside it {line.reference:.2f}"
        caption += f"; {line.direction} border at {at}: {excess}"
    picture = comparison(place.before, place.after, name=f"Close-up {number}", marks=marks, border=_CLOSE_UP_BORDER)
    return f'<figure id="place-{number}">{picture}<figcaption>{text(caption)}</figcaption></figure>'


def _ticks(line: SeamLine, box: Box) -> str:
    """Marks where a boundary enters a close-up and leaves it, so that the boundary itself stays free."""
    if line.direction == "vertical":
        style = f"left:{100 * (line.x - box.x) / box.width:.2f}%;width:2px;height:{_TICK_FRACTION}%"
        sides = ("top:0", "bottom:0")
    else:
        style = f"top:{100 * (line.y - box.y) / box.height:.2f}%;height:2px;width:{_TICK_FRACTION}%"
        sides = ("left:0", "right:0")
    return "".join(f'<span class="tick" style="{style};{side}"></span>' for side in sides)


def _likeness(evidence: Evidence) -> str:
    found = evidence.sharpness
    if found is None:
        return "<p>Not measured.</p>"
    rows = [
        ("structural similarity to the source (SSIM, luma)", "1", _number(found.ssim, 3)),
        ("mean gradient (Sobel, luma): sharpness", _number(found.source_gradient, 1), _number(found.gradient, 1)),
    ]
    return (
        f"{table(['', 'source', 'translation'], rows, numbers=1)}"
        f'<p class="soft">Over {found.tiles} tiles of 512 px that are at least half tissue.</p>'
    )


def _run(record: Record) -> str:
    times = [(_STAGES.get(name, name), seconds, _duration(seconds)) for name, seconds in record["seconds"].items()]
    device = record.get("peak_device_bytes")
    memory = _bytes(record["peak_rss_bytes"]) + (f", on the device {_bytes(device)}" if device else "")
    about = [
        ("slide", record["slide"]),
        ("output", f"{record['output']}, {_bytes(record['output_bytes'])}"),
        ("generator", f"{record['model']} ({record['architecture']})"),
        ("peak memory", memory),
        ("kin, torch", f"{record['kin']}, {record['torch']}"),
    ]
    return (
        f"{pairs(about)}<h3>Times</h3>{bars(times)}"
        '<p class="soft">Of the process that finished the output; what interrupted runs had done is not in them.</p>'
        f'<div class="columns"><section><h3>Settings</h3>{pairs(_values(record["settings"]))}</section>'
        f"<section><h3>Plan</h3>{pairs(_values(record['plan']))}</section></div>"
    )


def _values(items: Record) -> list[tuple[str, str]]:
    shown = []
    for name, value in items.items():
        if name.endswith("_bytes"):
            shown.append((name.removesuffix("_bytes").replace("_", " "), _bytes(value)))
        elif isinstance(value, list):
            shown.append((name.replace("_", " "), ", ".join(map(str, value))))
        else:
            plain = f"{value:.6g}" if isinstance(value, float) else str(value)
            shown.append((name.replace("_", " "), "–" if value is None else plain))
    return shown


def _excess(figure: SeamResult | None, seams: SlideSeams) -> str:
    return _number(None if figure is None else figure.excess, 2, _UNITS[seams.unit])


def _number(value: float | None, digits: int, unit: str = "") -> str:
    return "–" if value is None else f"{value:.{digits}f} {unit}".rstrip()


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _bytes(count: float) -> str:
    mib = count / 2**20
    return f"{mib:.1f} MiB" if mib < 1024 else f"{mib / 1024:.2f} GiB"


# FROM report.write: Writing the report of a finished translation.


def report_if_asked(settings: Settings, record: Mapping[str, Any], progress: Progress) -> Path | None:
    """Write the report beside a finished output, if the settings ask for one and it is not there yet.

    ``record`` is that of the run. Memory bound: see ``gather``. Raises a ``KinError`` that names what failed, whatever
    it is; the output is not touched.
    """
    file = settings.output.report_path
    if not settings.output.report or is_report_of(record, file):
        return None
    try:
        document = page(record, gather(settings, progress), mark=_mark(record))
        with os_errors_as_output_errors(file):
            write_atomic(file, document.encode(errors="replace"))
    except Stopped as stop:
        raise Stopped(stop.message, _AGAIN, exit_code=stop.exit_code) from None
    except KinError as error:
        raise KinError(f"{file}: the report could not be made: {error}", _AGAIN) from error
    except MemoryError as error:
        raise KinError(f"{file}: the report could not be made: out of memory", _AGAIN) from error
    except Exception as error:  # whatever it is, the user should know that the output stands
        what = f"unexpected {type(error).__name__}: {error}"
        raise KinError(f"{file}: the report could not be made: {what}", _AGAIN) from error
    return file


def is_report_of(record: Mapping[str, Any], file: Path) -> bool:
    """Whether ``file`` is the report of the very run that ``record`` tells of, by what stands in its head."""
    try:
        with file.open("rb") as stream:
            return f'content="{_mark(record)}"'.encode() in stream.read(_HEAD_BYTES)
    except OSError:
        return False


def _mark(record: Mapping[str, Any]) -> str:
    """A checksum of the record as it lies beside the output."""
    told = {name: value for name, value in record.items() if name != "skipped"}
    return f"{zlib.crc32(json.dumps(told, sort_keys=True).encode()):08x}"
