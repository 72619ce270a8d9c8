"""Seams of files: what their storage does to the metric, the map, and both commands."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import pyvips
from click.testing import CliRunner
from PIL import Image

from kin_cli.commands.evaluate import evaluate
from kin_cli.commands.seams import seams
from kin_cli.errors import OutputError
from kin_cli.evaluation.seams import chroma_tile_px, measure_slide_seams, seam_grid, seam_map
from kin_cli.evaluation.settings import SeamChoice, SlideChoice
from kin_cli.evaluation.tiles import opened
from kin_cli.geometry import Box, Pixels, Size
from kin_cli.progress import SilentProgress
from kin_cli.slide.open import open_slide
from kin_cli.slide.tissue import all_tissue


def write_tiff(path: Path, pixels: Pixels, *, tile: int, quality: int | None = None) -> Path:
    """A tiled TIFF by libvips: lossless, or JPEG, whose chroma is subsampled below quality 90."""
    how = {"compression": "deflate"} if quality is None else {"compression": "jpeg", "Q": quality}
    pyvips.Image.new_from_array(pixels).tiffsave(str(path), tile=True, tile_width=tile, tile_height=tile, **how)
    return path


@pytest.fixture(scope="module")
def tissue(shared_data: Path) -> Pixels:
    with open_slide(shared_data / "CMU-1-Small-Region.svs") as slide:
        return slide.read(0, Box(400, 900, 1024, 1024))


@pytest.fixture(scope="module")
def spoiled(tissue: Pixels) -> Pixels:
    """With one tile of 128 px much too dark."""
    pixels = tissue.copy()
    pixels[3 * 128 : 4 * 128, 5 * 128 : 6 * 128] //= 2
    return pixels


def test_storage_is_read_from_the_file(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (512, 768, 3), np.uint8)
    level = Size(768, 512)
    assert chroma_tile_px(write_tiff(tmp_path / "a.tif", pixels, tile=256, quality=80), level) == 256
    assert chroma_tile_px(tmp_path / "a.tif", Size(1, 1)) is None
    assert chroma_tile_px(write_tiff(tmp_path / "b.tif", pixels, tile=128, quality=95), level) is None
    assert chroma_tile_px(write_tiff(tmp_path / "c.tif", pixels, tile=128), level) is None
    assert chroma_tile_px(write_tiff(tmp_path / "d.tif", pixels[..., 0], tile=128, quality=80), level) is None
    Image.fromarray(pixels).save(tmp_path / "e.png")
    assert chroma_tile_px(tmp_path / "e.png", level) is None


@pytest.mark.parametrize(
    ("stored", "tile", "origin", "phase", "luma"),
    [
        (128, 256, (0, 0), 128, False),  # the reference lines lie on storage edges too
        (128, 128, (0, 0), 16, True),  # every boundary does, no reference line can
        (256, 128, (0, 0), 16, True),  # every second boundary
        (128, 128, (40, 24), 16, False),
        (96, 128, (0, 0), 16, False),  # no common edges to speak of
        (160, 320, (0, 0), 160, False),
        (48, 144, (0, 0), 48, False),
    ],
)
def test_the_grid_suits_the_storage(
    tmp_path: Path, stored: int, tile: int, origin: tuple[int, int], phase: int, luma: bool
) -> None:
    file = write_tiff(tmp_path / "a.tif", np.full((960, 960, 3), 99, np.uint8), tile=stored, quality=80)
    with opened(SlideChoice(file)) as view:
        grid, luma_only = seam_grid([view], tile, origin)
    assert (grid.phase, luma_only) == (phase, luma)


def test_a_jpeg_of_the_slide_itself_has_no_seams(tissue: Pixels, tmp_path: Path) -> None:
    """Stored in tiles of the grid, or of half of it: colour would say 1.1 to 1.4."""
    plain = write_tiff(tmp_path / "plain.tif", tissue, tile=128)
    for stored, headline in ((128, "step_luma"), (64, "step")):
        file = write_tiff(tmp_path / f"{stored}.tif", tissue, tile=stored, quality=50)
        with opened(SlideChoice(file)) as view, opened(SlideChoice(plain)) as source:
            found = measure_slide_seams(
                view,
                SeamChoice(128),
                source=source,
                mask=all_tissue(view.size),
                progress=SilentProgress(),
                workers=1,
            )
        assert found.statistic == headline
        assert (found.note is None) == (headline == "step")
        assert found.result.headline == pytest.approx(1, abs=0.06)


def test_the_map_shows_the_wrong_tile_and_nothing_else(tissue: Pixels, spoiled: Pixels, tmp_path: Path) -> None:
    files = [tmp_path / "source.png", tmp_path / "slide.png"]
    for file, pixels in zip(files, (tissue, spoiled), strict=True):
        Image.fromarray(pixels).save(file)
    with opened(SlideChoice(files[1])) as view, opened(SlideChoice(files[0])) as source:
        found = measure_slide_seams(
            view, SeamChoice(128), source=source, mask=all_tissue(view.size), progress=SilentProgress(), workers=1
        )
    picture = np.asarray(seam_map(found, spoiled[::2, ::2]), int)[:512, :512]
    red = (picture[..., 0] > 150) & (picture[..., 1] < 60)
    rows, cols = np.nonzero(red)
    assert red.sum() > 500
    # the tile is 192 to 256 down and 320 to 384 across, at half the size; bars are up to 4 px wide on either side
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == pytest.approx((192, 256, 320, 384), abs=5)
    assert not red[200:248, 328:376].any()


def run(command: object, *arguments: object) -> str:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_kin_seams_names_the_worst_boundaries(tissue: Pixels, spoiled: Pixels, tmp_path: Path) -> None:
    files = [tmp_path / "source.png", tmp_path / "slide.png"]
    for file, pixels in zip(files, (tissue, spoiled), strict=True):
        Image.fromarray(pixels).save(file)
    heatmap = tmp_path / "map.png"
    options = (files[1], "--source", files[0], "--patch-size", 128, "--heatmap", heatmap)
    text = run(seams, *options)
    worst = text.partition("worst boundaries")[2]
    assert all(place in worst for place in ("640,384", "768,384", "640,512"))
    assert {"vertical", "horizontal", "both"} <= set(text.split())
    assert Image.open(heatmap).size == (1024, 1024 + 80)
    record = json.loads(run(seams, *options, "--json"))
    assert record["worst"][0]["excess"] > 10
    assert record["vertical"]["step"]["n"] + record["horizontal"]["step"]["n"] == record["both"]["step"]["n"] == 112
    part = run(seams, files[1], "--patch-size", 128, "--source", files[0], "--source-region", "0,0,1024,1024", "--json")
    assert json.loads(part)["both"] == record["both"]
    with pytest.raises(OutputError, match="nowhere"):
        run(seams, *options[:-1], tmp_path / "nowhere" / "map.png")


def test_kin_evaluate_prints_a_table_json_and_csv(spoiled: Pixels, tmp_path: Path) -> None:
    slide, table = tmp_path / "slide.png", tmp_path / "values.csv"
    Image.fromarray(spoiled).save(slide)
    options = (slide, "--metrics", "sobel, piqe", "--tiles", 2, "--authors", "--csv", table)
    text = run(evaluate, *options)
    assert [line.split()[0] for line in text.splitlines()] == [
        *("sobel_y", "sobel_cb", "sobel_cr", "sobel_authors", "piqe", "piqe_authors")
    ]
    record = json.loads(run(evaluate, *options, "--json"))
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["metric"], float(row["value"])) for row in rows] == [
        (value["metric"], value["value"]) for value in record["values"]
    ]
    assert rows[0]["slide"] == str(slide)
