"""The sheets of a comparison: every picture and every result, and nothing cut off."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kin_cli.figures.compare import (
    Comparison,
    compare,
)
from kin_cli.figures.sheet import comparison_sheet, csv_rows, sweep_sheet, values_text
from kin_cli.progress import SilentProgress
from tests.helpers.comparisons import NORMS, comparison_settings


def test_the_sheet_holds_every_picture_and_every_figure(found: Comparison) -> None:
    figure = comparison_sheet(found)
    columns = (found.source, *found.variants)
    assert len(figure.axes) == 3 * len(columns)
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    wanted = [column.overview for column in columns]
    wanted += [column.close_ups[row] for row in range(2) for column in columns]
    for one, other in zip(shown, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    texts = [text.get_text() for text in figure.texts]
    for column in found.variants:
        seam = column.seam()
        assert seam is not None
        assert column.title in texts
        assert f"{seam.excess:.2f}" in texts
        assert f"{seam.excess:.2f}" in values_text(found)
    assert_nothing_is_cut_off(figure)
    narrow = sweep_sheet(dataclasses.replace(found, notes=("a rather long note " * 20,)), [("constant", ["in"])])
    assert_nothing_is_cut_off(narrow)


def assert_nothing_is_cut_off(figure: Any) -> None:
    width, height = figure.get_size_inches() * figure.dpi
    canvas = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(canvas) for text in figure.texts]
    boxes += [axes.get_window_extent(canvas) for axes in figure.axes]
    for box in boxes:
        assert 0 <= box.x0 < box.x1 <= width
        assert 0 <= box.y0 < box.y1 <= height
    texts = boxes[: len(figure.texts)]
    for number, one in enumerate(texts):  # nor does any text lie on another or on a picture
        assert not any(one.overlaps(other) for other in boxes[number + 1 :])


def test_a_scale_bar_is_as_long_as_it_says_and_stands_once_a_row(found: Comparison) -> None:
    scaled = dataclasses.replace(found, view=dataclasses.replace(found.view, mpp=0.5))
    figure, columns = comparison_sheet(scaled), 1 + len(found.variants)
    for number, axes in enumerate(figure.axes):
        assert len(axes.lines) == (2 if number % columns == 0 else 0)
    lengths = [float(np.ptp(axes.lines[0].get_xdata())) for axes in figure.axes[::columns]]
    widths = [found.view.size.width, *(box.width for box in found.boxes)]
    labels = [float(axes.texts[-1].get_text().split()[0]) for axes in figure.axes[::columns]]
    assert [length * width * 0.5 for length, width in zip(lengths, widths, strict=True)] == [
        *map(pytest.approx, labels)
    ]
    assert not any(axes.lines for axes in comparison_sheet(found).figure.axes)


def test_intervals_stand_beside_the_ratios_and_few_borders_are_not_judged(found: Comparison) -> None:
    text, rows = values_text(found), csv_rows(found)
    seam = found.variants[0].seam()
    assert seam is not None
    assert seam.interval is not None
    both = next(row for row in rows if row[0] == "in" and row[1] == "R* both")
    assert both[4] == f"step, {seam.n} borders, 95 % in {seam.interval[0]:.3f} to {seam.interval[1]:.3f}"
    few = found.variants[0].seam("vertical")
    assert few is not None
    assert f"too few to judge ({few.n})" in text


def test_a_picture_without_any_corner_or_tile_still_makes_a_sheet(
    photo: Path, tiny_generator: Path, tmp_path: Path
) -> None:
    Image.open(photo).crop((0, 0, 100, 90)).save(tmp_path / "small.png")
    found = compare(comparison_settings(tmp_path / "small.png", tiny_generator, tmp_path / "work"), SilentProgress())
    assert found.corners == (None,)
    assert any("only seams are measured" in note for note in found.notes)
    comparison_sheet(found)
    assert [row[2] for row in csv_rows(found)[1:] if row[1] == "R* both"] == [None] * len(NORMS)
