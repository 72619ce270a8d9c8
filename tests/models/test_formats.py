"""The tables of docs/formats.md: every row has its test, and every family its row."""

from __future__ import annotations

import re
from pathlib import Path

from tests.models import test_architectures, test_bundles, test_checkpoint, test_own

FORMATS = Path(__file__).parents[2] / "docs" / "formats.md"


def column(name: str) -> list[str]:
    """The cells of the last column of the table whose last column has this name."""
    (table,) = re.findall(rf"^\|.*\| {name} \|\n\|[-|]+\|\n((?:\|.*\|\n)+)", FORMATS.read_text(), re.MULTILINE)
    return [row.rstrip("|").rpartition("|")[2].strip() for row in table.splitlines()]


def test_every_network_of_the_table_is_a_tested_family() -> None:
    assert sorted(column("family")) == sorted(test_architectures.FAMILIES)


def test_every_way_of_saving_is_tested() -> None:
    tests = {name for module in (test_bundles, test_checkpoint) for name in vars(module)}
    named = column("test")
    assert len(named) >= 10
    assert set(named) <= tests


def test_every_norm_of_the_table_is_tested() -> None:
    assert sorted(column("kind")) == sorted([*test_own.KINDS, "unit"])
