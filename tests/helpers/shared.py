"""The folder of real slides and of the authors' outputs, which only some checkouts have beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared"


def shared_folder(name: str) -> Path:
    """A folder of real slides or of reference outputs; skips the test if there is none."""
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"no folder shared/{name} beside this checkout (real slides and reference outputs live there)")
    return folder
