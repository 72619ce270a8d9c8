"""``kin sample`` and ``kin check``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.processes import kin


def test_a_sample_is_a_slide_that_can_be_checked(tmp_path: Path) -> None:
    result = kin("sample", tmp_path / "demo.tif", "--size", "1500x1100")
    assert result.code == 0, result.err
    facts = json.loads(kin("info", tmp_path / "demo.tif", "--json").out)
    assert facts["size"] == [1500, 1100]
    assert facts["mpp"] == pytest.approx(0.5)
    assert len(facts["levels"]) == 2
    damaged = bytearray((tmp_path / "demo.tif").read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    (tmp_path / "damaged.tif").write_bytes(damaged)
    result = kin("check", tmp_path / "demo.tif", tmp_path / "damaged.tif")
    assert result.code == 1
    assert "demo.tif: sound" in result.out
