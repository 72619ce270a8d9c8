"""Registration finds a section that was turned, shifted, bent and stained otherwise; what its guide scores."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from scipy import ndimage

Floats = npt.NDArray[np.float64]

SCRIPTS = Path(__file__).resolve().parents[1]
UM = 4.0
SIDE = 640
HAEMATOXYLIN, EOSIN, DAB = (0.650, 0.704, 0.286), (0.072, 0.990, 0.105), (0.268, 0.570, 0.776)


def stained(layers: list[tuple[Floats, tuple[float, float, float]]]) -> npt.NDArray[np.uint8]:
    """Natural optical densities (h, w) of dyes as pixels on a background of 245."""
    density = sum(amount[..., None] * np.array(dye) for amount, dye in layers)
    return np.clip(245.0 * np.exp(-density), 0, 255).astype(np.uint8)


def save(path: Path, pixels: npt.NDArray[np.uint8]) -> Path:
    resolution = (1e4 / UM, 1e4 / UM)
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", resolution=resolution, resolutionunit=3)
    return path


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two pieces of tissue with one brown spot, and the same turned by 130°, shifted and bent by up to 24 µm."""
    rng = np.random.default_rng(4)
    y, x = np.mgrid[:SIDE, :SIDE].astype(float)
    tissue = ((x - 210) / 130) ** 2 + ((y - 250) / 190) ** 2 < 1 + 0.15 * np.sin(5 * np.arctan2(y - 250, x - 210))
    tissue |= ((x - 490) / 80) ** 2 + ((y - 400) / 130) ** 2 < 1
    nuclei = ndimage.gaussian_filter(rng.random((SIDE, SIDE)), 1.5) - 0.5
    dense = ndimage.gaussian_filter(rng.random((SIDE, SIDE)), 12) - 0.5
    haematoxylin = np.clip(0.5 + 3.0 * nuclei + 12.0 * dense, 0.1, 1.5) * tissue
    brown = 1.5 * (np.hypot(x - 230, y - 200) < 25) * tissue
    # the place (x, y) of the source that each pixel of the other section shows
    angle, middle = math.radians(-130.0), SIDE / 2
    u, v = x - middle - 20, y - middle + 12
    source_x = math.cos(angle) * u - math.sin(angle) * v + middle + 6.0 * np.sin(y / 90.0)
    source_y = math.sin(angle) * u + math.cos(angle) * v + middle + 6.0 * np.cos(x / 110.0)

    def moved(field: Floats) -> Floats:
        found: Floats = ndimage.map_coordinates(field, [source_y, source_x], order=1)
        return found

    folder = tmp_path_factory.mktemp("sections")
    he = stained([(haematoxylin, HAEMATOXYLIN), (0.6 * tissue, EOSIN)])
    ihc = stained([(0.5 * moved(haematoxylin), HAEMATOXYLIN), (moved(brown), DAB)])
    truth = stained([(0.5 * haematoxylin, HAEMATOXYLIN), (brown, DAB)])
    named = {"he": he, "ihc": ihc, "truth": truth}
    return {name: save(folder / f"{name}.tif", pixels) for name, pixels in named.items()}


@pytest.fixture(scope="module")
def guide(sections: dict[str, Path]) -> Path:
    output = sections["he"].with_name("guide.tif")
    result = run("register_sections.py", sections["he"], sections["ihc"], "-o", output)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("piece") == 2
    assert "left out" not in result.stdout
    return output


def run(script: str, *arguments: Path | str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_guide_lies_on_the_source(sections: dict[str, Path], guide: Path) -> None:
    found, truth, he = (tifffile.imread(path).astype(float) for path in (guide, sections["truth"], sections["he"]))
    assert found.shape == he.shape
    known = found.max(axis=-1) > 25
    assert known[he.mean(axis=-1) < 220].mean() > 0.99
    assert not known[:4, :4].any()
    spots = [(picture[..., 2] < 100) & (picture[..., 0] > 20 + picture[..., 2]) for picture in (found, truth)]
    centres = [np.array(ndimage.center_of_mass(spot)) for spot in spots]
    assert np.hypot(*(centres[0] - centres[1])) * UM < 20.0
    # shifting the guide by 40 µm either way makes it less like the truth: its best place is where it lies
    inside = ndimage.binary_erosion(known & (truth.mean(axis=-1) < 235), iterations=15)

    def likeness(dx: int, dy: int) -> float:
        shifted = np.roll(found[..., 0], (dy, dx), axis=(0, 1))
        return float(np.corrcoef(shifted[inside], truth[..., 0][inside])[0, 1])

    assert likeness(0, 0) > 0.6
    assert max(likeness(10, 0), likeness(-10, 0), likeness(0, 10), likeness(0, -10)) < likeness(0, 0) - 0.2


def test_the_real_section_scores_best_against_its_guide(sections: dict[str, Path], guide: Path) -> None:
    real, source = (run("brown_in_place.py", sections[name], guide) for name in ("truth", "he"))
    assert real.returncode == source.returncode == 0, real.stderr + source.stderr
    rows = [[float(v) for v in result.stdout.splitlines()[1].split()] for result in (real, source)]
    assert rows[0][0] == 64
    assert rows[0][2] > 0.9
    assert rows[0][2] > rows[1][2] + 0.3
    assert rows[0][4] == pytest.approx(rows[0][5], rel=0.15)
    assert rows[0][6] > 0.95


def test_a_section_of_something_else_gives_no_guide(sections: dict[str, Path], tmp_path: Path) -> None:
    empty = save(tmp_path / "empty.tif", np.full((300, 300, 3), 245, np.uint8))
    for source, target in ((sections["he"], empty), (empty, sections["ihc"])):
        result = run("register_sections.py", source, target, "-o", tmp_path / "guide.tif")
        assert result.returncode == 1
        assert result.stderr.startswith("error: ")
        assert "no piece of" in result.stderr
        assert list(tmp_path.iterdir()) == [empty]


def test_errors_are_one_line(sections: dict[str, Path], tmp_path: Path) -> None:
    plain = tmp_path / "plain.tif"
    tifffile.imwrite(plain, np.zeros((64, 64, 3), np.uint8), photometric="rgb")
    result = run("register_sections.py", plain, sections["ihc"], "-o", tmp_path / "guide.tif")
    assert result.returncode == 1
    assert result.stderr.strip().count("\n") == 0
    assert "plain.tif: does not say its resolution" in result.stderr
    assert list(tmp_path.iterdir()) == [plain]
    result = run("brown_in_place.py", sections["he"], sections["truth"], "--region", "0,0,64,64")
    assert result.returncode == 1
    assert "--region" in result.stderr
