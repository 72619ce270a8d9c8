"""Comparisons of normalizations on a small picture: ``kin compare`` and ``kin sweep``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from kin_cli.figures.compare import CompareSettings, FigureOptions, Variant
from kin_cli.norm.kernel import Kernel
from kin_cli.settings import NormSettings, Settings, paper_settings
from tests.helpers.slides import write_photo
from tests.helpers.translations import PATCH, settings

WIDTH, HEIGHT = 330, 290
COMMON = ("--patch-size", PATCH, "--device", "cpu", "-j", 1)
NORMS = {
    "in": NormSettings(method="in", patch_px=PATCH),
    "tin": paper_settings("tin", patch_px=PATCH),
    "kin": paper_settings(kernel=Kernel.parse("gaussian:3"), patch_px=PATCH),
    "seamless": NormSettings(patch_px=PATCH),
}


def write_graded_photo(path: Path) -> Path:
    """Colours and contrast that change over the picture, so that every patch has statistics of its own."""
    return write_photo(path, (WIDTH, HEIGHT), coarse=(5, 4), noise=(2, 40))


def base_settings(photo: Path, model: Path, path: Path) -> Settings:
    """What all variants share."""
    own = {"kernel": None, "tissue": "auto", "icc": "drop", "skip_existing": True, "workers": 1}
    return settings(photo, model, path, **own)


def comparison_settings(photo: Path, model: Path, folder: Path, **changes: object) -> CompareSettings:
    """A comparison of ``NORMS`` with two close-ups."""
    variants = tuple(Variant(name, name.upper(), norm) for name, norm in NORMS.items())
    wanted = CompareSettings(
        base_settings(photo, model, folder / "base.tif"), variants, folder, figure=FigureOptions(2)
    )
    return dataclasses.replace(wanted, **changes)
