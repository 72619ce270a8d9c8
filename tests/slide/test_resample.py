"""Resampling against Pillow and the definition, integrals by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kin_cli.geometry import Pixels
from kin_cli.slide.resample import axis, resample, sums_between
from tests.helpers.pictures import random_pixels


@settings(deadline=None)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    rows=st.lists(st.floats(0, 1), max_size=4),
    cols=st.lists(st.floats(0, 1), max_size=4),
)
def test_integrals_equal_brute_force(height: int, width: int, rows: list[float], cols: list[float]) -> None:
    values = np.random.default_rng(height).integers(0, 256, (height, width), dtype=np.uint8)
    row_edges = np.array([0, *sorted(rows), 1]) * height
    col_edges = np.array([0, *sorted(cols), 1]) * width
    sums = sums_between(values, row_edges, col_edges)
    assert sums.shape == (len(row_edges) - 1, len(col_edges) - 1)
    for i in range(len(row_edges) - 1):
        for j in range(len(col_edges) - 1):
            total = 0.0
            for y in range(height):
                for x in range(width):
                    tall = max(0.0, min(row_edges[i + 1], y + 1) - max(row_edges[i], y))
                    wide = max(0.0, min(col_edges[j + 1], x + 1) - max(col_edges[j], x))
                    total += tall * wide * values[y, x]
            assert sums[i, j] == pytest.approx(total, rel=1e-4, abs=1e-2)


def resampled(pixels: Pixels, width: int, height: int) -> Pixels:
    """A whole picture brought to another size."""
    rows = axis(0, height, length=pixels.shape[0], out_length=height)
    cols = axis(0, width, length=pixels.shape[1], out_length=width)
    assert (rows.first, rows.needed, cols.first, cols.needed) == (0, pixels.shape[0], 0, pixels.shape[1])
    return resample(pixels, rows=rows, cols=cols)


@pytest.mark.parametrize(("width", "height"), [(31, 90), (200, 17), (64, 48), (63, 47), (65, 150)])
def test_resampling_is_pillows_bicubic(width: int, height: int) -> None:
    pixels = random_pixels(48, 64)
    expected = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    # Pillow rounds and clips once more, between the two axes
    difference = np.abs(resampled(pixels, width, height) - expected)
    assert np.quantile(difference, 0.95) <= 1
    assert difference.mean() < 0.6


@given(st.integers(1, 60), st.integers(1, 60))
def test_weights_sum_to_one_and_keep_a_constant(length: int, out_length: int) -> None:
    weights = axis(0, out_length, length=length, out_length=out_length).weights.toarray()
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    grey = np.full((length, 1, 3), 201, np.uint8)
    same = axis(0, 1, length=1, out_length=1)
    made = resample(grey, rows=axis(0, out_length, length=length, out_length=out_length), cols=same)
    assert (made == 201).all()


@given(st.integers(20, 300), st.integers(20, 300))
def test_straight_lines_stay_straight_between_the_ends(length: int, out_length: int) -> None:
    """Keys's kernel reproduces lines where it is not cut off; when reducing, by symmetry."""
    weights = axis(0, out_length, length=length, out_length=out_length).weights.toarray()
    centres = (np.arange(out_length) + 0.5) * length / out_length - 0.5
    margin = 2 * max(1.0, length / out_length) + 1
    inner = (centres > margin) & (centres < length - 1 - margin)
    exact = out_length >= length  # a widened kernel sampled at pixels is a line only nearly
    np.testing.assert_allclose((weights @ np.arange(length))[inner], centres[inner], atol=1e-2 if exact else 0.1)


@given(st.integers(5, 80), st.integers(5, 80), st.data())
def test_a_part_has_the_weights_of_the_whole(length: int, out_length: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, out_length - 1))
    stop = data.draw(st.integers(start + 1, out_length))
    whole = axis(0, out_length, length=length, out_length=out_length).weights.toarray()
    part = axis(start, stop, length=length, out_length=out_length)
    np.testing.assert_array_equal(part.weights.toarray(), whole[start:stop, part.first : part.first + part.needed])
    assert not whole[start:stop, : part.first].any()
    assert not whole[start:stop, part.first + part.needed :].any()
