"""Corners and close-ups: the worst first, apart from each other, inside the image."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kin_cli.figures.compare import Corner, close_up, worst_corners
from kin_cli.geometry import Box, Size
from kin_cli.metrics.seams import SeamLine, measure_seams

PATCH = 64
EVERYWHERE = np.ones((6, 6), np.float32)


def line(direction: str, row: int, col: int, excess: float) -> SeamLine:
    return SeamLine(direction, col * PATCH, row * PATCH, PATCH, 0.0, 0.0, excess)


def test_a_patch_of_another_colour_is_found_at_its_corners() -> None:
    """Measured by the metric itself: the patch in row 2, column 3 is darker than all others."""
    pixels = np.random.default_rng(0).integers(120, 180, (6 * PATCH, 6 * PATCH, 3), np.uint8)
    pixels[2 * PATCH : 3 * PATCH, 3 * PATCH : 4 * PATCH] -= 60
    report = measure_seams(lambda box: pixels[box.slices()], Size(6 * PATCH, 6 * PATCH), tile=PATCH)
    found = worst_corners(report.lines(), EVERYWHERE, patch_px=PATCH, count=1)
    assert (found[0].x // PATCH, found[0].y // PATCH) in {(3, 2), (4, 2), (3, 3), (4, 3)}
    assert found[0].excess > 2


def test_the_four_boundaries_of_a_corner_count_together() -> None:
    """One strong boundary loses against a corner at which all four are rather strong."""
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


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 5), st.floats(0, 99)), max_size=40))
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
