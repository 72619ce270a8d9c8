"""Write the report of a finished translation: record and evidence in the HTML template that ships with kin."""

from __future__ import annotations

import base64
import glob
import html
import json
import shlex
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

import numpy as np

from kin_cli import __version__
from kin_cli.errors import KinError, Stopped, explained
from kin_cli.evaluation.seams import (
    TOO_FEW,
    UNITS_IN_WORDS,
    VISIBLE,
    SlideSeams,
    in_words,
    interval_text,
    seam_map,
    verdict,
)
from kin_cli.geometry import Box, Pixels, Size, scale_bar
from kin_cli.metrics.seams import SeamLine, SeamResult
from kin_cli.outputs import refuse_strangers
from kin_cli.passes.trust import MEANS, percent
from kin_cli.progress import Progress
from kin_cli.pyramid.codec import Codec
from kin_cli.report.evidence import Evidence, Place, gather
from kin_cli.settings import Settings
from kin_cli.store.files import (
    bytes_text,
    named_beside,
    open_regular,
    os_errors_as_output_errors,
    read_regular,
    write_atomic,
)

Record = Mapping[str, Any]

# Chroma at full resolution: subsampling would add steps of its own at every 16th pixel.
_CODEC = Codec("jpeg", 85, "444")
_CLOSE_UP_SLIDER = 12  # per cent; the patch border in the middle is then visible without moving the slider
_TICK = 6  # per cent of a close-up's side
_STAGES = {
    "measure": "measure (pass 1)",
    "trust": "trust score",
    "trust map": "trust map",
    "apply": "apply (pass 2)",
    "background": "background",
    "pyramid": "levels and file",
}
_HEAD_BYTES = 1024
_AGAIN = "the output is complete; the same command makes the report, kin batch with --skip-existing"


def report_if_asked(settings: Settings, record: Record, progress: Progress) -> Path | None:
    """Write the report beside a finished output, if the settings ask for one and it does not exist yet.

    ``record`` is the record of the run. Returns the file, or None if nothing was written. The output is not changed.
    Memory bound: see ``gather``.

    Raises:
        KinError: the report could not be made, for whatever reason.
    """
    file = settings.output.report_path
    if not settings.output.report or is_report_of(record, file):
        return None
    try:
        _remove_drafts(file)
        document = page(record, gather(settings, progress), mark=_mark(record))
        refuse_strangers(file, settings.output)
        with os_errors_as_output_errors(file):
            write_atomic(file, document.encode(errors="replace"))
    except Stopped as stop:
        raise Stopped(stop.message, _AGAIN, exit_code=stop.exit_code) from None
    except KinError as error:
        raise KinError(f"{file}: the report could not be made: {error}", _AGAIN) from error
    except Exception as error:  # whatever it is, the user should know that the output is complete
        what = explained(error).message
        raise KinError(f"{file}: the report could not be made: {what}", _AGAIN) from error
    return file


def _remove_drafts(file: Path) -> None:
    """Remove what a killed process left of this report, see ``write_atomic``."""
    for path in file.parent.glob(f".{glob.escape(file.name)}.*.tmp"):
        if path.suffixes[-2:-1] and path.suffixes[-2][1:].isdecimal() and path.is_file():
            path.unlink(missing_ok=True)


def is_report_of(record: Record, file: Path) -> bool:
    """Tell whether ``file`` is the report of the run with this record, by the mark in its head."""
    try:
        with open_regular(file) as stream:
            return f'content="{_mark(record)}"'.encode() in stream.read(_HEAD_BYTES)
    except OSError:
        return False


def _mark(record: Record) -> str:
    """Checksum of the record as saved beside the output."""
    saved = {name: value for name, value in record.items() if name != "skipped"}
    return f"{zlib.crc32(json.dumps(saved, sort_keys=True).encode()):08x}"


def page(record: Record, evidence: Evidence, *, mark: str) -> str:
    """Make the HTML document; ``mark`` identifies the record of the output."""
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
        lead=_lead(record, evidence),
        warnings=_warnings(record, evidence),
        summary=_summary(record, evidence),
        overview=_overview(evidence) + _viewer(record),
        seams=_seams(evidence),
        closeups_heading="The worst borders" if measured else "Close-up",
        closeups=_close_ups(evidence),
        metrics=_metrics(evidence),
        trust=_trust(record),
        run=_run(record),
    )


