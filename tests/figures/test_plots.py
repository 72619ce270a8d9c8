"""Figures as files: their format, their bytes, and what is refused before any work."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kin_cli.errors import OutputError, UsageError
from kin_cli.figures.plots import check_figure_file, encoded_figure, new_figure, shown_name

pytest.importorskip("matplotlib", reason="figures need matplotlib")


def a_figure() -> Any:
    figure = new_figure(3, 2)
    figure.add_axes((0, 0, 1, 1)).plot([0, 1], [1, 0])
    return figure


@pytest.mark.parametrize(("name", "head"), [("a.png", b"\x89PNG"), ("a.PDF", b"%PDF"), ("a.svg", b"<?xml")])
def test_the_ending_decides_the_format_and_the_same_figure_is_the_same_file(
    tmp_path: Path, name: str, head: bytes
) -> None:
    file = tmp_path / name
    written = []
    for _ in range(2):
        check_figure_file(file)
        written.append(encoded_figure(a_figure(), file))
    assert written[0].startswith(head)
    if not name.endswith("svg"):  # ids of SVG elements are random
        assert written[0] == written[1]
    assert list(tmp_path.iterdir()) == []


def test_a_png_has_200_pixels_per_inch() -> None:
    image = Image.open(io.BytesIO(encoded_figure(a_figure(), Path("a.png"))))
    assert image.size == (600, 400)
    assert np.asarray(image.convert("RGB")).std() > 1


def test_figures_need_no_display_and_leave_no_global_state() -> None:
    a_figure()
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_what_cannot_be_drawn_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.png").mkdir()
    for name, error, match in (
        ("a.tif", UsageError, "no known ending"),
        ("nowhere/a.png", OutputError, "no such folder"),
        ("folder.png", OutputError, "is a folder"),
    ):
        with pytest.raises(error, match=match):
            check_figure_file(tmp_path / name)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match="matplotlib") as caught:
        check_figure_file(tmp_path / "a.png")
    assert "pip install" in (caught.value.hint or "")


def test_every_file_name_can_be_drawn() -> None:
    for name in (b"\xff.png", b"$x$y$.png", b"$\\frac$.png", b"a\nb.png", b"$.png"):
        figure = a_figure()
        figure.text(0, 0, shown_name(Path(os.fsdecode(name))))
        assert encoded_figure(figure, Path("a.png"))
    assert shown_name(Path("cost $5.png")) == r"cost \$5.png"
