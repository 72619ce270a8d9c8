from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kin_cli.geometry import Box, Cell, Grid, Size, scale_bar

sides = st.integers(1, 70)
boxes = st.builds(Box, st.integers(-40, 80), st.integers(-40, 80), st.integers(0, 90), st.integers(0, 90))


@given(sides, sides, st.integers(1, 40))
def test_every_pixel_lies_in_exactly_one_cell(width: int, height: int, step: int) -> None:
    grid = Grid(Size(width, height), step)
    seen = np.zeros((height, width), int)
    for cell in grid:
        seen[grid.clipped(cell).slices()] += 1
    assert (seen == 1).all()
    assert len(list(grid)) == len(grid)
    assert all(grid.cell(grid.index(cell)) == cell for cell in grid)


@given(sides, sides, st.integers(1, 40), boxes)
def test_cells_in_a_box_are_those_that_share_a_pixel(width: int, height: int, step: int, box: Box) -> None:
    grid = Grid(Size(width, height), step)
    expected = [cell for cell in grid if not grid.clipped(cell).intersection(box).empty]
    assert list(grid.cells_in(box)) == expected


@given(boxes, boxes)
def test_intersection_is_the_set_of_common_pixels(a: Box, b: Box) -> None:
    def pixels(box: Box) -> set[tuple[int, int]]:
        return {(x, y) for x in range(box.x, box.right) for y in range(box.y, box.bottom)}

    assert pixels(a.intersection(b)) == pixels(a) & pixels(b)


def test_impossible_values_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Size(0, 4)
    with pytest.raises(ValueError, match="negative"):
        Box(0, 0, -1, 4)
    with pytest.raises(ValueError, match="step"):
        Grid(Size(4, 4), 0)


def test_grown_box_keeps_its_centre() -> None:
    assert Box(10, 20, 30, 40).grown(5) == Box(5, 15, 40, 50)
    assert Grid(Size(1000, 600), 512).box(Cell(1, 1)) == Box(512, 512, 512, 512)


@given(st.integers(1, 40), st.data())
def test_the_middle_is_in_the_middle(step: int, data: st.DataObject) -> None:
    side = data.draw(st.integers(1, step))
    grid, cell = Grid(Size(100, 100), step), Cell(data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3)))
    whole, middle = grid.box(cell), grid.middle(cell, side)
    assert (middle.width, middle.height) == (side, side)
    assert 0 <= (whole.right - middle.right) - (middle.x - whole.x) <= 1
    assert 0 <= (whole.bottom - middle.bottom) - (middle.y - whole.y) <= 1
    assert grid.middle(cell, step) == whole


@pytest.mark.parametrize(
    ("width", "mpp", "microns", "label"),
    [
        (2000, 0.5, 200, "200 µm"),
        (2000, 0.25, 100, "100 µm"),
        (100_000, 0.25, 5000, "5 mm"),
        (512, 0.5, 50, "50 µm"),
        (10, 0.1, 0.2, "0.2 µm"),
    ],
)
def test_a_scale_bar_is_a_round_length_of_at_most_a_quarter(
    width: float, mpp: float, microns: float, label: str
) -> None:
    found = scale_bar(width, mpp)
    assert found is not None
    assert found[0] * mpp == pytest.approx(microns)
    assert found[0] <= width / 4 < 2.5 * found[0]
    assert found[1] == label


def test_without_a_pixel_size_there_is_no_scale_bar() -> None:
    assert scale_bar(1000, None) is None
