"""Slides that are damaged in places, and odd ones: each is translated whole or told, and what was filled is counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from kin_cli.translate import translate
from tests.helpers.batch_slides import SMALL, Watcher, break_tile, digest, kin, write_slide
from tests.helpers.resume_runs import Killed, die_at, settings, uninterrupted


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slides") / "slide.tif")


@pytest.fixture(scope="module")
def wanted(slide: Path, tiny_generator: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return uninterrupted(slide, tiny_generator, tmp_path_factory.mktemp("wanted"))


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
    record = json.loads((tmp_path / "out.json").read_text())
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
    fill = settings(faulty, tiny_generator, tmp_path / "out.ome.tif", "--on-read-error", "fill")
    whole = translate(
        settings(faulty, tiny_generator, tmp_path / "whole.ome.tif", "--on-read-error", "fill"), Watcher()
    )
    with pytest.raises(Killed):
        translate(fill, Watcher(die_at(stage, 4 if stage != "pyramid" else 0)))
    assert translate(fill, Watcher())["unreadable"] == whole["unreadable"]
    # the name of the output is part of the file
    first, second = (tifffile.imread(tmp_path / name) for name in ("out.ome.tif", "whole.ome.tif"))
    assert np.array_equal(first, second)


def odd_slides(folder: Path) -> Iterator[Path]:
    def tiff(name: str, pixels: np.ndarray, **options: object) -> Path:
        tifffile.imwrite(folder / name, pixels, photometric="rgb", tile=(256, 256), compression="deflate", **options)
        return folder / name

    noise = np.random.default_rng(0).integers(0, 255, (100, 100, 3), np.uint8)
    yield tiff("black.tif", np.zeros((300, 300, 3), np.uint8))
    yield tiff("constant.tif", np.full((300, 300, 3), 200, np.uint8))
    yield tiff("transparent.tif", np.zeros((300, 300, 4), np.uint8), extrasamples=["unassalpha"])
    Image.fromarray(np.zeros((90, 90, 4), np.uint8)).save(folder / "transparent.png")
    yield folder / "transparent.png"
    yield tiff("pixel.tif", noise[:1, :1])
    yield tiff("wide.tif", np.tile(noise[:1], (1, 20, 1)))
    yield tiff("tall.tif", np.tile(noise[:, :1], (20, 1, 1)))
    for name, per_cm in (("huge", 10), ("tiny", 1e8)):
        yield tiff(f"{name}_mpp.tif", noise, resolution=(per_cm, per_cm), resolutionunit="CENTIMETER")


def test_odd_slides_are_translated_whole(tmp_path: Path, tiny_generator: Path) -> None:
    for slide in odd_slides(tmp_path):
        output = tmp_path / f"{slide.name}.ome.tif"
        result = kin("translate", slide, "-m", tiny_generator, "-o", output, "--patch-size", "128")
        assert result.code == 0, f"{slide.name}: {result.err}"
        assert kin("check", output).code == 0
        assert tifffile.imread(output).shape[:2] == tifffile.imread(slide).shape[:2] if slide.suffix == ".tif" else True


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 100_000), (100_000, 1)])
def test_a_line_of_pixels_is_a_slide(tmp_path: Path, tiny_generator: Path, shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
    slide, output = tmp_path / "line.tif", tmp_path / "line.ome.tif"
    tifffile.imwrite(slide, pixels, photometric="rgb", tile=(256, 256), compression="deflate")
    result = kin("translate", slide, "-m", tiny_generator, "-o", output, "--patch-size", "128")
    assert result.code == 0, result.err
    assert kin("check", output).code == 0
    assert tifffile.imread(output).shape[:2] == shape


@pytest.mark.parametrize("mpp", ["1000", "0.002"])
def test_a_wrong_pixel_size_is_kept_if_the_user_insists(
    slide: Path, tiny_generator: Path, tmp_path: Path, mpp: str
) -> None:
    output = tmp_path / "out.ome.tif"
    assert kin("translate", slide, "-m", tiny_generator, "-o", output, *SMALL, "--source-mpp", mpp).code == 0
    assert kin("check", output).code == 0
    assert json.loads(kin("info", output, "--json").out)["size"] == [520, 1040]


@pytest.mark.parametrize("options", ["--source-mpp 1e30", "--source-mpp 1e-12", "--mpp nan", "--mpp 1e-300"])
def test_absurd_pixel_sizes_are_refused(slide: Path, tiny_generator: Path, tmp_path: Path, options: str) -> None:
    result = kin("translate", slide, "-m", tiny_generator, "-o", tmp_path / "o.tif", *options.split())
    assert result.code == 2
    assert "is not within" in result.err
    result = kin("translate", slide, "-m", tiny_generator, "--mpp", "0.001", "--source-mpp", "10000", "--dry-run")
    assert result.code == 2
    assert "too many" in result.err
