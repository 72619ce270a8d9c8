"""``kin seams``: the worst borders by place."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from kin_cli.geometry import Pixels
from tests.helpers.processes import kin, succeed


def test_kin_seams_names_the_worst_borders(tissue: Pixels, spoiled: Pixels, tmp_path: Path) -> None:
    files = [tmp_path / "source.png", tmp_path / "slide.png"]
    for file, pixels in zip(files, (tissue, spoiled), strict=True):
        Image.fromarray(pixels).save(file)
    heatmap = tmp_path / "map.png"
    options = (files[1], "--source", files[0], "--patch-size", 128, "--heatmap", heatmap)
    text = succeed("seams", *options)
    worst = text.partition("worst borders")[2]
    assert all(place in worst for place in ("640,384", "768,384", "640,512"))
    assert {"vertical", "horizontal", "both"} <= set(text.split())
    assert Image.open(heatmap).size == (1024, 1024 + 80)
    record = json.loads(succeed("seams", *options, "--json", "--overwrite"))
    assert record["worst"][0]["excess"] > 10
    assert record["vertical"]["step"]["n"] + record["horizontal"]["step"]["n"] == record["both"]["step"]["n"] == 112
    part = succeed(
        "seams", files[1], "--patch-size", 128, "--source", files[0], "--source-region", "0,0,1024,1024", "--json"
    )
    assert json.loads(part)["both"] == record["both"]
    refused = kin("seams", *options[:-1], tmp_path / "nowhere" / "map.png")
    assert refused.code == 1
    assert "nowhere" in refused.err.splitlines()[-1]
