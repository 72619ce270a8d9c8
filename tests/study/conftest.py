"""Fixtures: a small study of flat coloured slides, made by the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.pages import need_viewer
from tests.helpers.processes import succeed
from tests.helpers.studies import write_study

Making = Callable[..., Path]


@pytest.fixture
def make_study(tmp_path: Path) -> Making:
    """Makes a study in a folder; see ``write_study`` for what may be given."""
    need_viewer()

    def make(**options: object) -> Path:
        succeed("study", "make", tmp_path / "made", "--config", write_study(tmp_path, **options))
        return tmp_path / "made"

    return make
