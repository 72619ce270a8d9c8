"""The generator in the box: what ``kin translate`` uses when no checkpoint is named."""

from __future__ import annotations

from pathlib import Path

NOTICE = "no --model given: using the generator in the box, H&E to synaptophysin IHC; research only, not for diagnosis"


def default_model() -> Path:
    """The checkpoint that is installed with the package."""
    return Path(__file__).parents[1] / "weights" / "he2syn.safetensors"
