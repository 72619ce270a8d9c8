"""The published method, every case within one grey level, through the command that users type.

Against a plain implementation of the paper, whose outputs lie in tests/data (see make_reference.py there), and, where
a checkout has them beside it, against outputs of the authors' own code.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.processes import kin

DATA = Path(__file__).parent / "data"
METHODS = ["in", "tin", "constant:3", "gaussian:3", "gaussian:7", "constant:11"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("in", ["--method", "in"]),
        ("tin", ["--method", "tin", "--thumbnail", str(DATA / "thumbnail.png")]),
        ("constant_3", ["--kernel", "constant:3"]),
        ("gaussian_7", ["--kernel", "gaussian:7"]),
    ],
)
def test_a_plain_implementation_of_the_paper(tmp_path: Path, name: str, options: list[str]) -> None:
    common = ("--paper", "--patch-size", 32, "--tissue", "none", "--device", "cpu", "-o", tmp_path / "out.png")
    run = kin("translate", DATA / "picture.png", "-m", DATA / "generator.safetensors", *common, *options)
    assert run.code == 0, run.err
    found, expected = np.asarray(Image.open(tmp_path / "out.png")).astype(int), np.load(DATA / "outputs.npz")[name]
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1
    assert expected.std() > 30, "a pale output would hide differences"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["urust", "cut", "cyclegan"])
def test_the_authors_outputs(
    tmp_path: Path, shared_data: Path, shared_reference: Path, architecture: str, method: str
) -> None:
    case = next(
        case
        for case in json.loads((shared_reference / "cases.json").read_text())["cases"]
        if case["checkpoint"] == f"{architecture}.pth" and case["normalization"] == method
    )
    options = {
        "in": ["--method", "in"],
        "tin": ["--method", "tin", "--authors", "--thumbnail", str(shared_reference / "thumbnail.png")],
    }.get(method, ["--method", "kin", "--kernel", method, "--authors"])
    where = ("--region", "700,900,640,384", "--patch-size", "128", "--tissue", "none", "--device", "cpu")
    model = ("-m", shared_reference / f"{architecture}.pth", "-o", tmp_path / "out.png")
    run = kin("translate", shared_data / "CMU-1-Small-Region.svs", *model, *where, *options)
    assert run.code == 0, run.err
    got = np.asarray(Image.open(tmp_path / "out.png")).astype(int)
    expected = np.asarray(Image.open(shared_reference / case["output"]).convert("RGB")).astype(int)
    assert np.abs(got - expected).max() <= 1
