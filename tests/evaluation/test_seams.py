"""Seams of files: what their storage does to the metric, and the map."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kin_cli.evaluation.seams import chroma_tile_px, measure_slide_seams, seam_grid, seam_map
from kin_cli.evaluation.settings import SeamChoice, SlideChoice
from kin_cli.evaluation.tiles import opened
from kin_cli.geometry import Pixels, Size
from kin_cli.progress import SilentProgress
from kin_cli.slide.tissue import all_tissue
from tests.helpers.processes import succeed
from tests.helpers.slides import write_tiled


def test_storage_is_read_from_the_file(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (512, 768, 3), np.uint8)
    level = Size(768, 512)
    assert chroma_tile_px(write_tiled(tmp_path / "a.tif", pixels, tile=256, quality=80), level) == 256
    assert chroma_tile_px(tmp_path / "a.tif", Size(1, 1)) is None
    assert chroma_tile_px(write_tiled(tmp_path / "b.tif", pixels, tile=128, quality=95), level) is None
    assert chroma_tile_px(write_tiled(tmp_path / "c.tif", pixels, tile=128), level) is None
    assert chroma_tile_px(write_tiled(tmp_path / "d.tif", pixels[..., 0], tile=128, quality=80), level) is None
    Image.fromarray(pixels).save(tmp_path / "e.png")
    assert chroma_tile_px(tmp_path / "e.png", level) is None


@pytest.mark.parametrize(
    ("stored", "tile", "origin", "phase", "luma"),
    [
        (128, 256, (0, 0), 128, False),  # the reference lines lie on storage edges too
        (128, 128, (0, 0), 16, True),  # every border does, no reference line can
        (256, 128, (0, 0), 16, True),  # every second border
        (128, 128, (40, 24), 16, False),
        (96, 128, (0, 0), 16, False),  # no common edges to speak of
        (160, 320, (0, 0), 160, False),
        (48, 144, (0, 0), 48, False),
    ],
)
def test_the_grid_suits_the_storage(
    tmp_path: Path, stored: int, tile: int, origin: tuple[int, int], phase: int, luma: bool
) -> None:
    file = write_tiled(tmp_path / "a.tif", np.full((960, 960, 3), 99, np.uint8), tile=stored, quality=80)
    with opened(SlideChoice(file)) as view:
        grid, luma_only = seam_grid([view], tile, origin)
    assert (grid.phase, luma_only) == (phase, luma)


def test_a_jpeg_of_the_slide_itself_has_no_seams(tissue: Pixels, tmp_path: Path) -> None:
    """Stored in tiles of the grid, or of half of it: colour would say 1.1 to 1.4."""
    plain = write_tiled(tmp_path / "plain.tif", tissue, tile=128)
    for stored, headline in ((128, "step_luma"), (64, "step")):
        file = write_tiled(tmp_path / f"{stored}.tif", tissue, tile=stored, quality=50)
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
    # the tile is 192 to 256 down and 320 to 384 across, at half the size; bars are 2 px away and up to 4 px thick
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == pytest.approx((192, 256, 320, 384), abs=6)
    for border in (320, 384):  # the seam is seen between its bars
        assert red[200:248, border - 6 : border].any()
        assert red[200:248, border : border + 6].any()
        assert not red[200:248, border - 2 : border + 2].any()
    assert not red[200:248, 328:376].any()


def test_the_worst_borders_are_lines_where_they_are(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(100, 140, (512, 512, 3), np.uint8)
    pixels[:, 256:] += 60  # one border is a step, at x 256
    Image.fromarray(pixels).save(tmp_path / "t.png")
    output = tmp_path / "b.geojson"
    succeed("seams", tmp_path / "t.png", "--patch-size", 128, "--tissue", "none", "--geojson", output)
    features = json.loads(output.read_bytes())["features"]
    assert 4 <= len(features) <= 24
    for piece in features[:4]:
        (x, y), (to_x, to_y) = piece["geometry"]["coordinates"]
        assert (x, to_x) == (256, 256)
        assert abs(to_y - y) > 80
        assert piece["properties"]["measurements"]["excess ΔE"] > 5
    assert max(piece["properties"]["measurements"]["excess ΔE"] for piece in features[4:]) < 3
