"""Slides with unreadable parts: what is filled depends on the place alone, and every tile that it touches counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kin_cli.errors import InputError
from kin_cli.geometry import Box, Cell, Grid, Size
from kin_cli.slide.base import Pixels, Slide
from kin_cli.slide.unreadable import Faults, FillingSlide, filled_box, strict
from kin_cli.slide.view import open_view
from kin_cli.store.blobs import BlobStore

SIZE = Size(700, 600)


class Damaged(Slide):
    """Grey noise with boxes that cannot be read."""

    path, format, levels, downsamples, mpp = Path("damaged.svs"), "test", (SIZE,), (1.0,), 0.5

    def __init__(self, bad: list[Box]) -> None:
        self.bad = bad
        self.pixels = np.random.default_rng(0).integers(0, 200, (SIZE.height, SIZE.width, 3), np.uint8)

    def _fetch(self, level: int, box: Box) -> Pixels:
        if any(not box.intersection(bad).empty for bad in self.bad):
            raise InputError("damaged")
        return self.pixels[box.slices()]


@st.composite
def boxes(draw: st.DrawFn, most: int = 300) -> Box:
    x, y = draw(st.integers(0, SIZE.width - 1)), draw(st.integers(0, SIZE.height - 1))
    width = draw(st.integers(1, min(most, SIZE.width - x)))
    return Box(x, y, width, draw(st.integers(1, min(most, SIZE.height - y))))


@settings(max_examples=60, deadline=None)
@given(st.lists(boxes(40), max_size=3), st.lists(boxes(), min_size=1, max_size=6), st.randoms())
def test_what_is_filled_depends_on_the_place_alone(bad: list[Box], reads: list[Box], random: object) -> None:
    inner = Damaged(bad)
    alone = [FillingSlide(inner).read(0, box) for box in reads]
    order = list(range(len(reads)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shared = FillingSlide(inner)
    for number in order:
        assert np.array_equal(shared.read(0, reads[number]), alone[number])
    for box, pixels in zip(reads, alone, strict=True):
        same = (pixels == inner.pixels[box.slices()]).all(axis=2)
        assert (pixels[~same] == 255).all(), "nothing but the slide or its background"
        for part in bad:
            assert (pixels[box.intersection(part).slices(box)] == 255).all()


@settings(max_examples=30, deadline=None)
@given(boxes(20), st.sampled_from([None, 0.5, 0.7, 0.4, 1.9]), st.booleans())
def test_every_filled_pixel_lies_in_the_box_that_is_told(bad: Box, mpp: float | None, cropped: bool) -> None:
    told: list[Box] = []
    whole, filling = Damaged([]), FillingSlide(Damaged([bad]))
    region = Box(13, 7, 90, 80) if cropped else None
    view, wanted = (open_view(slide, mpp=mpp, region=region) for slide in (filling, whole))
    filling.listen(lambda level, block: told.append(filled_box(view, level, block)))
    everything = Box(0, 0, view.size.width, view.size.height)
    differs = (view.read(everything) != wanted.read(everything)).any(axis=2)
    for box in told:
        differs[box.slices()] = False
    assert not differs.any()


def test_faults_are_told_once_even_if_met_before_anybody_listens() -> None:
    slide = FillingSlide(Damaged([Box(10, 10, 1, 1), Box(300, 300, 1, 1)]))
    told: list[Box] = []
    slide.read(0, Box(0, 0, 20, 20))
    slide.listen(lambda _, block: told.append(block))
    slide.read(0, Box(0, 0, SIZE.width, SIZE.height))
    slide.read(0, Box(0, 0, 20, 20))
    assert told == [Box(0, 0, 256, 256), Box(256, 256, 256, 256)]


def test_a_strict_view_fails_where_the_other_fills() -> None:
    view = open_view(FillingSlide(Damaged([Box(10, 10, 1, 1)])))
    assert view.read(Box(0, 0, 20, 20)).min() == 255
    with pytest.raises(InputError):
        strict(view).read(Box(0, 0, 20, 20))
    plain = open_view(Damaged([]))
    assert strict(plain) is plain


def test_tiles_and_patches_are_counted_and_never_forgotten(tmp_path: Path) -> None:
    tiles, patches = Grid(SIZE, 256), Grid(SIZE, 100)
    capacity = Faults.capacity_for(tiles=tiles, patches=patches)
    for _ in range(2):
        slide = FillingSlide(Damaged([Box(255, 0, 2, 1)]))
        view = open_view(slide)
        with BlobStore(tmp_path, "faults", capacity=capacity) as store:
            faults = Faults(store, view, tiles=tiles, patches=patches)
            view.read(Box(0, 0, 300, 300))
            faults.add_patch(Cell(5, 6))
            assert faults.summary() == {"tiles": 2, "patches": 1, "where": [[0, 0], [0, 1]]}
    with BlobStore(tmp_path, "faults", capacity=capacity) as store:
        faults = Faults(store, open_view(Damaged([])), tiles=tiles, patches=patches)
        assert faults.summary()["tiles"] == 2
