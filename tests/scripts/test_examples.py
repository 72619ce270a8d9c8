"""The examples for people with a network of their own: short, and run as they stand."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import kin_cli
from kin_cli.errors import ModelError, UsageError
from kin_cli.slide.open import open_slide
from tests.helpers.networks_own import Raising, net_and_twin
from tests.helpers.processes import succeed
from tests.helpers.progress import Killed, Watcher, die_at

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = {"patch_size": 128, "tissue": "none", "seamless": True, "compression": "deflate", "workers": 2}


def example(slide: Path, folder: Path) -> str:
    command = [sys.executable, EXAMPLES / "own_generator.py", slide, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_has_fifteen_lines() -> None:
    tree = ast.parse((EXAMPLES / "own_generator.py").read_text())
    lines = {node.lineno for statement in tree.body[1:] for node in ast.walk(statement) if hasattr(node, "lineno")}
    assert len(lines) <= 15


def test_the_example_translates_and_the_second_run_finds_its_outputs(slide: Path, tmp_path: Path) -> None:
    shown = example(slide, tmp_path)
    assert shown.count("patches") == 2
    assert example(slide, tmp_path).count("exists") == 2
    for name in ("GlobalGenerator", "StyledGenerator"):
        record = json.loads((tmp_path / f"{name}.ome.tif.json").read_text())
        assert (record["settings"]["network"], record["settings"]["halo"] > 0) == (name, True)
        assert record["model_notes"] == []


@pytest.mark.slow
def test_the_example_translates_a_real_slide(shared_data: Path, tmp_path: Path) -> None:
    assert example(shared_data / "CMU-1-Small-Region.svs", tmp_path).count("27 patches") == 2


@pytest.mark.parametrize("stage", ["measure", "apply"])
def test_a_module_of_the_same_weights_and_code_continues(slide: Path, tmp_path: Path, stage: str) -> None:
    whole, again = tmp_path / "a" / "out.ome.tif", tmp_path / "b" / "out.ome.tif"
    for output in (whole, again):
        output.parent.mkdir()
    kin_cli.translate(slide, whole, generator=net_and_twin("adain")[0], progress=Watcher(), **SMALL)
    dying = Watcher(die_at(stage, 3))
    with pytest.raises(Killed):
        kin_cli.translate(slide, again, generator=net_and_twin("adain")[0], progress=dying, **SMALL)
    with pytest.raises(kin_cli.KinError, match="model sha256"):
        kin_cli.translate(slide, again, generator=net_and_twin("adain", seed=1)[0], **SMALL)
    watcher = Watcher()
    kin_cli.translate(slide, again, generator=net_and_twin("adain")[0], progress=watcher, **SMALL)
    assert any("continuing" in note for note in watcher.notes)
    assert whole.read_bytes() == again.read_bytes()


def test_options_are_those_of_the_command(slide: Path, tmp_path: Path, tiny_generator: Path) -> None:
    by_name = {**SMALL, "kernel": "constant:3", "region": (0, 0, 256, 256)}
    record = kin_cli.translate(str(slide), str(tmp_path / "o.tif"), model=str(tiny_generator), **by_name).record
    assert record["settings"]["kernel"] == "constant:3"
    with open_slide(tmp_path / "o.tif") as made:
        assert (made.levels[0].width, np.asarray(made.mpp).size) == (256, 1)
    with pytest.raises(UsageError, match="holds no reference statistics"):
        kin_cli.translate(slide, tmp_path / "t.tif", model=tiny_generator, trust=True, **SMALL)
    with pytest.raises(UsageError, match="exclude each other"):
        kin_cli.translate(slide, tmp_path / "t.tif", model=tiny_generator, trust=False, trust_below=0.01, **SMALL)
    with pytest.raises(UsageError, match="did you mean kernel"):
        kin_cli.translate(slide, generator=tiny_generator, kernal="constant:3")
    with pytest.raises(UsageError, match="needs a generator"):
        kin_cli.translate(slide)
    with pytest.raises(UsageError, match="generator is a int, not a torch"):
        kin_cli.translate(slide, tmp_path / "p.tif", generator=3)
    with pytest.raises(ModelError, match="Raising fails on 128×128 px"):
        kin_cli.translate(slide, tmp_path / "p.tif", generator=Raising(), **SMALL)
    assert not (tmp_path / "p.tif").exists()


def test_notes_are_logged(slide: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    net, _ = net_and_twin("module", unit=1)
    kin_cli.translate(slide, tmp_path / "o.tif", generator=net, **SMALL)
    assert any("--input-range 0,1" in message for message in caplog.messages)


def test_the_example_for_a_slide_runs_as_it_stands(slide: Path, tmp_path: Path, tiny_generator: Path) -> None:
    command = [sys.executable, EXAMPLES / "translate_a_slide.py", slide, tiny_generator, tmp_path / "o.ome.tif"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "patches with tissue" in done.stdout
    assert "ΔE" in done.stdout
    assert "measure" in done.stderr
    missing = subprocess.run([*command[:2], "absent.svs", *command[3:]], capture_output=True, text=True, check=False)
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)


def test_seams_by_python_are_those_of_the_command(slide: Path, tmp_path: Path, tiny_generator: Path) -> None:
    made = kin_cli.translate(slide, tmp_path / "o.tif", model=tiny_generator, paper=True, patch_size=128, tissue="none")
    assert made.record["settings"]["halo"] == 0
    found = kin_cli.seams(str(made.path), slide, tissue="none")
    shown = json.loads(succeed("seams", made.path, "--source", slide, "--tissue", "none", "--json"))
    assert json.loads(json.dumps(found.as_dict())) == {name: value for name, value in shown.items() if name != "slide"}
    with pytest.raises(UsageError, match="two generators"):
        kin_cli.translate(slide, model=tiny_generator, generator=tiny_generator)
