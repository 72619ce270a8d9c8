"""Pieces of HTML. Every text that goes in is escaped here; what comes out is markup."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

from kin_cli.metrics.colour import Pixels
from kin_cli.pyramid.codec import Codec

# chroma at full resolution: subsampling would add steps of its own, at every 16th pixel
_CODEC = Codec("jpeg", 85, "444")


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
