"""kin tissue: its files mean the same tissue when they are read again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kin_cli.slide.open import open_source
from kin_cli.slide.tissue import tissue_mask
from tests.helpers.processes import assert_refused, kin, succeed


@pytest.fixture
def stained(tmp_path: Path) -> Path:
    """A white picture with two pink squares, one of them with a hole."""
    pixels = np.full((600, 800, 3), 245, np.uint8)
    noise = np.random.default_rng(0).integers(-30, 30, (600, 800, 3))
    for rows, cols in ((slice(80, 300), slice(100, 350)), (slice(350, 560), slice(450, 750))):
        pixels[rows, cols] = (np.array([200, 120, 170]) + noise[rows, cols]).clip(0, 255)
    pixels[430:500, 550:650] = 245
    Image.fromarray(pixels).save(tmp_path / "s.tif")
    return tmp_path / "s.tif"


@pytest.mark.parametrize("ending", ["geojson", "png"])
def test_what_is_written_is_read_as_the_same_tissue(stained: Path, ending: str) -> None:
    output = stained.with_name(f"t.{ending}")
    assert succeed("tissue", stained, "-o", output).strip() == str(output)
    view = open_source(stained)
    with view.slide:
        detected, read = tissue_mask(view, "auto"), tissue_mask(view, output)
    assert 0.1 < detected.tissue_fraction < 0.4
    assert abs(read.tissue_fraction - detected.tissue_fraction) < 0.002
    assert_refused(kin("tissue", stained, "-o", output), "exists already", code=1)


def test_what_cannot_be_written_is_told(stained: Path) -> None:
    assert_refused(kin("tissue", stained, "-o", "t.svg"), ".geojson or .png", code=2)
    assert_refused(kin("tissue", stained, "-o", stained.with_suffix(".geojson"), "--tissue", "absent.png"), code=1)
    assert_refused(kin("tissue", stained, "-o", stained, "--overwrite"), code=2)
