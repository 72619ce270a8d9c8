"""Figures by matplotlib, an optional dependency: without pyplot, so without global state or a display."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from kin_cli.errors import OutputError, UsageError
from kin_cli.store.files import os_errors_as_output_errors, write_atomic

_KINDS = (".png", ".pdf", ".svg")
_DPI = 200


def check_figure_file(file: Path) -> None:
    """Raise, before any work, what would keep a figure from being drawn and written to ``file``.

    Raises:
        UsageError: matplotlib cannot be used, or the file's ending is not .png, .pdf or .svg.
        OutputError: there is no such folder, or ``file`` is one.
    """
    if file.suffix.lower() not in _KINDS:
        raise UsageError(f"{file}: no known ending of a figure", "write " + ", ".join(_KINDS))
    if file.is_dir() or not file.parent.is_dir():
        what = "is a folder" if file.is_dir() else "there is no such folder to write it to"
        raise OutputError(f"{file}: {what}", "choose another output with -o")
    new_figure(1, 1)


def new_figure(width_in: float, height_in: float) -> Any:
    """An empty ``matplotlib.figure.Figure``; ``UsageError`` where matplotlib cannot be used."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except Exception as error:  # a broken installation may raise anything
        reason = "" if isinstance(error, ModuleNotFoundError) else f" ({type(error).__name__}: {error})"
        raise UsageError(f"figures need matplotlib{reason}", "pip install 'kin-cli[figures]'") from error
    figure = Figure(figsize=(width_in, height_in), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, file: Path) -> None:
    """Write a figure, whole or not at all, in the format of the file's ending; a PNG has 200 pixels per inch."""
    kind, encoded = file.suffix.lower()[1:], io.BytesIO()
    # dates and random ids would make every file another
    metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[kind]
    figure.savefig(encoded, format=kind, dpi=_DPI, metadata=metadata)
    with os_errors_as_output_errors(file):
        write_atomic(file, encoded.getvalue())
