"""A picture whose patches differ, and a comparison of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kin_cli.figures.compare import Comparison, clean_up, compare
from kin_cli.progress import SilentProgress
from tests.helpers.comparisons import comparison_settings, write_graded_photo


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_graded_photo(tmp_path_factory.mktemp("photo") / "photo.png")


@pytest.fixture(scope="session")
def found(photo: Path, tiny_generator: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folder = tmp_path_factory.mktemp("comparison") / "work"
    comparison = compare(comparison_settings(photo, tiny_generator, folder), SilentProgress())
    assert [path.name for path in folder.iterdir()] == ["table"]  # all translations are gone
    clean_up(comparison.settings, SilentProgress())
    assert not folder.exists()
    return comparison