def method(settings: Record) -> str:
    """Describe the normalization in a few words."""
    if settings["method"] == "tin":
        return "tin"
    halo = f", halo {settings['halo']} px" if settings["halo"] else ""
    return f"{settings['method']}, kernel {settings['kernel']}, {settings['interpolation']}{halo}"


def _lead(record: Record, evidence: Evidence) -> str:
    """The page in two sentences, for those who look at slides and not at metrics."""
    source = f"a generator computed it from the colours of {Path(record['slide']).name}"
    seen = "" if evidence.seams is None else f" {in_words(evidence.seams)}"
    return text(
        f"This is a virtual stain: no slide was stained, {source}.{seen} Whether the stain is true cannot be read from"
        " this page."
    )


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
        found = evidence.seams.result
        rows.append(("step at borders", f"{_excess(found, evidence.seams)}, {verdict(found, evidence.seams.unit)}"))
    rows.append(("time", _duration(sum(record["seconds"].values()))))
    rows.append(("memory", bytes_text(record["peak_rss_bytes"])))
    return cards(rows)


def _overview(evidence: Evidence) -> str:
    spots = "".join(_spot(number, place, evidence.size) for number, place in enumerate(evidence.places, start=1))
    marks = _scale(evidence.size.width, evidence.mpp) + spots
    return f"<figure>{comparison(evidence.before, evidence.after, name='Overview', marks=marks)}</figure>"


def _scale(width_px: float, mpp: float | None) -> str:
    """A scale bar for a picture that shows ``width_px`` pixels of full resolution; nothing if their size is unknown."""
    bar = scale_bar(width_px, mpp)
    if bar is None:
        return ""
    return f'<span class="scale" style="--bar:{bar[0] / width_px:.5f}">{text(bar[1])}</span>'


def _viewer(record: Record) -> str:
    """How to look closer: the command, and the static copy that it made beside the output, if there is one."""
    slide, output = Path(record["slide"]), Path(record["output"])
    command = shlex.join(["kin", "view", str(slide), str(output)])
    copy = named_beside(output, ".view").name
    link = ""
    if (output.parent / copy / "index.html").is_file():
        link = f'<a href="{text(quote(copy, errors="surrogateescape"))}/index.html">The copy in {text(copy)}</a>; or: '
    return f'<p class="soft">At any zoom: {link}<code>{text(command)}</code></p>'


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
    if seams.result.n == 0:
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
        result, own = seams.summary.result(seams.statistic, direction), evidence.own.get(direction)
        excess = (_excess(found, seams) for found in (result, own))
        ratios = [_number(value, 3) for value in (result.ratio_to_source, result.ratio, result.source_ratio)]
        if result.too_few:
            ratios = [TOO_FEW, "–", "–"]
        interval = interval_text(result, missing="–")
        rows.append([name, ratios[0], interval, *ratios[1:], *excess, f"{result.n:,}"])
    note = "" if seams.note is None else f'<p class="soft">Note: {text(seams.note)}.</p>'
    low, high = VISIBLE[seams.unit]
    unit = f"in {UNITS_IN_WORDS[seams.unit]}: under {low} it is not visible, over {high} it is obvious"
    chart = jpeg_address(np.asarray(seam_map(seams, evidence.after, mpp=evidence.mpp)))
    alt = "Map of the borders over the pale translation; stronger steps are redder"
    return (
        "<p>R compares the step in colour across the borders of the patches with the step across lines beside them; it"
        " is 1 if borders look like any other place. R* is R of the translation over R of the source at the same lines."
        f" The excess is the step alone, {unit}. The source, which has no borders, shows the effect of texture alone."
        "</p>"
        f"{table(head, rows, numbers=1)}{note}"
        "<details><summary>Map of all borders, the worst five numbered</summary>"
        f'<figure><img class="map" alt="{alt}" src="{chart}"></figure></details>'
    )


def _close_ups(evidence: Evidence) -> str:
    pictures = "\n".join(_close_up(number, place, evidence) for number, place in enumerate(evidence.places, start=1))
    seams, more, intro = evidence.seams, "", ""
    if seams is not None and any(place.line is not None for place in evidence.places):
        intro = (
            "<p>The borders with the largest steps that texture beside them and the source do not explain, at full"
            " resolution. Blue ticks at the edges show where the border runs.</p>"
        )
        unit = UNITS_IN_WORDS[seams.unit]
        head = ["border", "x, px", "y, px", "length, px", f"excess, {unit}", f"step, {unit}", "beside it"]
        worst = seams.summary.worst(seams.statistic)
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
    return f'{intro}<div class="columns">\n{pictures}\n</div>{more}'


