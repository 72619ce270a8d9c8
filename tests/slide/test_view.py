"""Views: levels, resolutions, regions, reflection, overviews."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.transform import downscale_local_mean

from kin_cli.errors import InputError, UsageError
from kin_cli.geometry import Box, Pixels, Size
from kin_cli.slide.base import Slide
from kin_cli.slide.view import SlideView, open_view, overview
from tests.helpers.pictures import random_pixels
from tests.helpers.slides import ArraySlide


def whole(view: SlideView) -> Pixels:
    return view.read(Box(0, 0, view.size.width, view.size.height))


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    box=st.builds(Box, st.integers(-25, 25), st.integers(-25, 25), st.integers(1, 30), st.integers(1, 30)),
)
def test_any_box_is_read_as_numpy_reflects(height: int, width: int, box: Box) -> None:
    pixels = random_pixels(height, width)
    padding = [(60, 60) if side > 1 else (0, 0) for side in (height, width)]
    padded = np.pad(pixels, [*padding, (0, 0)], mode="reflect")
    # numpy does not reflect a single pixel: it can only repeat
    repeated = np.pad(padded, [(60 - before, 60 - before) for before, _ in padding] + [(0, 0)], mode="edge")
    expected = repeated[box.y + 60 : box.bottom + 60, box.x + 60 : box.right + 60]
    np.testing.assert_array_equal(open_view(ArraySlide(pixels)).read(box), expected)


def test_reading_beyond_a_real_slide(svs: Slide) -> None:
    view = open_view(svs)
    padded = np.pad(whole(view), [(700, 700), (700, 700), (0, 0)], mode="reflect")
    for box in (Box(-96, -96, 704, 704), Box(2048, 2560, 704, 704), Box(2200, -700, 700, 900)):
        pixels = view.read(box)
        assert pixels.flags.c_contiguous
        np.testing.assert_array_equal(pixels, padded[box.slices(Box(-700, -700, 0, 0))])


def test_nothing_beyond_a_border_box_is_fetched() -> None:
    slide = ArraySlide(random_pixels(500, 700))
    open_view(slide).read(Box(-64, -64, 256, 256))
    assert slide.largest_read == 192 * 192


def test_region_is_an_image_of_its_own(svs: Slide) -> None:
    region = Box(500, 800, 301, 207)
    view = open_view(svs, region=region)
    pixels = svs.read(0, region)
    assert view.size == Size(301, 207)
    np.testing.assert_array_equal(whole(view), pixels)
    padded = np.pad(pixels, [(50, 50), (50, 50), (0, 0)], mode="reflect")
    np.testing.assert_array_equal(view.read(Box(-50, -50, 401, 307)), padded)


def test_levels(pyramid: Slide) -> None:
    view = open_view(pyramid, level=2, region=Box(100, 120, 300, 400))
    assert view.mpp == pytest.approx(0.499 * 4, rel=2e-3)
    assert view.read_px_per_out == 1
    np.testing.assert_array_equal(view.read(Box(0, 0, 300, 400)), pyramid.read(2, Box(100, 120, 300, 400)))
    assert open_view(pyramid).size == Size(2220, 2967)
    assert open_view(pyramid).mpp == pytest.approx(0.499)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 5}, "no level 5"),
        ({"level": -1}, "no level -1"),
        ({"level": 1, "mpp": 1.0}, "exclude each other"),
        ({"mpp": 0.0}, "positive"),
        ({"mpp": float("nan")}, "positive"),
        ({"region": Box(2000, 0, 221, 10)}, "outside the image"),
        ({"region": Box(-1, 0, 10, 10)}, "outside the image"),
        ({"region": Box(5, 5, 0, 10)}, "empty"),
        ({"region": Box(1000, 0, 200, 10), "level": 1}, "outside the image"),
    ],
)
def test_views_that_make_no_sense(pyramid: Slide, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_view(pyramid, **options)  # type: ignore[arg-type]


def test_hints_say_what_there_is(pyramid: Slide) -> None:
    with pytest.raises(UsageError) as caught:
        open_view(pyramid, level=9)
    assert "0: 2220×2967, 1: 1110×1483" in (caught.value.hint or "")
    with pytest.raises(UsageError) as caught:
        open_view(pyramid, region=Box(0, 0, 9999, 9999))
    assert "2220×2967" in (caught.value.hint or "")


def test_resolution_needs_a_pixel_size() -> None:
    with pytest.raises(InputError) as caught:
        open_view(ArraySlide(random_pixels(9, 9), mpp=None), mpp=1.0)
    assert "--source-mpp" in (caught.value.hint or "")


@pytest.mark.parametrize(("mpp", "level"), [(0.499, 0), (0.6, 0), (0.8, 1), (1.2, 1), (2.5, 2), (100, 4), (0.1, 0)])
def test_resolution_picks_the_nearest_level(pyramid: Slide, mpp: float, level: int) -> None:
    view = open_view(pyramid, mpp=mpp)
    assert view.level == level
    assert view.mpp == mpp
    assert view.size == Size(max(1, round(2220 * 0.499 / mpp)), max(1, round(2967 * 0.499 / mpp)))


def test_own_resolution_is_not_resampled(pyramid: Slide) -> None:
    view = open_view(pyramid, mpp=pyramid.mpp)
    assert view.read_px_per_out == 1
    box = Box(100, 200, 300, 300)
    np.testing.assert_array_equal(view.read(box), pyramid.read(0, box))


@settings(max_examples=40, deadline=None)
@given(
    mpp=st.floats(0.07, 1.9),
    x=st.integers(-20, 300),
    y=st.integers(-20, 300),
    width=st.integers(1, 90),
    height=st.integers(1, 90),
)
def test_resampled_pixels_do_not_depend_on_the_box(mpp: float, x: int, y: int, width: int, height: int) -> None:
    view = open_view(ArraySlide(random_pixels(203, 151)), mpp=mpp)
    around = np.pad(whole(view).astype(int), [(500, 500), (500, 500), (0, 0)], mode="reflect")
    box = Box(x, y, width, height)
    np.testing.assert_array_equal(view.read(box), around[box.slices(Box(-500, -500, 0, 0))])


@pytest.mark.parametrize("mpp", [0.11, 0.25 / 1.03, 0.6, 3.0])
def test_resampling_equals_pillow_on_the_whole_image(mpp: float) -> None:
    pixels = random_pixels(230, 310)
    view = open_view(ArraySlide(pixels), mpp=mpp)
    expected = Image.fromarray(pixels).resize((view.size.width, view.size.height), Image.Resampling.BICUBIC)
    # Pillow rounds and clips once more, between the two axes
    difference = np.abs(whole(view).astype(int) - np.asarray(expected))
    assert np.quantile(difference, 0.95) <= 1
    assert difference.mean() < 0.6


def test_strong_reduction_reads_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kin_cli.slide.view._RESAMPLED_AT_ONCE_PX", 20_000)
    slide = ArraySlide(random_pixels(1000, 900))
    view = open_view(slide, mpp=5.0)
    parts = whole(view)
    assert slide.largest_read <= 20_000
    monkeypatch.undo()
    np.testing.assert_array_equal(parts, whole(view))


def test_resolutions_of_one_slide_agree(pyramid: Slide) -> None:
    # the level that is resampled changes between these two; the picture should not
    finer, coarser = (whole(open_view(pyramid, mpp=mpp)).mean(axis=(0, 1)) for mpp in (1.4, 1.42))
    np.testing.assert_allclose(finer, coarser, atol=1.5)


@pytest.mark.parametrize("options", [{}, {"level": 1}, {"mpp": 1.7}])
@pytest.mark.parametrize("cropped", [False, True])
def test_coordinates_go_there_and_back(pyramid: Slide, options: dict[str, float], cropped: bool) -> None:
    region = Box(31, 17, 200, 300) if cropped else None
    view = open_view(pyramid, region=region, **options)  # type: ignore[arg-type]
    x, y = np.array([0.0, 700.5, 2220.0]), np.array([0.0, 33.25, 2967.0])
    out = view.l0_to_out(x, y)
    np.testing.assert_allclose(view.out_to_l0(*out), (x, y), atol=1e-9)
    corner = (31, 17) if cropped else (0, 0)
    np.testing.assert_allclose([out[0][0], out[1][0]], [-corner[0], -corner[1]])
    np.testing.assert_allclose([out[0][2] - out[0][0], out[1][2] - out[1][0]], [view.frame.width, view.frame.height])


def test_coordinates_follow_the_pixels() -> None:
    pixels = np.zeros((400, 600, 3), np.uint8)
    pixels[120:136, 300:316] = 255
    view = open_view(ArraySlide(pixels), mpp=1.0, region=Box(20, 10, 100, 60))
    bright = np.argwhere(whole(view)[..., 0] > 127)
    x, y = view.l0_to_out(np.array([300.0, 316.0]), np.array([120.0, 136.0]))
    np.testing.assert_allclose([bright[:, 1].min(), bright[:, 1].max() + 1], x)
    np.testing.assert_allclose([bright[:, 0].min(), bright[:, 0].max() + 1], y)


def test_overview_of_whole_numbers_is_the_mean() -> None:
    pixels = random_pixels(1400, 1050)
    seen = overview(open_view(ArraySlide(pixels)), max_side=200)
    np.testing.assert_allclose(seen, downscale_local_mean(pixels, (7, 7, 1)), atol=0.51)


def test_overview_of_a_region_at_fractions() -> None:
    pixels = random_pixels(700, 900)
    region = Box(101, 53, 611, 430)
    seen = overview(open_view(ArraySlide(pixels), region=region), max_side=50)
    assert seen.shape == (35, 50, 3)
    # each pixel split into 50 × 35 equal parts makes the edges whole
    cut = pixels[region.slices()].astype(np.float64)
    by_row = np.repeat(cut, 35, axis=0).reshape(35, 430, 611, 3).mean(axis=1)
    expected = np.repeat(by_row, 50, axis=1).reshape(35, 50, 611, 3).mean(axis=2)
    np.testing.assert_allclose(seen, expected, atol=0.51)


def test_overview_reads_the_smallest_level_that_has_the_pixels() -> None:
    levels = [random_pixels(2048 // 2**level, 1024 // 2**level) for level in range(5)]
    slide = ArraySlide(*levels)
    assert overview(open_view(slide), max_side=500).shape == (500, 250, 3)
    assert slide.largest_read <= 512 * 256
    same = overview(open_view(slide), max_side=512)
    np.testing.assert_array_equal(same, levels[2])


def test_overview_never_enlarges(pyramid: Slide) -> None:
    view = open_view(pyramid, level=3)
    np.testing.assert_array_equal(overview(view), pyramid.read(3, Box(0, 0, 277, 370)))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (5000, 3)])
def test_overview_of_thin_pictures(size: tuple[int, int]) -> None:
    pixels = np.full((size[1], size[0], 3), 99, np.uint8)
    seen = overview(open_view(ArraySlide(pixels)), max_side=1000)
    assert seen.shape == (
        max(1, round(size[1] * min(1, 1000 / max(size)))),
        max(1, round(size[0] * min(1, 1000 / max(size)))),
        3,
    )
    assert (seen == 99).all()


def test_overview_of_a_real_slide_is_its_mean(svs: Slide, pyramid: Slide) -> None:
    seen = overview(open_view(svs), max_side=300)
    assert seen.shape == (300, 224, 3)
    full = whole(open_view(svs))
    np.testing.assert_allclose(seen.mean(axis=(0, 1)), full.mean(axis=(0, 1)), atol=0.2)
    from_levels = overview(open_view(pyramid), max_side=300)
    np.testing.assert_allclose(seen.mean(axis=(0, 1)), from_levels.mean(axis=(0, 1)), atol=1)


def test_overview_of_a_resampled_view_equals_that_of_the_slide(pyramid: Slide) -> None:
    plain = overview(open_view(pyramid), max_side=256)
    resampled = overview(open_view(pyramid, mpp=0.35), max_side=256)
    np.testing.assert_array_equal(plain, resampled)


class BigSlide(Slide):
    """100,000 × 80,000 pixels without levels: a ramp, bright at the right."""

    def __init__(self) -> None:
        self.path, self.format = Path("big"), "big"
        self.levels, self.downsamples = (Size(100_000, 80_000),), (1.0,)
        self.largest_read = 0

    def _fetch(self, level: int, box: Box) -> Pixels:
        self.largest_read = max(self.largest_read, box.width * box.height)
        ramp = (np.arange(box.x, box.right) * 250 // 100_000).astype(np.uint8)
        return np.broadcast_to(ramp[None, :, None], (box.height, box.width, 3))


def test_overview_of_a_huge_level_is_read_in_blocks() -> None:
    slide = BigSlide()
    # a band as long as the slide is enough to tell
    seen = overview(open_view(slide, region=Box(0, 500, 100_000, 800)), max_side=250)
    assert slide.largest_read <= 1 << 20
    np.testing.assert_allclose(seen[1, :, 0], np.arange(250), atol=1)


def test_failures_stop_an_overview() -> None:
    slide = BigSlide()
    fetched = []

    def fail(level: int, box: Box) -> Pixels:
        fetched.append(box)
        raise InputError("array: damaged")

    slide._fetch = fail  # type: ignore[method-assign]
    with pytest.raises(InputError, match="damaged"):
        overview(open_view(slide))
    assert len(fetched) < 50


def test_the_objective_follows_the_resolution(pyramid: Slide, svs: Slide) -> None:
    assert pyramid.objective is None
    assert open_view(pyramid).objective is None
    assert svs.objective == 20
    assert open_view(svs, region=Box(5, 5, 100, 100)).objective == 20
    assert open_view(svs, mpp=1.996).objective == 5
    assert open_view(svs, mpp=0.2495).objective == 40
