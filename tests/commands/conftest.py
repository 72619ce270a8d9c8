"""A picture to translate."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.pictures import random_pixels


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A PNG of 160×96 px, alone in its folder."""
    Image.fromarray(random_pixels(96, 160)).save(tmp_path / "slide.png")
    return tmp_path / "slide.png"
