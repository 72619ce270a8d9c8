"""What compare, sweep and analyse share: the settings of variants, their folder, and CSV files."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

import click
import pytest

from kin_cli.commands.variants import (
    base_settings,
    comparison_options,
    csv_bytes,
    prepared_folder,
    shared_options,
    variant,
)
from kin_cli.errors import OutputError, UsageError
from kin_cli.settings import Settings

MODEL = ("--model", "m.pth")


def options_of(*words: str) -> dict[str, Any]:
    """The options of a command as click parses them."""
    command = click.command("some")(comparison_options(shared_options(lambda: None)))
    return command.make_context("some", list(words)).params


def base(*words: str) -> tuple[Settings, dict[str, Any]]:
    options = options_of(*MODEL, *words)
    return base_settings(Path("a.svs"), options, folder=Path("work")), options


def test_all_variants_share_everything_but_the_normalization() -> None:
    start, options = base("--patch-size", "64", "--tissue", "none", "--level", "1", "--workers", "3")
    assert (start.source.level, start.source.tissue, start.compute.workers) == (1, "none", 3)
    assert (start.output.compression, start.output.icc, start.output.skip_existing) == ("deflate", "drop", True)
    flags: dict[str, dict[str, object]] = {"in": {"method": "in"}, "tin": {"method": "tin"}, "soft": {"seamless": True}}
    made = {name: variant(start, options, flags=flag, name=name, title="{kernel}") for name, flag in flags.items()}
    assert {name: found.norm.patch_px for name, found in made.items()} == dict.fromkeys(flags, 64)
    assert (made["in"].norm.method, made["tin"].norm.method) == ("in", "tin")
    assert (made["soft"].norm.halo_px, made["soft"].norm.effective_interpolation) == (None, "bilinear")
    assert [made[name].title for name in ("in", "soft")] == ["1", "gaussian:7"]


def test_what_a_variant_may_not_change_is_no_option_of_it() -> None:
    with pytest.raises(click.NoSuchOption):
        options_of(*MODEL, "--kernel", "constant:3")


def test_the_folder_is_the_one_asked_for_or_stands_beside_the_output(tmp_path: Path) -> None:
    output = tmp_path / "figure.png"
    assert prepared_folder(output, tmp_path / "kept") == tmp_path / "kept"
    assert prepared_folder(output, None) == tmp_path / "figure.png.compare.kin-work"
    for file, error in ((tmp_path / "figure.doc", UsageError), (tmp_path / "nowhere" / "figure.png", OutputError)):
        with pytest.raises(error):
            prepared_folder(file, None)
    output.touch()
    with pytest.raises(OutputError, match="is not a folder"):
        prepared_folder(tmp_path / "other.png", output)


def test_csv_keeps_every_digit_and_quotes_what_it_must() -> None:
    rows = [("name", "value"), ('a, "b"\nc', 0.1 + 0.2), ("none", None), (Path(os.fsdecode(b"\xff.tif")), 1)]
    written = csv_bytes(rows)
    text = written.decode(errors="surrogateescape")
    assert list(csv.reader(io.StringIO(text, newline=""))) == [
        *(["name", "value"], ['a, "b"\nc', repr(0.1 + 0.2)], ["none", ""]),
        ["\udcff.tif", "1"],
    ]
    assert b"\xff.tif" in written
