"""Figures with matplotlib, an optional dependency: make, check and encode a figure, and the figure of an analysis.

Without pyplot, which has global state and may open a display.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from kin_cli.errors import OutputError, UsageError
from kin_cli.figures.analysis import QUANTILES, STATISTICS, Analysis

_KINDS = (".png", ".pdf", ".svg")
_DPI = 200
_SHADES = ("#c03030", "#4878b0", "#60a060")
_GREY = "#555555"
_LONGEST = 14  # characters per line of the legend
_NOTE = (
    "Boxes: half of the patches, whiskers: 90 %.  "
    "Cosine similarity over all channels of a block's norm layers; 1 means alike."
)


def check_figure_file(file: Path) -> None:
    """Check, before any work, that a figure can be drawn and saved to ``file``.

    Raises:
        UsageError: matplotlib cannot be used, or the suffix is not .png, .pdf or .svg.
        OutputError: the folder of ``file`` does not exist, or ``file`` is a folder.
    """
    if file.suffix.lower() not in _KINDS:
        raise UsageError(f"{file}: no known ending of a figure", "write " + ", ".join(_KINDS))
    if file.is_dir() or not file.parent.is_dir():
        what = "is a folder" if file.is_dir() else "there is no such folder to write it to"
        raise OutputError(f"{file}: {what}", "choose another output with -o")
    new_figure(1, 1)


def new_figure(width_in: float, height_in: float) -> Any:
    """Return an empty ``matplotlib.figure.Figure``. Raises ``UsageError`` if matplotlib cannot be used."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except Exception as error:  # a broken installation may raise anything
        reason = "" if isinstance(error, ModuleNotFoundError) else f" ({type(error).__name__}: {error})"
        raise UsageError(f"figures need matplotlib{reason}", "pip install 'kin-cli[figures]'") from error
    figure = Figure(figsize=(width_in, height_in), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def encoded_figure(figure: Any, file: Path) -> bytes:
    """The bytes of a figure in the format that the suffix of ``file`` names; PNG at 200 pixels per inch."""
    kind, encoded = file.suffix.lower()[1:], io.BytesIO()
    # Without dates, so that the same figure gives the same file.
    metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[kind]
    figure.savefig(encoded, format=kind, dpi=_DPI, metadata=metadata)
    return encoded.getvalue()


def shown_name(file: Path) -> str:
    """The name of a file as text of a figure: no formula, and "?" for bytes and characters that cannot be drawn."""
    name = file.name.encode(errors="replace").decode().replace("$", r"\$")
    return "".join(character if character.isprintable() else "?" for character in name)


def analysis_figure(found: Analysis) -> Any:
    """Draw the paper's Figures S1 and S2 for an analysis, as a ``matplotlib.figure.Figure``.

    Above: similarity by distance, a curve per layer block. Below: similarity of patches to statistics used instead.
    """
    figure = new_figure(12.5, 8.6)
    base = found.settings.base
    names = f"{shown_name(base.source.slide)}   ·   {shown_name(Path(base.model_name))}"
    heading = f"{names}   ·   {found.patches} patches of {found.patch_px} px"
    if found.drawn < found.patches:
        heading += f", {found.drawn} of them drawn"
    figure.text(0.03, 0.975, heading, fontsize=10.5, weight="bold", va="top")
    axes = figure.subplots(2, 2, gridspec_kw={"left": 0.065, "right": 0.875, "top": 0.915, "bottom": 0.11})
    figure.subplots_adjust(hspace=0.34, wspace=0.16)
    for s, statistic in enumerate(STATISTICS):
        _draw_curves(axes[0][s], found, row=s)
        axes[0][s].set_title(f"{statistic} of two patches, by their distance (S1)", fontsize=10, loc="left")
        _draw_replacements(axes[1][s], found, row=s)
        axes[1][s].set_title(f"{statistic} of a patch, and of what replaces it (S2)", fontsize=10, loc="left")
    axes[0][1].legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8.5, frameon=False, title="layer block")
    handles = [_patch(shade) for shade, _ in zip(_SHADES, found.replacements, strict=False)]
    labels = [_wrapped(replacement.name) for replacement in found.replacements]
    axes[1][1].legend(handles, labels, loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8.5, frameon=False)
    figure.text(0.03, 0.01, _NOTE, fontsize=8, color=_GREY)
    return figure


def _draw_curves(axes: Any, found: Analysis, *, row: int) -> None:
    from matplotlib import colormaps

    count = len(found.blocks)
    shades = colormaps["viridis"]
    for b, block in enumerate(found.blocks):
        shade = shades(0.92 * b / max(1, count - 1))
        axes.plot(found.curve.distance, found.curve.mean[row, b], "o-", color=shade, label=block.name, ms=3.5, lw=1.6)
    axes.set_ylabel("cosine similarity", fontsize=9)
    where = f"distance, patches of {found.patch_px} px"
    if found.mpp is not None:
        where += f" = {found.patch_px * found.mpp:.0f} µm"
    axes.set_xlabel(where, fontsize=9)
    axes.xaxis.get_major_locator().set_params(integer=True)
    _plain(axes)


def _draw_replacements(axes: Any, found: Analysis, *, row: int) -> None:
    count = len(found.replacements)
    width = 0.8 / count
    for n, (replacement, shade) in enumerate(zip(found.replacements, _SHADES, strict=False)):
        places = [b + (n - (count - 1) / 2) * width for b in range(len(found.blocks))]
        low, lower, middle, upper, high = (replacement.quantiles[q, row].tolist() for q in range(len(QUANTILES)))
        boxes = [
            {"whislo": a, "q1": b, "med": c, "q3": d, "whishi": e, "fliers": []}
            for a, b, c, d, e in zip(low, lower, middle, upper, high, strict=True)
        ]
        style = {"boxprops": {"facecolor": shade, "alpha": 0.75, "lw": 0.6}, "medianprops": {"color": "black"}}
        axes.bxp(
            boxes,
            positions=places,
            widths=0.85 * width,
            patch_artist=True,
            showfliers=False,
            manage_ticks=False,
            **style,
        )
    axes.set_xticks(range(len(found.blocks)), [block.name for block in found.blocks], fontsize=8.5)
    if len(found.blocks) > 8:
        axes.tick_params(axis="x", rotation=50)
    axes.set_ylabel("cosine similarity", fontsize=9)
    _plain(axes)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5)


def _patch(shade: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=shade, alpha=0.75, edgecolor="black", linewidth=0.6)


def _wrapped(name: str) -> str:
    return name.replace(" ", "\n", 1) if len(name) > _LONGEST else name
