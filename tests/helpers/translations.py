"""Translations: their settings, from parts or from a command line, and their outputs."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from kin_cli.commands.options import settings_from
from kin_cli.commands.translate import translate as command
from kin_cli.norm.kernel import Kernel
from kin_cli.settings import ComputeSettings, NormSettings, OutputSettings, Settings, SourceSettings
from kin_cli.translation import translate
from tests.helpers.processes import kin
from tests.helpers.progress import Watcher

PATCH = 64
SMALL = ("--paper", "--patch-size", "128", "--tissue", "none", "-j", "2")
_PARTS = {"source": SourceSettings, "output": OutputSettings, "norm": NormSettings, "compute": ComputeSettings}


def settings(slide: Path, model: Path, output: Path, **changes: object) -> Settings:
    """Settings of a quick lossless translation as published, with patches of 64 px and kernel gaussian:3.

    ``changes`` go to whichever part has a field of that name.
    """
    parts: dict[str, dict[str, object]] = {
        "source": {"slide": slide, "tissue": "none"},
        "output": {"path": output, "compression": "deflate"},
        "norm": {"patch_px": PATCH, "kernel": Kernel.parse("gaussian:3"), "halo_px": 0},
        "compute": {"device": "cpu"},
    }
    if changes.get("method", "kin") == "kin":
        parts["norm"]["interpolation"] = "nearest"
    for name, value in changes.items():
        part = next(part for part, cls in _PARTS.items() if name in {f.name for f in dataclasses.fields(cls)})
        parts[part][name] = Kernel.parse(value) if name == "kernel" and isinstance(value, str) else value
    return Settings(model=model, **{part: cls(**parts[part]) for part, cls in _PARTS.items()})  # type: ignore[arg-type]


def command_settings(slide: Path, model: Path, output: Path, *options: object) -> Settings:
    """Settings as a command line with ``SMALL`` and more options makes them."""
    arguments = [slide, "-m", model, "-o", output, *SMALL, *options]
    values = command.make_context("translate", list(map(str, arguments))).params
    return settings_from(values.pop("slide"), values)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def made(slide: Path, model: Path, folder: Path, *options: object) -> str:
    """Digest of an output that is made in a folder of its own."""
    folder.mkdir()
    translate(command_settings(slide, model, folder / "out.ome.tif", *options), Watcher())
    return digest(folder / "out.ome.tif")


def uninterrupted(slide: Path, model: Path, folder: Path) -> Path:
    """The output of a run that nobody interrupted; its name is a part of the file."""
    output = folder / "out.ome.tif"
    result = kin("translate", slide, "-m", model, "-o", output, *SMALL)
    assert result.code == 0, result.err
    return output
