"""Interpolation weights against torch's own interpolation and against plain indexing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kin_cli.norm.lookup import Interpolation, Lookup

PATCH = 16


def field(lookup: Lookup, cells: np.ndarray, first: int, patches: int, features: int) -> np.ndarray:
    """Values along a line of feature pixels, cells beyond the table replicated as the table does."""
    span = lookup.span(patches)
    index = np.clip(np.arange(first + span.start, first + span.stop), 0, len(cells) - 1)
    return lookup.weights(features, patches) @ cells[index]


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_bilinear_is_torchs_interpolation_of_the_whole_table(stride: int) -> None:
    cells = np.random.default_rng(0).normal(size=7).astype(np.float32)
    features = 7 * PATCH // stride
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(cells)[None, None], size=features, mode="linear", align_corners=False
    )[0, 0].numpy()
    np.testing.assert_allclose(field(Lookup(PATCH, 0, "bilinear"), cells, 0, 7, features), expected, atol=2e-6)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_nearest_gives_each_pixel_its_own_cell(stride: int) -> None:
    cells = np.arange(5, dtype=np.float32)
    per_patch = PATCH // stride
    got = field(Lookup(PATCH, 0, "nearest"), cells, 0, 5, 5 * per_patch)
    np.testing.assert_array_equal(got, np.repeat(cells, per_patch))


def test_a_window_of_one_patch_reads_one_cell_and_nothing_else() -> None:
    assert list(Lookup(PATCH, 0, "nearest").span(1)) == [0]
    assert (Lookup(PATCH, 0, "nearest").weights(4, 1) == 1).all()


@given(
    st.sampled_from(["nearest", "bilinear"]),
    st.integers(0, 3),
    st.integers(1, 3),
    st.sampled_from([0, 4, 8, 20, 36]),
    st.sampled_from([1, 2, 4]),
)
def test_every_window_shows_the_same_field_at_the_same_place(
    interpolation: Interpolation, first: int, patches: int, halo: int, stride: int
) -> None:
    cells = np.random.default_rng(1).normal(size=6).astype(np.float32)
    whole = field(Lookup(PATCH, 64, interpolation), cells, 0, 6, (6 * PATCH + 128) // stride)
    part = field(Lookup(PATCH, halo, interpolation), cells, first, patches, (patches * PATCH + 2 * halo) // stride)
    start = (first * PATCH - halo + 64) // stride
    np.testing.assert_allclose(part, whole[start : start + len(part)], atol=1e-6)


@given(st.sampled_from(["nearest", "bilinear"]), st.integers(1, 4), st.sampled_from([0, 4, 12, 40]))
def test_weights_sum_to_one(interpolation: Interpolation, patches: int, halo: int) -> None:
    weights = Lookup(PATCH, halo, interpolation).weights((patches * PATCH + 2 * halo) // 4, patches)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    assert (weights >= 0).all()
