"""The made-up slide: the same everywhere it is read, and like H&E in numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.color import rgb2hed
from skimage.transform import downscale_local_mean

from kin_cli.geometry import Box, Size
from kin_cli.slide.synthetic import SampleSlide

SIZE = Size(5000, 4000)


@pytest.fixture(scope="module")
def sample() -> SampleSlide:
    return SampleSlide(SIZE)


def all_of(sample: SampleSlide, level: int) -> NDArray[np.uint8]:
    size = sample.levels[level]
    return sample.read(level, Box(0, 0, size.width, size.height))


@settings(max_examples=40, deadline=None)
@given(
    box=st.builds(Box, st.integers(0, 1500), st.integers(0, 1500), st.integers(1, 500), st.integers(1, 500)),
    corner=st.tuples(st.integers(0, 2900), st.integers(0, 1900)),
)
def test_a_pixel_depends_only_on_its_place(sample: SampleSlide, box: Box, corner: tuple[int, int]) -> None:
    moved = box.shifted(*corner)
    around = moved.grown(37).clipped(SIZE)
    moved = moved.intersection(around)
    np.testing.assert_array_equal(sample.read(0, moved), sample.read(0, around)[moved.slices(around)])


def test_reduced_levels_too_depend_on_the_place_alone(sample: SampleSlide) -> None:
    for level in (1, 2):
        whole = all_of(sample, level)
        box = Box(41, 27, 150, 170)
        np.testing.assert_array_equal(sample.read(level, box), whole[box.slices()])


def test_seed_and_size_decide(sample: SampleSlide) -> None:
    box = Box(1800, 1300, 300, 300)
    pixels = sample.read(0, box)
    np.testing.assert_array_equal(SampleSlide(SIZE).read(0, box), pixels)
    assert not np.array_equal(SampleSlide(SIZE, seed=1).read(0, box), pixels)


def test_levels_are_means_of_level_0(sample: SampleSlide) -> None:
    assert sample.levels == (SIZE, Size(1250, 1000), Size(312, 250))
    assert sample.downsamples == (1.0, 4.0, 16.0)
    assert (sample.mpp, sample.objective) == (0.5, 20.0)
    box = Box(1024, 1024, 1600, 1600)
    pixels = sample.read(0, box)
    for level, factor in ((1, 4), (2, 16)):
        part = Box(*(side // factor for side in (box.x, box.y, box.width, box.height)))
        means = downscale_local_mean(pixels, (factor, factor, 1))
        difference = np.abs(sample.read(level, part) - means)
        assert difference.mean() < 1
        assert np.quantile(difference, 0.95) < 6


def test_looks_like_haematoxylin_and_eosin(sample: SampleSlide) -> None:
    coarse = all_of(sample, 2).astype(int)
    tissue = coarse.max(axis=2) - coarse.min(axis=2) > 20
    assert 0.45 < tissue.mean() < 0.65
    red, green, blue = np.moveaxis(coarse[tissue], -1, 0)
    assert (np.minimum(red, blue) > green).mean() > 0.99
    background = coarse[coarse.min(axis=2) > 235]
    assert len(background) > 0.3 * tissue.size
    assert background.std(axis=0).max() < 2
    rows, cols = np.nonzero(tissue)
    middle = np.argsort((rows - np.median(rows)) ** 2 + (cols - np.median(cols)) ** 2)[0]
    detail = sample.read(0, Box(int(cols[middle]) * 16 - 250, int(rows[middle]) * 16 - 250, 500, 500))
    haematoxylin = rgb2hed(detail)[..., 0]
    nuclei = haematoxylin > (haematoxylin.min() + haematoxylin.max()) / 2
    assert 0.02 < nuclei.mean() < 0.6


@pytest.mark.parametrize("size", [Size(1, 1), Size(1, 5000), Size(5000, 1), Size(33, 17)])
def test_small_and_thin(size: Size) -> None:
    sample = SampleSlide(size)
    pixels = all_of(sample, 0)
    assert pixels.shape == (size.height, size.width, 3)
    assert pixels.min() > 0


def test_the_largest_slide_is_not_held_in_memory() -> None:
    sample = SampleSlide(Size(200_000, 200_000))
    corner = sample.read(0, Box(199_900, 199_950, 100, 50))
    assert corner.min() > 225
    middle = sample.read(1, Box(20_000, 25_000, 64, 64))
    assert middle.shape == (64, 64, 3)
