"""The authors' outputs, every case within one grey level, through the command that users type."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from kin_cli.commands.main import cli

METHODS = ["in", "tin", "constant:3", "gaussian:3", "gaussian:7", "constant:11"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", ["urust", "cut", "cyclegan"])
def test_the_authors_outputs(
    tmp_path: Path, shared_data: Path, shared_reference: Path, layout: str, method: str
) -> None:
    case = next(
        case
        for case in json.loads((shared_reference / "cases.json").read_text())["cases"]
        if case["checkpoint"] == f"{layout}.pth" and case["normalization"] == method
    )
    options = {
        "in": ["--method", "in"],
        "tin": ["--method", "tin", "--authors", "--thumbnail", str(shared_reference / "thumbnail.png")],
    }.get(method, ["--method", "kin", "--kernel", method, "--authors"])
    run = CliRunner().invoke(
        cli,
        ["translate", str(shared_data / "CMU-1-Small-Region.svs"), "-m", str(shared_reference / f"{layout}.pth")]
        + ["--region", "700,900,640,384", "--patch-size", "128", "--tissue", "none", "--device", "cpu"]
        + ["-o", str(tmp_path / "out.png"), *options],
        catch_exceptions=False,
    )
    assert run.exit_code == 0
    got = np.asarray(Image.open(tmp_path / "out.png")).astype(int)
    expected = np.asarray(Image.open(shared_reference / case["output"]).convert("RGB")).astype(int)
    assert np.abs(got - expected).max() <= 1
