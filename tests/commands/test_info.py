"""``kin info`` of slides and checkpoints."""

from __future__ import annotations

import json
import os
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


def test_check_does_not_wait_for_a_pipe(tmp_path: Path) -> None:
    for name in ("pipe.bif", "pipe.tif", "pipe.png"):
        os.mkfifo(tmp_path / name)
        checked = kin("check", tmp_path / name)
        assert checked.code == 1
        assert "not a regular file" in checked.out or "pipe" in checked.out.removeprefix(str(tmp_path))
