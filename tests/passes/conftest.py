"""Stores of finished tiles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.sinks import SinkStores


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[SinkStores]:
    """Those of a small image, empty."""
    with SinkStores(tmp_path) as stores:
        yield stores
