"""Slides with unreadable parts: what is filled depends on the place alone, and every tile that it touches counts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from kin_cli.errors import InputError
from kin_cli.geometry import Box, Cell, Grid, Size
from kin_cli.slide.unreadable import Faults, FillingSlide, filled_box, strict
from kin_cli.slide.view import open_view
from kin_cli.store.blobs import BlobStore
from kin_cli.translation import translate
from tests.helpers.processes import kin
from tests.helpers.progress import Killed, Watcher, die_at
from tests.helpers.slides import ArraySlide, break_tile, write_slide
from tests.helpers.translations import SMALL, command_settings, digest

SIZE = Size(700, 600)


PIXELS = np.random.default_rng(0).integers(0, 200, (SIZE.height, SIZE.width, 3), np.uint8)


def damaged(*bad: Box) -> ArraySlide:
    """Grey noise with boxes that cannot be read."""
    return ArraySlide(PIXELS, mpp=0.5, bad=bad)


@st.composite
def boxes(draw: st.DrawFn, most: int = 300) -> Box:
    x, y = draw(st.integers(0, SIZE.width - 1)), draw(st.integers(0, SIZE.height - 1))
    width = draw(st.integers(1, min(most, SIZE.width - x)))
    return Box(x, y, width, draw(st.integers(1, min(most, SIZE.height - y))))


@settings(max_examples=60, deadline=None)
@given(st.lists(boxes(40), max_size=3), st.lists(boxes(), min_size=1, max_size=6), st.randoms())
def test_what_is_filled_depends_on_the_place_alone(bad: list[Box], reads: list[Box], random: object) -> None:
    inner = damaged(*bad)
    alone = [FillingSlide(inner).read(0, box) for box in reads]
    order = list(range(len(reads)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shared = FillingSlide(inner)
    for number in order:
        assert np.array_equal(shared.read(0, reads[number]), alone[number])
    for box, pixels in zip(reads, alone, strict=True):
        same = (pixels == PIXELS[box.slices()]).all(axis=2)
        assert (pixels[~same] == 255).all(), "nothing but the slide or its background"
        for part in bad:
            assert (pixels[box.intersection(part).slices(box)] == 255).all()


@settings(max_examples=30, deadline=None)
@given(boxes(20), st.sampled_from([None, 0.5, 0.7, 0.4, 1.9]), st.booleans())
def test_every_filled_pixel_lies_in_the_box_that_is_told(bad: Box, mpp: float | None, cropped: bool) -> None:
    told: list[Box] = []
    whole, filling = damaged(), FillingSlide(damaged(bad))
    region = Box(13, 7, 90, 80) if cropped else None
    view, wanted = (open_view(slide, mpp=mpp, region=region) for slide in (filling, whole))
    filling.listen(lambda level, block: told.append(filled_box(view, level, block)))
    everything = Box(0, 0, view.size.width, view.size.height)
    differs = (view.read(everything) != wanted.read(everything)).any(axis=2)
    for box in told:
        differs[box.slices()] = False
    assert not differs.any()


def test_faults_are_told_once_even_if_met_before_anybody_listens() -> None:
    slide = FillingSlide(damaged(Box(10, 10, 1, 1), Box(300, 300, 1, 1)))
    told: list[Box] = []
    slide.read(0, Box(0, 0, 20, 20))
    slide.listen(lambda _, block: told.append(block))
    slide.read(0, Box(0, 0, SIZE.width, SIZE.height))
    slide.read(0, Box(0, 0, 20, 20))
    assert told == [Box(0, 0, 256, 256), Box(256, 256, 256, 256)]


def test_a_strict_view_fails_where_the_other_fills() -> None:
    view = open_view(FillingSlide(damaged(Box(10, 10, 1, 1))))
    assert view.read(Box(0, 0, 20, 20)).min() == 255
    with pytest.raises(InputError):
        strict(view).read(Box(0, 0, 20, 20))
    plain = open_view(damaged())
    assert strict(plain) is plain


def test_tiles_and_patches_are_counted_and_never_forgotten(tmp_path: Path) -> None:
    tiles, patches = Grid(SIZE, 256), Grid(SIZE, 100)
    capacity = Faults.capacity_for(tiles=tiles, patches=patches)
    for _ in range(2):
        slide = FillingSlide(damaged(Box(255, 0, 2, 1)))
        view = open_view(slide)
        with BlobStore(tmp_path, "faults", capacity=capacity) as store:
            faults = Faults(store, view, tiles=tiles, patches=patches)
            view.read(Box(0, 0, 300, 300))
            faults.add_patch(Cell(5, 6))
            assert faults.summary() == {"tiles": 2, "patches": 1, "where": [[0, 0], [0, 1]]}
    with BlobStore(tmp_path, "faults", capacity=capacity) as store:
        faults = Faults(store, open_view(damaged()), tiles=tiles, patches=patches)
        assert faults.summary()["tiles"] == 2


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide whose tile (row 2, col 1) of 128 px is no JPEG: half a block of those that are filled."""
    file = write_slide(tmp_path_factory.mktemp("faulty") / "faulty.tif")
    break_tile(file, 11)
    return file


