"""``kin info`` of slides and checkpoints."""

from __future__ import annotations

import hashlib
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


def test_info_of_an_output_tells_how_it_was_made(picture: Path, tiny_generator: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.ome.tif"
    made = kin("translate", picture, "-m", tiny_generator, "-o", output, "--patch-size", 32, "--region", "0,0,96,96")
    assert made.code == 0, made.err
    digest = hashlib.sha256(output.read_bytes()).hexdigest()
    text = kin("info", output).out
    rows = {line[:21].strip(): line[21:] for line in text.splitlines()}
    assert rows["source"] == f"{picture} ({picture.stat().st_size:,} bytes), level 0, region 0,0,96,96"
    assert hashlib.sha256(tiny_generator.read_bytes()).hexdigest() in rows["generator"]
    assert str(tiny_generator) in rows["generator"]
    assert "kernel gaussian:7" in rows["method"]
    assert "patches of 32 px" in rows["method"]
    assert digest in rows["digest"]
    facts = json.loads(kin("info", output, "--json").out)
    assert (facts["patch_size"], facts["patches"]) == (32, 9)
    assert facts["made"]["settings"]["region"] == [0, 0, 96, 96]
    (tmp_path / "out.ome.tif.json").unlink()
    alone = kin("info", output).out
    assert "slide.png" in alone
    assert digest not in alone
    assert "made by" not in kin("info", picture).out
