"""A guide of islands has dense brown where pale brown is a little less pale, and none elsewhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sharpen_guide
import tifffile
from dab import dab_density
from numpy.typing import NDArray

SCRIPT = Path(__file__).resolve().parents[1] / "sharpen_guide.py"
UM = 0.5
EOSIN, DAB = np.array((0.072, 0.990, 0.105)), np.array((0.268, 0.570, 0.776))
Y, X = np.mgrid[:900, :1600]
TISSUE = Y >= 100
DISCS = ((Y - 500) ** 2 + (X % 400 - 200) ** 2 < 130**2) & TISSUE


def draw(folder: Path, *, brown: float) -> None:
    """H&E of even eosin, and a translation that is a little browner in discs."""
    tan = (0.05 + brown * DISCS) * (1.0 + 0.3 * np.random.default_rng(0).normal(size=X.shape)) * TISSUE
    write(folder / "he.tif", 243 * np.exp(-(0.6 * TISSUE)[..., None] * EOSIN))
    write(folder / "translated.tif", 251 * 10 ** (-(tan * (brown > 0))[..., None] * DAB / np.linalg.norm(DAB)))


def write(path: Path, pixels: NDArray[np.float64]) -> None:
    scanned = {"photometric": "rgb", "resolution": (1e4 / UM, 1e4 / UM), "resolutionunit": 3}
    tifffile.imwrite(path, pixels.clip(0, 255).round().astype(np.uint8), tile=(256, 256), **scanned)


def sharpen(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "he.tif", "translated.tif", "-o", "guide.tif", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("region", [(), ("--region", "0,0,800,900")])
def test_what_is_a_little_browner_becomes_dense(tmp_path: Path, region: tuple[str, ...]) -> None:
    draw(tmp_path, brown=0.03)
    fraction = DISCS.sum() / TISSUE.sum()
    result = sharpen(tmp_path, "--fraction", f"{fraction:.3f}", *region)
    assert result.returncode == 0, result.stderr
    density = dab_density(tifffile.imread(tmp_path / "guide.tif"), white=251.0)
    assert density.shape == X.shape
    dense = density > 0.5
    overlap = (dense & DISCS).sum() / (dense | DISCS).sum()
    assert overlap > 0.8
    inner = ((Y - 500) ** 2 + (X % 400 - 200) ** 2 < 80**2) & (X < 800)
    assert density[inner].mean() == pytest.approx(1.3, abs=0.06)
    assert density[:60].max() < 0.05
    assert f"region: {dense[TISSUE].mean():.0%}" in result.stdout or region


def test_pale_tissue_is_compared_with_what_is_around_it() -> None:
    rng = np.random.default_rng(1)
    scores, tissue = rng.normal(size=(403, 4001)), np.ones((403, 4001), bool)
    paler = scores.copy()
    paler[:, 2000:] = scores[:, 2000:] - 3.0
    paler[:200, 1900:2100], tissue[:200, 1900:2100] = 50.0, False
    found = sharpen_guide.standing_out(paler, tissue)
    far = np.r_[0:900, 3100:4001]  # three standard deviations from where the staining changes
    np.testing.assert_allclose(found[:, far], scores[:, far], atol=0.15)


def test_errors_are_one_line(tmp_path: Path) -> None:
    draw(tmp_path, brown=0.0)
    for options, message in (((), "no brown in the tissue"), (("--region", "0,0,20,20"), "no brown in the tissue")):
        result = sharpen(tmp_path, *options)
        assert result.returncode == 1
        assert result.stderr.startswith("error: translated.tif")
        assert message in result.stderr
        assert result.stderr.strip().count("\n") == 0
    write(tmp_path / "translated.tif", np.full((300, 300, 3), 200.0))
    assert "not the size of he.tif" in sharpen(tmp_path).stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["he.tif", "translated.tif"]
