"""The command line itself: help, exit codes, settings files, and one clear line for every bad input."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from kin_cli.commands.main import cli, run


@dataclass
class Run:
    returncode: int
    stdout: str
    stderr: str


def kin(*arguments: object, **variables: str) -> Run:
    """Run the command line as the console script does, in this process: importing torch takes seconds."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.dict(os.environ, variables),
    ):
        code = run(list(map(str, arguments)))
    return Run(code, out.getvalue(), err.getvalue())


def assert_refused(result: Run, *words: str, code: int | None = None) -> None:
    """One line on stderr that holds the words, a non-zero exit code, no traceback."""
    assert result.returncode != 0 if code is None else result.returncode == code, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("kin: ")
    for word in words:
        assert word in lines[0], lines[0]


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (96, 160, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "slide.png")
    return tmp_path / "slide.png"


@pytest.fixture
def model(tmp_path: Path, tiny_generator: Path) -> Path:
    return tiny_generator


def test_every_command_has_help_and_stands_in_the_readme() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for name, command in cli.commands.items():
        assert command.help, name
        assert f"kin {name}" in readme, f"README.md does not mention kin {name}"


def test_every_option_of_translate_says_what_it_does() -> None:
    for parameter in cli.commands["translate"].params:
        if parameter.param_type_name == "option" and parameter.name not in ("compression", "subsampling", "precision"):
            assert getattr(parameter, "help", None), parameter.name


def test_a_translation_writes_the_output_its_record_and_nothing_else(slide: Path, model: Path) -> None:
    result = kin(
        "translate", slide, "-m", model, "--patch-size", 32, "--kernel", "constant:3", "-o", slide.parent / "o.ome.tif"
    )
    assert result.returncode == 0, result.stderr
    record = json.loads((slide.parent / "o.json").read_text())
    assert record["plan"]["patches"] == 15
    assert record["settings"]["kernel"] == "constant:3"
    assert sorted(p.name for p in slide.parent.iterdir()) == ["o.json", "o.ome.tif", "slide.png"]
    assert kin("check", slide.parent / "o.ome.tif").returncode == 0


def test_the_default_output_stands_beside_the_slide(slide: Path, model: Path) -> None:
    result = kin("translate", slide, "-m", model, "--patch-size", 32, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["output"].endswith("slide.kin.ome.tif")
    assert (slide.parent / "slide.kin.ome.tif").exists()
    assert (slide.parent / "slide.kin.json").exists()
    assert_refused(kin("translate", slide, "-m", model, "--patch-size", 32), "exists already", "--overwrite")


def test_a_dry_run_shows_the_plan_and_writes_nothing(slide: Path, model: Path) -> None:
    result = kin("translate", slide, "-m", model, "--patch-size", 32, "--dry-run", "--json")
    plan = json.loads(result.stdout)
    assert result.returncode == 0
    assert plan["grid"] == [3, 5]
    assert plan["memory_bound_bytes"] > 0
    assert plan["disk_bytes"] > 0
    assert kin("translate", slide, "-m", model, "--patch-size", 32, "--dry-run").stdout.count("\n") > 8
    assert [p.name for p in slide.parent.iterdir()] == ["slide.png"]


def test_flag_beats_variable_beats_file_beats_default(slide: Path, model: Path) -> None:
    config = slide.parent / "kin.toml"
    config.write_text('kernel = "constant:3"\nquality = 60\npatch-size = 32\n')
    arguments = ("translate", slide, "-m", model, "--config", config, "--quality", 70, "-o", slide.parent / "o.tif")
    result = kin(*arguments, "--json", KIN_TRANSLATE_KERNEL="gaussian:3", KIN_TRANSLATE_QUALITY="65")
    settings = json.loads(result.stdout)["settings"]
    assert (settings["quality"], settings["kernel"], settings["patch size"]) == (70, "gaussian:3", 32)


def test_the_settings_in_configs_are_known(slide: Path, model: Path) -> None:
    for config in sorted((Path(__file__).parents[2] / "configs").glob("*.toml")):
        result = kin("translate", slide, "-m", model, "--config", config, "--dry-run")
        assert result.returncode == 0, f"{config.name}: {result.stderr}"


def test_unknown_keys_in_a_settings_file_are_refused(slide: Path, model: Path) -> None:
    config = slide.parent / "kin.toml"
    config.write_text("kernal = 3\n")
    assert_refused(kin("translate", slide, "-m", model, "--config", config), "kin.toml", "kernal", code=2)
    config.write_text("kernel = \n")
    assert_refused(kin("translate", slide, "-m", model, "--config", config), "kin.toml", "TOML", code=2)
    assert_refused(kin("translate", slide, "-m", model, "--config", "absent.toml"), "absent.toml", code=2)


BAD_SLIDES = {
    "text.svs": lambda path: path.write_text("not a slide\n" * 200),
    "empty.svs": lambda path: path.write_bytes(b""),
    "missing.svs": lambda path: None,
    "folder.svs": lambda path: path.mkdir(),
    "broken.png": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)),
}


@pytest.mark.parametrize("name", BAD_SLIDES)
def test_bad_slides_get_one_line(tmp_path: Path, model: Path, name: str) -> None:
    BAD_SLIDES[name](tmp_path / name)
    assert_refused(kin("translate", tmp_path / name, "-m", model), name, code=1)
    assert not [p for p in tmp_path.iterdir() if p.name != name]


