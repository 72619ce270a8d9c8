"""Real tissue to measure."""

from __future__ import annotations

from pathlib import Path

import pytest

from kin_cli.geometry import Box, Pixels
from kin_cli.slide.open import open_slide


@pytest.fixture(scope="session")
def tissue(shared_data: Path) -> Pixels:
    """512×512 px of a real slide."""
    with open_slide(shared_data / "CMU-1-Small-Region.svs") as slide:
        return slide.read(0, Box(700, 900, 512, 512))


@pytest.fixture(scope="session")
def large_tissue(shared_data: Path) -> Pixels:
    """960×672 px of it: 10×7 patches of NIQE."""
    with open_slide(shared_data / "CMU-1-Small-Region.svs") as slide:
        return slide.read(0, Box(500, 900, 960, 672))
