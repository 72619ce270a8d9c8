"""``kin info`` of slides and checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

from tests.helpers.processes import kin


def test_info_describes_slides_and_checkpoints(picture: Path, tiny_generator: Path) -> None:
    described = json.loads(kin("info", tiny_generator, "--json").out)
    assert described["architecture"] == "resnet-cyclegan"
    assert described["width"] == 4
    facts = json.loads(kin("info", picture, "--patch-size", 32, "--json").out)
    assert facts["size"] == [160, 96]
    assert facts["patches"] == 15
    assert "160 × 96" in kin("info", picture).out