def test_a_slide_cut_in_half_gets_one_line(tmp_path: Path, model: Path, shared_data: Path) -> None:
    whole = (shared_data / "CMU-1-Small-Region.svs").read_bytes()
    (tmp_path / "half.svs").write_bytes(whole[: len(whole) // 2])
    result = kin("translate", tmp_path / "half.svs", "-m", model)
    assert_refused(result, "half.svs", code=1)
    assert not list(tmp_path.glob("*.tif"))


def test_bad_checkpoints_get_one_line(tmp_path: Path, slide: Path, model: Path) -> None:
    other, short, code, text = (tmp_path / f"{name}.pth" for name in ("other", "short", "code", "text"))
    torch.save({"features.0.weight": torch.zeros(8, 3, 3, 3), "classifier.bias": torch.zeros(8)}, other)
    weights = dict(torch.load(model, weights_only=True))
    weights.pop("model.1.bias")
    torch.save(weights, short)
    shutil.copy(model, code)
    with zipfile.ZipFile(code, "w") as archive:
        archive.writestr("archive/data.pkl", b"cos\nsystem\n(S'touch pwned'\ntR.")
        archive.writestr("archive/version", "3\n")
    text.write_text("hello")
    for file in (other, short, code, text, tmp_path / "missing.pth"):
        assert_refused(kin("translate", slide, "-m", file), file.name, code=1)
    assert not Path("pwned").exists()


BAD_OPTIONS = {
    "--kernel gaussian:4": ("gaussian:4", 2),
    "--kernel constant:-3": ("constant:-3", 2),
    "--patch-size 30": ("30", 2),
    "--window 48 --patch-size 32": ("48", 2),
    "--halo -1": ("halo", 2),
    "--method in --kernel gaussian:7": ("in", 2),
    "--method tin --interpolation bilinear": ("tin", 2),
    "--method in --seamless": ("--seamless", 2),
    "--region 150,0,64,64 --patch-size 32": ("region", 2),
    "--region 1,2,3": ("region", 2),
    "--region 0,0,0,5": ("region", 2),
    "--level 3": ("level", 2),
    "--level 0 --mpp 0.5": ("--mpp", 2),
    "--mpp 0.5": ("--source-mpp", 1),
    "--mpp 0": ("--mpp", 2),
    "--device cuda:77": ("cuda:77", 1),
    "--device warp": ("warp", 1),
    "--tissue absent.png": ("absent.png", 1),
    "--eps -1": ("eps", 2),
    "--quality 0": ("quality", 2),
    "--method nonsense": ("nonsense", 2),
    "--no-such-option": ("--no-such-option", 2),
}


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_bad_options_get_one_line(slide: Path, model: Path, options: str) -> None:
    word, code = BAD_OPTIONS[options]
    result = kin("translate", slide, "-m", model, *options.split(), "-o", slide.parent / "o.tif")
    assert_refused(result, word, code=code)
    assert [p.name for p in slide.parent.iterdir()] == ["slide.png"]


def test_bad_outputs_get_one_line(slide: Path, model: Path) -> None:
    assert_refused(
        kin("translate", slide, "-m", model, "-o", slide.parent / "none" / "o.tif"), "no such folder", code=1
    )
    assert_refused(kin("translate", slide, "-m", model, "-o", slide.parent / "o.xyz"), "o.xyz", code=2)
    assert_refused(kin("translate", slide, "-m", model, "-o", slide, "--overwrite"), "slide itself", code=2)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here; it refuses files even from root")
def test_an_unwritable_folder_gets_one_line(slide: Path, model: Path) -> None:
    assert_refused(kin("translate", slide, "-m", model, "-o", "/proc/o.tif"), "/proc", code=1)


def test_debug_shows_the_traceback(slide: Path) -> None:
    result = kin("--debug", "translate", slide, "-m", "absent.pth")
    assert "Traceback" in result.stderr


def test_info_describes_slides_and_checkpoints(slide: Path, model: Path) -> None:
    described = json.loads(kin("info", model, "--json").stdout)
    assert described["architecture"] == "resnet-cyclegan"
    assert described["width"] == 4
    facts = json.loads(kin("info", slide, "--patch-size", 32, "--json").stdout)
    assert facts["size"] == [160, 96]
    assert facts["patches"] == 15
    assert "160 × 96" in kin("info", slide).stdout


def test_a_sample_is_a_slide_that_can_be_checked(tmp_path: Path) -> None:
    result = kin("sample", tmp_path / "demo.tif", "--size", "1500x1100")
    assert result.returncode == 0, result.stderr
    facts = json.loads(kin("info", tmp_path / "demo.tif", "--json").stdout)
    assert facts["size"] == [1500, 1100]
    assert facts["mpp"] == pytest.approx(0.5)
    assert len(facts["levels"]) == 2
    damaged = bytearray((tmp_path / "demo.tif").read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    (tmp_path / "damaged.tif").write_bytes(damaged)
    result = kin("check", tmp_path / "demo.tif", tmp_path / "damaged.tif")
    assert result.returncode == 1
    assert "demo.tif: sound" in result.stdout


def test_the_installed_command_fails_with_one_line_too(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kin_cli", "info", str(tmp_path / "absent.svs")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert_refused(Run(done.returncode, done.stdout, done.stderr), "absent.svs", code=1)