def test_an_unreadable_tile_fails_the_slide_by_default(faulty: Path, tiny_generator: Path, tmp_path: Path) -> None:
    result = kin("translate", faulty, "-m", tiny_generator, "-o", tmp_path / "out.ome.tif", *SMALL)
    assert result.code == 1
    assert "faulty.tif: level 0 cannot be read" in result.err
    assert not (tmp_path / "out.ome.tif").exists()


def test_unreadable_tiles_are_filled_counted_and_left_out(
    faulty: Path, slide: Path, tiny_generator: Path, tmp_path: Path
) -> None:
    fill = ("--on-read-error", "fill", "--kernel", "global")
    output = tmp_path / "out.ome.tif"
    result = kin("translate", faulty, "-m", tiny_generator, "-o", output, *SMALL, *fill)
    assert result.code == 1
    assert "parts of 1 tiles could not be read and were filled; 1 patches were left out" in result.err
    record = json.loads((tmp_path / "out.ome.tif.json").read_text())
    assert record["unreadable"] == {"tiles": 1, "patches": 1, "where": [[0, 0]]}
    assert kin("check", output).code == 0
    # The same pixels, white where the tile is missing, but with that part measured: other statistics.
    pixels = tifffile.imread(slide).copy()
    pixels[128:256, 256:384] = 255
    tifffile.imwrite(tmp_path / "white.tif", pixels, photometric="rgb", tile=(128, 128), metadata=None)
    kin("translate", tmp_path / "white.tif", "-m", tiny_generator, "-o", tmp_path / "white.ome.tif", *SMALL, *fill[2:])
    filled, white = (tifffile.imread(path).astype(int) for path in (output, tmp_path / "white.ome.tif"))
    assert np.abs(filled - white).mean() > 0.5


def test_a_slide_without_faults_is_the_same_either_way(
    slide: Path, tiny_generator: Path, wanted: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.ome.tif"
    result = kin("translate", slide, "-m", tiny_generator, "-o", output, *SMALL, "--on-read-error", "fill")
    assert result.code == 0
    assert digest(output) == digest(wanted)


@pytest.mark.parametrize("stage", ["measure", "apply", "pyramid"])
def test_death_does_not_forget_what_was_filled(faulty: Path, tiny_generator: Path, tmp_path: Path, stage: str) -> None:
    fill = command_settings(faulty, tiny_generator, tmp_path / "out.ome.tif", "--on-read-error", "fill")
    whole = translate(
        command_settings(faulty, tiny_generator, tmp_path / "whole.ome.tif", "--on-read-error", "fill"), Watcher()
    )
    with pytest.raises(Killed):
        translate(fill, Watcher(die_at(stage, 4 if stage != "pyramid" else 0)))
    assert translate(fill, Watcher())["unreadable"] == whole["unreadable"]
    # the name of the output is part of the file
    first, second = (tifffile.imread(tmp_path / name) for name in ("out.ome.tif", "whole.ome.tif"))
    assert np.array_equal(first, second)
