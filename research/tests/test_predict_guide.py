"""A guide is reduced to what the H&E tells, learnt in one region and good beyond it; the written is what was meant."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import predict_guide
import pytest
import tifffile
from dab import dab_density
from guide_file import write_flat
from scipy import ndimage

from kin_cli.geometry import Size

SCRIPT = Path(__file__).resolve().parents[1] / "predict_guide.py"
UM = 0.5
EOSIN, HAEMATOXYLIN, DAB = (
    np.array(dye) for dye in ((0.072, 0.990, 0.105), (0.650, 0.704, 0.286), (0.268, 0.570, 0.776))
)


def test_the_regression_is_ridge_with_the_distribution_of_its_region() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 30, 5)) * [1, 10, 0.1, 1, 0]
    truth = features @ [1.0, 0.3, -4.0, 0.0, 0.0]
    density = np.exp(0.3 * truth)
    fit = np.zeros((40, 30), bool)
    fit[:25] = True
    found = predict_guide.predicted(features, density, fit)
    assert np.corrcoef(found[~fit], density[~fit])[0, 1] > 0.95
    np.testing.assert_allclose(np.sort(found[fit]), np.sort(density[fit]))
    assert density[fit].min() <= found.min() <= found.max() <= density[fit].max()


def test_ranks_are_of_a_piece_and_do_not_see_its_staining() -> None:
    rng = np.random.default_rng(4)
    tissue, pieces = rng.random((30, 40)) < 0.7, np.zeros((30, 40), np.int32)
    pieces[:, 20:] = 1
    features = rng.normal(size=(30, 40, 3))
    scores = predict_guide.ranked_by_piece(features, tissue, pieces)
    assert (scores[~tissue] == 0).all()
    deeper = features.copy()
    deeper[:, 20:] = np.exp(2.0 * features[:, 20:]) + 7.0
    np.testing.assert_array_equal(predict_guide.ranked_by_piece(deeper, tissue, pieces), scores)
    for piece in (0, 1):
        own = scores[tissue & (pieces == piece)]
        np.testing.assert_allclose([own.mean(), own.std()], [0.0, 1.0], atol=0.03)
        assert (own.argsort(axis=0) == features[tissue & (pieces == piece)].argsort(axis=0)).all()


def test_a_flat_guide_has_each_cells_density_in_its_middle(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    density = rng.uniform(0.0, 0.8, (5, 7))
    cell = 32 * 1.0 / UM
    size = Size(int(6.6 * cell), int(4.7 * cell))
    write_flat(density, size, UM, tmp_path / "flat.tif", cell_um=32.0)
    pixels = tifffile.imread(tmp_path / "flat.tif")
    assert pixels.shape == (size.height, size.width, 3)
    found = dab_density(pixels, white=251.0)
    for row in range(4):
        for col in range(6):
            y, x = round((row + 0.5) * cell - 0.5), round((col + 0.5) * cell - 0.5)
            assert found[y, x] == pytest.approx(density[row, col], abs=0.03)
    halfway = found[round(0.5 * cell), round(cell)]
    assert halfway == pytest.approx(density[0, :2].mean(), abs=0.03)


def test_the_look_of_a_cell_does_not_depend_on_its_block() -> None:
    pixels = np.random.default_rng(2).integers(60, 240, (320, 384, 3), dtype=np.uint8)
    whole = predict_guide.look(pixels)
    assert whole.shape[:2] == (320 // 32 - 4, 384 // 32 - 4)
    part = predict_guide.look(pixels[64:, 96:])
    np.testing.assert_allclose(part[1:, 1:], whole[3:, 4:], rtol=1e-6)
    assert predict_guide.look(np.full((192, 192, 3), 250, np.uint8))[..., 0].min() == 1.0


def test_what_one_region_teaches_holds_beyond_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    side = (1100, 1800)
    crowd = ndimage.zoom(rng.random((8, 12)), (side[0] / 8, side[1] / 12), order=1)[: side[0], : side[1]]
    dots = ndimage.gaussian_filter(rng.random(side), 3)
    fraction = ((0.95 - 0.4 * crowd.clip(0, 1)) * dots.size).astype(int)
    nuclei = dots > np.sort(dots, axis=None)[fraction]
    he = 243 * np.exp(-(nuclei * 1.4)[..., None] * HAEMATOXYLIN - 0.4 * EOSIN)
    ihc = 251 * np.exp(-((crowd > 0.6) * 1.5)[..., None] * DAB)
    for name, pixels in (("he.tif", he), ("registered.tif", ihc)):
        resolution = (1e4 / UM, 1e4 / UM)
        tile = {"tile": (256, 256), "photometric": "rgb", "resolution": resolution, "resolutionunit": 3}
        tifffile.imwrite(tmp_path / name, pixels.clip(0, 255).astype(np.uint8), **tile)
    command = [sys.executable, str(SCRIPT), "he.tif", "registered.tif", "-o", "guide.tif", "--region", "0,0,1000,1100"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    beyond = re.search(r"beyond it: \d+ cells, correlation ([\d.]+), ROC ([\d.]+)", result.stdout)
    assert beyond is not None
    assert float(beyond[1]) > 0.6
    assert float(beyond[2]) > 0.9
    assert tifffile.imread(tmp_path / "guide.tif").shape == he.shape
    command[-1] = "0,0,20,20"
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "nothing is known of the tissue in the region" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["guide.tif", "he.tif", "registered.tif"]


def test_errors_are_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "he.tif", "registered.tif", "-o", "guide.tif"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: he.tif")
    assert result.stderr.strip().count("\n") == 0
    assert list(tmp_path.iterdir()) == []
