"""What every slide promises: boxes, levels, pixel sizes, depths and opacity."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kin_cli.geometry import Box, Size
from kin_cli.slide.base import Slide, composite, composite_premultiplied, credible_mpp, downsamples_of, to_uint8
from tests.helpers.pictures import random_pixels
from tests.helpers.slides import ArraySlide, plain_slide


@pytest.mark.parametrize("box", [Box(-1, 0, 5, 5), Box(2216, 0, 5, 5), Box(0, 2966, 1, 2)])
def test_boxes_beyond_the_level_are_refused(svs: Slide, box: Box) -> None:
    with pytest.raises(ValueError, match="beyond level 0"):
        svs.read(0, box)


def test_levels_beyond_the_slide_are_refused(svs: Slide) -> None:
    with pytest.raises(ValueError, match="levels 0 to 0, not 1"):
        svs.read(1, Box(0, 0, 1, 1))


def test_an_empty_box_has_no_pixels(svs: Slide) -> None:
    assert svs.read(0, Box(7, 8, 0, 5)).shape == (5, 0, 3)


@pytest.mark.parametrize(
    ("x", "y", "mpp"),
    [(0.25, 0.27, 0.26), (0.25, None, 0.25), (None, None, None), (352.8, 352.8, None), (1000.0, 0.5, 0.5)],
)
def test_credible_pixel_sizes(x: float | None, y: float | None, mpp: float | None) -> None:
    assert credible_mpp(x, y) == (mpp if mpp is None else pytest.approx(mpp))


@pytest.mark.parametrize(
    ("x", "y", "square"),
    [(0.5, 0.5, True), (0.5, 0.505, True), (0.25, 0.5, False), (0.5, 0.52, False), (0.5, None, True), (353, 706, True)],
)
def test_pixels_that_are_not_square_are_noticed(x: float, y: float | None, square: bool) -> None:
    slide = ArraySlide(random_pixels(3, 4))
    slide.set_pixel_size(x, y)
    assert slide.not_square == (None if square else (x, y))


@settings(deadline=None)
@given(
    st.tuples(*[st.integers(0, 255)] * 3),
    st.integers(0, 255),
    st.tuples(*[st.integers(0, 255)] * 3),
)
def test_compositing_is_the_formula_rounded(
    colour: tuple[int, int, int], alpha: int, under: tuple[int, int, int]
) -> None:
    rgb, opacity = np.full((1, 1, 3), colour, np.uint8), np.full((1, 1), alpha, np.uint8)
    exact = np.array(colour) * (alpha / 255) + np.array(under) * (1 - alpha / 255)
    np.testing.assert_allclose(composite(rgb, opacity, fill_colour=under)[0, 0], exact, atol=0.5 + 1e-9)
    premultiplied = np.rint(rgb * (alpha / 255)).astype(np.uint8)
    seen = composite_premultiplied(premultiplied, opacity, fill_colour=under)[0, 0]
    np.testing.assert_allclose(seen, exact, atol=1 + 1e-9)


def test_compositing_is_pillows() -> None:
    rgb, alpha = random_pixels(40, 50), random_pixels(40, 50, seed=1)[..., 0]
    layer = Image.fromarray(np.dstack([rgb, alpha]))
    under = Image.new("RGBA", layer.size, (240, 230, 220, 255))
    expected = np.asarray(Image.alpha_composite(under, layer).convert("RGB")).astype(int)
    assert np.abs(composite(rgb, alpha, fill_colour=(240, 230, 220)) - expected).max() <= 1


def test_depths_become_8_bits() -> None:
    every = np.arange(65536, dtype=np.uint16)
    np.testing.assert_array_equal(to_uint8(every), np.rint(every / 257))
    np.testing.assert_array_equal(to_uint8(np.array([True, False])), [255, 0])
    bytes_ = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(bytes_), bytes_)
    for bits in range(1, 16):
        few = every[: 2**bits]
        np.testing.assert_array_equal(to_uint8(few, bits=bits), np.floor(few / (2**bits - 1) * 255 + 0.5))
    assert to_uint8(np.array([5000], np.uint16), bits=12) == 255
    with pytest.raises(ValueError, match="float32"):
        to_uint8(np.zeros(3, np.float32))


def test_downsamples_are_means_of_both_axes() -> None:
    assert downsamples_of((Size(1000, 800), Size(500, 400), Size(333, 266))) == pytest.approx((1, 2, 3.005), abs=1e-3)


def test_a_slide_closes_with_its_block() -> None:
    class Closing(ArraySlide):
        closed = False

        def close(self) -> None:
            self.closed = True

    def use(slide: Closing) -> None:
        with slide:
            raise KeyError

    slide = Closing(random_pixels(3, 4))
    with pytest.raises(KeyError):
        use(slide)
    assert slide.closed


def test_one_credible_side_of_a_pixel_is_not_enough() -> None:
    slide = plain_slide(8, 8)
    slide.set_pixel_size(0.25, 25.0)
    assert slide.not_square == (0.25, 25.0)
    slide.set_pixel_size(0.25, None)
    assert (slide.mpp, slide.not_square) == (0.25, None)
    slide.set_pixel_size(352.8, 353.0)
    assert (slide.mpp, slide.not_square) == (None, None)
