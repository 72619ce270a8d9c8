"""A picture to store, and slides to read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kin_cli.geometry import Pixels
from kin_cli.slide.base import Slide
from kin_cli.slide.open import open_slide
from tests.helpers.pictures import speckled_ramps


@pytest.fixture(scope="session")
def rgb() -> Pixels:
    """401×333 pixels that no two regions or channels share."""
    return speckled_ramps(401, 333)


@pytest.fixture(scope="session")
def svs(shared_data: Path) -> Iterator[Slide]:
    """A real slide of one level, 2220×2967 px."""
    with open_slide(shared_data / "CMU-1-Small-Region.svs") as slide:
        yield slide


@pytest.fixture(scope="session")
def pyramid(shared_data: Path) -> Iterator[Slide]:
    """The same with five levels."""
    with open_slide(shared_data / "CMU-1-Small-Region.pyramid.tif") as slide:
        yield slide