def _close_up(number: int, place: Place, evidence: Evidence) -> str:
    box, line, marks = place.box, place.line, _scale(place.box.width, evidence.mpp)
    caption = f"{number}. {box.width} × {box.height} px from {box.x}, {box.y}"
    caption += f" (level 0 of the slide: {place.l0_x:.0f}, {place.l0_y:.0f})"
    if line is not None and evidence.seams is not None:
        marks += _ticks(line, box)
        at = f"x = {line.x}" if line.direction == "vertical" else f"y = {line.y}"
        unit = UNITS_IN_WORDS[evidence.seams.unit]
        excess = f"excess {line.excess:.2f} {unit}, texture beside it {line.reference:.2f}"
        caption += f"; {line.direction} border at {at}: {excess}"
    picture = comparison(place.before, place.after, name=f"Close-up {number}", marks=marks, slider=_CLOSE_UP_SLIDER)
    return f'<figure id="place-{number}">{picture}<figcaption>{text(caption)}</figcaption></figure>'


def _ticks(line: SeamLine, box: Box) -> str:
    """Mark where a border enters and leaves a close-up, without covering the border itself."""
    if line.direction == "vertical":
        style = f"left:{100 * (line.x - box.x) / box.width:.2f}%;width:2px;height:{_TICK}%"
        sides = ("top:0", "bottom:0")
    else:
        style = f"top:{100 * (line.y - box.y) / box.height:.2f}%;height:2px;width:{_TICK}%"
        sides = ("left:0", "right:0")
    return "".join(f'<span class="tick" style="{style};{side}"></span>' for side in sides)


def _metrics(evidence: Evidence) -> str:
    found = evidence.sharpness
    if found is None:
        return "<p>Not measured.</p>"
    rows = [
        ("structural similarity to the source (SSIM, luma)", "1", _number(found.ssim, 3)),
        ("sharpness: mean gradient (Sobel, luma)", _number(found.source_gradient, 1), _number(found.gradient, 1)),
    ]
    return (
        f"{table(['', 'source', 'translation'], rows, numbers=1)}"
        f'<p class="soft">Over {found.tiles} tiles of 512 px that are at least half tissue.</p>'
    )


def _trust(record: Record) -> str:
    """Where the slide is unlike the generator's training; nothing if the generator does not know."""
    found = record.get("trust")
    if not found:
        return "<p>No map was made: see <code>--trust</code> of <code>kin translate</code>.</p>"
    expected = percent(found["threshold"])
    rows = [
        ("tissue that could be judged", percent(found["tissue_judged"])),
        (
            f"of it unlike the training (percentile below {expected})",
            f"{percent(found['tissue_below'])} ({found['patches_below']:,} of {found['patches_judged']:,} patches)",
        ),
        ("of the training patches themselves", expected),
        (
            "median percentile (50 % or more for tissue like the training)",
            "–" if found["median"] is None else percent(found["median"]),
        ),
    ]
    rows += [(f"patches flagged by {MEANS[name]}", f"{count:,}") for name, count in found["by_group"].items() if count]
    note = f'<p class="soft">Note: {text(found["note"])}.</p>' if "note" in found else ""
    picture = ""
    with suppress(OSError):
        content = read_regular(Path(record["output"]).parent / found["map"])
        address = "data:image/png;base64," + base64.b64encode(content).decode()
        picture = (
            f'<figure><img class="map" alt="Trust map over the pale slide, with its legend" src="{address}"></figure>'
        )
    return (
        "<p>The statistics that pass 1 measured in each patch, compared with those of the generator's training patches."
        " A percentile of 1 % says that one in a hundred training patches is as unusual. It finds what the generator"
        " never saw; it does not find a mistake on tissue that it knows.</p>"
        f"{pairs(rows)}{note}{picture}"
    )


def _run(record: Record) -> str:
    times = [(_STAGES.get(name, name), seconds, _duration(seconds)) for name, seconds in record["seconds"].items()]
    device = record.get("peak_device_bytes")
    memory = bytes_text(record["peak_rss_bytes"]) + (f", on the device {bytes_text(device)}" if device else "")
    about = [
        ("slide", record["slide"]),
        ("output", f"{record['output']}, {bytes_text(record['output_bytes'])}"),
        ("generator", f"{record['model']} ({record['architecture']})"),
        ("peak memory", memory),
        ("kin, torch", f"{record['kin']}, {record['torch']}"),
    ]
    return (
        f"{pairs(about)}<h3>Times</h3>{bars(times)}"
        '<p class="soft">Times of the process that finished the output, without interrupted runs before it.</p>'
        f'<div class="columns"><section><h3>Settings</h3>{pairs(_values(record["settings"]))}</section>'
        f"<section><h3>Plan</h3>{pairs(_values(record['plan']))}</section></div>"
    )


