"""One small benchmark that several tests look at."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.helpers.processes import kin


@pytest.fixture(scope="session")
def measured() -> dict[str, Any]:
    """What ``kin bench --json`` says about 18 × 5 patches of 64 px, by a generator of width 2."""
    generator = ("--architecture", "cut", "--width", "2", "--blocks", "1", "--size", "1100x300")
    run = kin("bench", *generator, "--patch-size", "64", "--quick", "--device", "cpu", "-j", "1", "--json")
    assert run.code == 0, run.err
    return json.loads(run.out)
