"""``kin compare`` and ``kin sweep``: every column is what ``kin translate`` writes, all of them from one
table; corners and close-ups: the worst first, apart from each other, inside the image.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import pyvips
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kin_cli.errors import UsageError
from kin_cli.evaluation.seams import close_up
from kin_cli.figures.compare import (
    Comparison,
    Corner,
    MetricOptions,
    clean_up,
    compare,
    worst_corners,
)
from kin_cli.figures.sheet import values_text
from kin_cli.geometry import Box, Size
from kin_cli.metrics.seams import SeamLine
from kin_cli.passes.engine import Engine
from kin_cli.progress import SilentProgress
from kin_cli.translation import translate
from tests.helpers.comparisons import HEIGHT, NORMS, WIDTH, base_settings, comparison_settings
from tests.helpers.progress import Watcher
from tests.helpers.seams import measure_seams
from tests.helpers.translations import PATCH


def test_every_column_shows_and_measures_what_translate_writes(
    found: Comparison, photo: Path, tiny_generator: Path, tmp_path: Path
) -> None:
    source = np.asarray(Image.open(photo))
    assert [column.name for column in found.variants] == list(NORMS)
    assert len(found.boxes) == 2
    for column in found.variants:
        wanted = base_settings(photo, tiny_generator, tmp_path / f"{column.name}.tif")
        translate(dataclasses.replace(wanted, norm=NORMS[column.name]), SilentProgress())
        pixels = tifffile.imread(wanted.output.path)
        np.testing.assert_array_equal(column.overview, pixels)
        for box, shown in zip(found.boxes, column.close_ups, strict=True):
            np.testing.assert_array_equal(shown, pixels[box.slices()])
        summary = measure_seams(
            lambda box, pixels=pixels: pixels[box.slices()],
            Size(WIDTH, HEIGHT),
            patch_px=PATCH,
            source=lambda box: source[box.slices()],
        )
        for direction in ("both", "vertical", "horizontal"):
            assert column.seam(direction) == summary.result("step", direction)
    np.testing.assert_array_equal(found.source.overview, source)


def test_places_are_corners_of_the_grid_within_every_close_up(found: Comparison) -> None:
    for corner, box in zip(found.corners, found.boxes, strict=True):
        assert corner is not None
        assert (corner.x % PATCH, corner.y % PATCH) == (0, 0)
        assert (corner.x - box.x, corner.y - box.y) == (PATCH // 2, PATCH // 2)
    assert found.corners[0].excess >= found.corners[1].excess  # type: ignore[union-attr]


def test_statistics_are_measured_once(
    photo: Path, tiny_generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []
    measure = Engine.measure
    monkeypatch.setattr(
        Engine, "measure", lambda self, images, **how: measured.append(len(images)) or measure(self, images, **how)
    )
    compare(comparison_settings(photo, tiny_generator, tmp_path / "work"), SilentProgress())
    assert sum(measured) == 6 * 5 + 1  # and the thumbnail


def test_translations_are_kept_where_asked_and_taken_from_there(
    photo: Path, tiny_generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping = comparison_settings(photo, tiny_generator, tmp_path / "kept", keep=True)
    first = compare(keeping, SilentProgress())
    clean_up(keeping, SilentProgress())
    assert {path.name for path in (tmp_path / "kept").glob("*.tif")} == {f"{name}.tif" for name in NORMS}
    monkeypatch.setattr(Engine, "__init__", lambda *_, **__: pytest.fail("translated again"))
    again = compare(keeping, SilentProgress())
    for one, other in zip(first.variants, again.variants, strict=True):
        np.testing.assert_array_equal(one.overview, other.overview)


def test_an_interrupted_comparison_goes_on(photo: Path, tiny_generator: Path, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def die(stage: str, done: int) -> None:
        if stage == "apply" and done and len(watcher.notes) > 2:
            raise Killed

    watcher = Watcher(die)
    wanted = comparison_settings(photo, tiny_generator, tmp_path / "work")
    with pytest.raises(Killed):
        compare(wanted, watcher)
    again = Watcher()
    compare(wanted, again)
    assert any("30 of 30 patches are measured" in note for note in again.notes)


def test_inception_without_a_reference_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="FID compares with"):
        MetricOptions(inception=tmp_path / "weights.pth")


def test_a_source_that_fakes_seams_in_colour_is_measured_in_luma(
    photo: Path, tiny_generator: Path, tmp_path: Path
) -> None:
    slide = tmp_path / "slide.tif"
    how = {"compression": "jpeg", "Q": 80, "tile": True, "tile_width": PATCH, "tile_height": PATCH}
    pyvips.Image.new_from_file(str(photo)).tiffsave(str(slide), **how)
    found = compare(comparison_settings(slide, tiny_generator, tmp_path / "work"), SilentProgress())
    assert ["luma" in note for note in found.notes] == [True]
    assert {column.seams.statistic for column in found.variants if column.seams is not None} == {"step_luma"}
    assert "excess, 8-bit ↓" in values_text(found)


EVERYWHERE = np.ones((6, 6), np.float32)


def line(direction: str, row: int, col: int, excess: float) -> SeamLine:
    return SeamLine(direction, col * PATCH, row * PATCH, PATCH, 0.0, 0.0, excess)


def test_a_patch_of_another_colour_is_found_at_its_corners() -> None:
    """Measured by the metric itself: the patch in row 2, column 3 is darker than all others."""
    pixels = np.random.default_rng(0).integers(120, 180, (6 * PATCH, 6 * PATCH, 3), np.uint8)
    pixels[2 * PATCH : 3 * PATCH, 3 * PATCH : 4 * PATCH] -= 60
    summary = measure_seams(lambda box: pixels[box.slices()], Size(6 * PATCH, 6 * PATCH), patch_px=PATCH)
    found = worst_corners(summary.lines(), EVERYWHERE, patch_px=PATCH, count=1)
    assert (found[0].x // PATCH, found[0].y // PATCH) in {(3, 2), (4, 2), (3, 3), (4, 3)}
    assert found[0].excess > 2


def test_the_four_borders_of_a_corner_count_together() -> None:
    """One strong border loses against a corner at which all four are rather strong."""
    lines = [line("vertical", 1, 1, 10.0)]
    lines += [line("vertical", 3, 4, 6.0), line("vertical", 4, 4, 6.0)]
    lines += [line("horizontal", 4, 3, 6.0), line("horizontal", 4, 4, 6.0)]
    assert worst_corners(lines, EVERYWHERE, patch_px=PATCH, count=1) == [Corner(4 * PATCH, 4 * PATCH, 6.0)]


def test_corners_amid_tissue_come_first() -> None:
    tissue = EVERYWHERE.copy()
    tissue[0, 0] = 0.4
    lines = [line("vertical", 0, 1, 50.0), line("vertical", 3, 3, 1.0)]
    found = worst_corners(lines, tissue, patch_px=PATCH, count=5)
    assert [(corner.x, corner.y) for corner in found] == [(3 * PATCH, 3 * PATCH), (PATCH, PATCH)]


def test_ends_at_the_edge_of_the_image_are_no_corners() -> None:
    assert worst_corners([line("vertical", 0, 2, 5.0)], np.ones((1, 4), np.float32), patch_px=PATCH, count=3) == []
    assert worst_corners([line("vertical", 2, 2, 5.0)], EVERYWHERE, patch_px=PATCH, count=0) == []


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 5), st.floats(0, 99)),
        max_size=40,
        unique_by=lambda boundary: boundary[:3],  # a corner has four borders at most
    )
)
def test_chosen_corners_share_no_patch_and_get_no_worse(raw: list[tuple[bool, int, int, float]]) -> None:
    lines = [line("vertical" if upright else "horizontal", *place) for upright, *place in raw]
    found = worst_corners(lines, EVERYWHERE, patch_px=PATCH, count=4)
    for number, corner in enumerate(found):
        assert corner.excess <= min([99, *(other.excess for other in found[:number])])
        for other in found[:number]:
            assert max(abs(corner.x - other.x), abs(corner.y - other.y)) >= 2 * PATCH


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 400), st.data())
def test_a_close_up_lies_inside_and_around_its_place(width: int, height: int, side: int, data: st.DataObject) -> None:
    x, y = data.draw(st.integers(0, width)), data.draw(st.integers(0, height))
    size = Size(width, height)
    box = close_up(x, y, side=side, size=size)
    assert box == Box(box.x, box.y, min(side, width), min(side, height)) == box.clipped(size)
    assert box.x <= x <= box.right
    assert box.y <= y <= box.bottom
    if side // 2 <= x <= width - side and side // 2 <= y <= height - side:
        assert (box.x, box.y) == (x - side // 2, y - side // 2)