def _values(items: Record) -> list[tuple[str, str]]:
    shown = []
    for name, value in items.items():
        if name.endswith("_bytes"):
            shown.append((name.removesuffix("_bytes").replace("_", " "), bytes_text(value)))
        elif isinstance(value, list):
            shown.append((name.replace("_", " "), ", ".join(map(str, value))))
        else:
            plain = f"{value:.6g}" if isinstance(value, float) else str(value)
            shown.append((name.replace("_", " "), "–" if value is None else plain))
    return shown


def _excess(result: SeamResult | None, seams: SlideSeams) -> str:
    return _number(None if result is None else result.excess, 2, UNITS_IN_WORDS[seams.unit])


def _number(value: float | None, digits: int, unit: str = "") -> str:
    return "–" if value is None else f"{value:.{digits}f} {unit}".rstrip()


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def text(value: object) -> str:
    """Escape any value as text in HTML, also within a quoted attribute."""
    return html.escape(str(value), quote=True)


def jpeg_address(pixels: Pixels) -> str:
    """Encode a picture (h, w, 3) as a ``data:`` address."""
    return "data:image/jpeg;base64," + base64.b64encode(_CODEC.encode(pixels)).decode()


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: int = 0) -> str:
    """Make a table with a heading; columns from index ``numbers`` on hold numbers (0: no column).

    Each cell also holds the name of its column: in narrow windows a row becomes a list of names and values.
    """

    def cell(tag: str, place: int, value: object) -> str:
        kind = ' class="number"' if numbers and place >= numbers else ""
        name = f' data-name="{text(head[place])}"' if tag == "td" else ""
        return f"<{tag}{kind}{name}>{text(value)}</{tag}>"

    lines = ["".join(cell("td", place, value) for place, value in enumerate(row)) for row in rows]
    names = "".join(cell("th", place, name) for place, name in enumerate(head))
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    rows_of_names = f'<table class="stacks"><thead><tr>{names}</tr></thead>'
    return f'<div class="wide">{rows_of_names}<tbody>\n{body}\n</tbody></table></div>'


def pairs(rows: Iterable[tuple[object, object]]) -> str:
    """Make a table of names and values."""
    body = "\n".join(f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>' for name, value in rows)
    return f'<div class="wide"><table><tbody>\n{body}\n</tbody></table></div>'


def cards(rows: Iterable[tuple[str, str]]) -> str:
    """Make the cards with the most important values."""
    inner = "\n".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in rows)
    return f'<dl class="cards">\n{inner}\n</dl>'


def bars(rows: Sequence[tuple[str, float, str]]) -> str:
    """Make horizontal bars of (name, length, label); the longest fills the width."""
    longest = max((length for _, length, _ in rows), default=0) or 1
    cells = (
        f'<span>{text(name)}</span><span><i style="width:{100 * length / longest:.1f}%"></i></span>'
        f"<span>{text(label)}</span>"
        for name, length, label in rows
    )
    return '<div class="bars">\n' + "\n".join(cells) + "\n</div>"


def comparison(before: Pixels, after: Pixels, *, name: str, marks: str, slider: int = 50) -> str:
    """Put two pictures of equal size on top of each other, with a slider that uncovers one or the other.

    ``slider`` is its first position, in per cent from the left; ``marks`` is markup on top.
    """
    height, width = before.shape[:2]
    size = f'width="{width}" height="{height}"'
    return (
        f'<div class="compare" style="--at:{slider}%;--ratio:{width / height:.3f}">'
        f'<img class="before" {size} alt="{text(name)}: source" src="{jpeg_address(before)}">'
        f'<img class="after" {size} alt="{text(name)}: translation" src="{jpeg_address(after)}">'
        f'<span class="edge"></span><span class="name left">source</span><span class="name right">translation</span>'
        f'<input type="range" min="0" max="100" step="any" value="{slider}"'
        f' aria-label="{text(name)}: border between source and translation, from the left">{marks}</div>'
    )
