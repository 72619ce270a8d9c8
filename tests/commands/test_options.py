"""The options of a translation: flags, environment, settings files, and one line for each bad one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from kin_cli.commands.main import cli
from kin_cli.commands.options import settings_from, translation_options
from kin_cli.errors import UsageError
from kin_cli.settings import Settings
from tests.helpers.processes import assert_refused, kin


def test_every_option_of_translate_says_what_it_does() -> None:
    for parameter in cli.commands["translate"].params:
        if parameter.param_type_name == "option" and parameter.name not in ("compression", "subsampling", "precision"):
            assert getattr(parameter, "help", None), parameter.name


def test_flag_beats_variable_beats_file_beats_default(picture: Path, tiny_generator: Path) -> None:
    config = picture.parent / "kin.toml"
    config.write_text('kernel = "constant:3"\nquality = 60\npatch-size = 32\n')
    arguments = (
        "translate",
        picture,
        "-m",
        tiny_generator,
        "--config",
        config,
        "--quality",
        70,
        "-o",
        picture.parent / "o.tif",
    )
    result = kin(*arguments, "--json", KIN_TRANSLATE_KERNEL="gaussian:3", KIN_TRANSLATE_QUALITY="65")
    settings = json.loads(result.out)["settings"]
    assert (settings["quality"], settings["kernel"], settings["patch size"]) == (70, "gaussian:3", 32)


def test_the_settings_in_configs_are_known(picture: Path, tiny_generator: Path) -> None:
    for config in sorted((Path(__file__).parents[2] / "configs").glob("*.toml")):
        result = kin("translate", picture, "-m", tiny_generator, "--config", config, "--dry-run")
        assert result.code == 0, f"{config.name}: {result.err}"


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
    "--input-range 1,0": ("0,1", 2),
    "--network-args {}": ("--network", 2),
    "--network nets.py:Net --network-args {": ("JSON", 2),
    "--network nets.py:Net": ("nets.py: no such file", 1),
    "--network nets.py:Net --norm batch": ("--norm and --network", 2),
    "--quality 0": ("quality", 2),
    "--method nonsense": ("nonsense", 2),
    "--no-such-option": ("--no-such-option", 2),
}


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_bad_options_get_one_line(picture: Path, tiny_generator: Path, options: str) -> None:
    word, code = BAD_OPTIONS[options]
    result = kin("translate", picture, "-m", tiny_generator, *options.split(), "-o", picture.parent / "o.tif")
    assert_refused(result, word, code=code)
    assert [p.name for p in picture.parent.iterdir()] == ["slide.png"]


# A value for every option of a translation that changes its settings.
VALUES = {
    "model": "other.pth",
    "entry": "netG_A2B",
    "model_norm": "batch",
    "network": "nets.py:Net",
    "network_args": ('{"ngf": 3}', "--network", "nets.py:Net"),
    "input_range": "0,1",
    "method": "dn",
    "kernel": "constant:3",
    "interpolation": "bilinear",
    "seamless": None,
    "halo": "32",
    "window": "1024",
    "patch_size": "256",
    "measure_size": "64",
    "authors": None,
    "correction": "1",
    "eps": "0",
    "thumbnail": ("small.png", "--method", "tin"),
    "tissue": "mask.png",
    "background": "keep",
    "series": "1",
    "level": "1",
    "mpp": "0.5",
    "source_mpp": "0.25",
    "region": "1,2,3,4",
    "compression": "deflate",
    "quality": "90",
    "subsampling": "444",
    "icc": "drop",
    "device": "cuda",
    "precision": "fp16",
    "compile": "off",
    "batch_size": "3",
    "workers": "3",
    "overwrite": None,
    "skip_existing": None,
    "report": None,
    "on_read_error": "fill",
    "trust": None,
    "trust_below": "1%",
    "stain_match": "reinhard",
}


def test_every_option_reaches_the_settings() -> None:
    small = ("--paper", "--patch-size", "128")
    plain = options_to_settings(*small)
    options = {option.name: option for option in click.command("all")(translation_options()(lambda: None)).params}
    assert options.keys() - {"config"} == VALUES.keys()
    for name, value in VALUES.items():
        words = () if value is None else (value,) if isinstance(value, str) else value
        changed = options_to_settings(*small, options[name].opts[-1], *words)
        assert changed != plain, name


def options_to_settings(*words: str) -> Settings:
    values = cli.commands["translate"].make_context("translate", ["a.svs", "-m", "m.pth", "-o", "o.tif", *words]).params
    return settings_from(values.pop("slide"), values)


@pytest.mark.parametrize(
    ("words", "correction", "eps"),
    [
        ((), 0, None),
        (("--authors",), 1, 0.0),
        (("--authors", "--method", "tin"), 1, None),
        (("--authors", "--correction", "0", "--eps", "1e-5"), 0, 1e-5),
    ],
)
def test_authors_is_a_default_for_two_options(words: tuple[str, ...], correction: int, eps: float | None) -> None:
    norm = options_to_settings(*words).norm
    assert (norm.correction, norm.eps) == (correction, eps)


@pytest.mark.parametrize(
    ("words", "squash"),
    [
        (("--authors", "--method", "tin"), True),
        (("--authors", "--method", "tin", "--thumbnail", "small.png"), False),
        (("--authors",), False),
        (("--method", "tin"), False),
    ],
)
def test_the_authors_squash_the_thumbnail_that_nobody_gives(words: tuple[str, ...], squash: bool) -> None:
    assert options_to_settings(*words).norm.squash == squash


@pytest.mark.parametrize(
    ("words", "halo", "interpolation"),
    [
        ((), None, "bilinear"),
        (("--halo", "16"), 16, "bilinear"),
        (("--interpolation", "nearest"), None, "nearest"),
        (("--method", "dn"), None, "bilinear"),
        (("--method", "in"), 0, "nearest"),
        (("--paper",), 0, "nearest"),
        (("--paper", "--halo", "auto"), None, "nearest"),
        (("--paper", "--method", "dn"), 0, "bilinear"),
        (("--paper", "--seamless"), None, "bilinear"),
        (("--authors",), 0, "nearest"),
        (("--authors", "--seamless"), None, "bilinear"),
        (("--config", "paper"), 0, "nearest"),
        (("--config", "paper", "--seamless"), None, "bilinear"),
        (("--config", "seamless"), None, "bilinear"),
    ],
)
def test_no_borders_are_the_default_and_the_paper_is_a_choice(
    words: tuple[str, ...], halo: int | None, interpolation: str
) -> None:
    norm = options_to_settings(*words).norm
    assert (norm.wanted_halo_px, norm.effective_interpolation) == (halo, interpolation)
    assert norm.window_px == (512 if halo == 0 and norm.method != "in" else None)


def test_a_configuration_is_found_by_its_name_unless_a_file_has_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert options_to_settings("--config", "tin").norm.method == "tin"
    with pytest.raises(UsageError, match=r"no such file, nor a configuration of kin .*dense, paper, seamless, tin"):
        options_to_settings("--config", "papers")
    Path("tin").write_text('method = "dn"')
    assert options_to_settings("--config", "tin").norm.method == "dn"
