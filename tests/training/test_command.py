"""``kin train`` on the command line: settings files, defaults, and what the papers say."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from kin_cli.commands.train import train as command
from kin_cli.geometry import Box
from kin_cli.training.settings import (
    Card,
    CutLosses,
    CycleGanLosses,
    GuidanceSettings,
    Losses,
    LsesimLosses,
    NetworkSettings,
    PatchSettings,
    Schedule,
    TrainSettings,
)
from tests.helpers.training_runs import draw_images

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "train"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("images"))


@pytest.mark.parametrize(
    ("framework", "config"), [("cyclegan", "cyclegan"), ("cut", "cut"), ("lsesim", "l-lsesim"), ("lsesim", "f-lsesim")]
)
def test_the_command_takes_every_settings_file(images: Path, tmp_path: Path, framework: str, config: str) -> None:
    arguments = [framework, "--config", str(CONFIGS / f"{config}.toml"), "--source", str(images / "he")]
    arguments += ["--target", str(images / "ihc"), "-o", str(tmp_path / "run"), "--patch-size", "32", "--steps", "1"]
    arguments += ["--width", "4", "--blocks", "1", "--disc-width", "4", "--disc-layers", "1", "--device", "cpu"]
    if framework == "lsesim":
        arguments += ["--random-features", "--layers", "1", "--map-size", "4"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "generator.safetensors").is_file()


_VGG = {"vgg": Path("vgg16.pth")}
PAPERS: dict[str, tuple[Losses, int, bool, str]] = {
    # the official defaults: losses, the KIN paper's epochs, anti-aliasing, initialisation
    "cyclegan": (CycleGanLosses(cycle=10.0, identity=0.5, pool=50), 50, False, "normal"),
    "cut": (CutLosses(gan=1.0, nce=1.0, identity=True), 100, True, "xavier"),
    "l-lsesim": (LsesimLosses(True, 10.0, (4, 7), 32, 50, **_VGG), 100, True, "xavier"),
    "f-lsesim": (LsesimLosses(False, 10.0, (4, 7), 32, 50, **_VGG), 100, True, "xavier"),
}


@pytest.mark.parametrize("config", list(PAPERS))
@pytest.mark.parametrize("with_file", [True, False])
def test_settings_files_and_defaults_are_the_papers(
    config: str, with_file: bool, monkeypatch: pytest.MonkeyPatch, images: Path, tmp_path: Path
) -> None:
    taken: list[TrainSettings] = []
    monkeypatch.setattr("kin_cli.training.run.train", lambda given, _: taken.append(given))
    framework = config.rpartition("-")[2]
    arguments = [framework, "--source", str(images / "he"), "--target", str(images / "ihc"), "-o", str(tmp_path)]
    arguments += ["--vgg", "vgg16.pth"] if framework == "lsesim" else []
    if with_file:
        arguments += ["--config", str(CONFIGS / f"{config}.toml")]
    elif config == "f-lsesim":
        arguments += ["--fixed"]
    assert CliRunner().invoke(command, arguments, catch_exceptions=False).exit_code == 0
    losses, epochs, antialias, init = PAPERS[config]
    assert taken == [
        TrainSettings(
            output=tmp_path,
            patches=PatchSettings(images / "he", images / "ihc", patch_px=512, flip=True),
            losses=losses,
            network=NetworkSettings(64, 9, antialias, disc_width=64, disc_layers=3, init=init, init_gain=0.02),
            schedule=Schedule(epochs=epochs, batch=1, accumulate=1, lr=2e-4, decay_fraction=0.5),
            reference=300,
        )
    ]


def taken(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> TrainSettings:
    """The settings that ``kin train cut`` makes of its arguments."""
    given: list[TrainSettings] = []
    monkeypatch.setattr("kin_cli.training.run.train", lambda settings, _: given.append(settings))
    shared = ["cut", "--source", "he", "--target", "ihc", "-o", "run"]
    result = CliRunner().invoke(command, [*shared, *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return given[0]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("none", (False, False, 0.0, 0.0)),
        ("rotate", (False, True, 0.0, 0.0)),
        ("flip,rotate,scale:0.1,jitter:0.2", (True, True, 0.1, 0.2)),
    ],
)
def test_augmentations_are_listed(monkeypatch: pytest.MonkeyPatch, text: str, wanted: tuple[object, ...]) -> None:
    patches = taken(monkeypatch, "--augment", text).patches
    assert (patches.flip, patches.rotate, patches.scale, patches.jitter) == wanted


def test_guides_background_and_statistics_are_options_of_every_framework(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, default = taken(monkeypatch), TrainSettings(Path("run"), PatchSettings(Path("he"), Path("ihc")), CutLosses())
    assert (plain.guidance, plain.patches, plain.network.smooth_norm) == (default.guidance, default.patches, False)
    options = (
        "--guide",
        "g.tif",
        "--guide-weight",
        "3",
        "--guide-colours",
        "4",
        "--guide-cell",
        "8",
        "--guide-shift",
        "32",
    )
    run = taken(monkeypatch, *options, "--background-weight", "2", "--smooth-norm", "--augment", "source-jitter:0.2")
    assert run.guidance == GuidanceSettings(3.0, 4.0, 8, 2.0)
    assert (run.patches.guide, run.patches.guide_shift_px, run.patches.source_jitter) == (Path("g.tif"), 32, 0.2)
    assert run.network.smooth_norm


def test_the_recipe_of_the_bundled_generator_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    run = taken(monkeypatch, "--config", str(CONFIGS / "he2pas.toml"), "--guide", "g.tif", "--start", "s.safetensors")
    assert run.patches.source_region == Box(0, 0, 7200, 11212)
    assert (run.losses, run.guidance.background) == (CutLosses(gan=0.0, nce=0.0, identity=False), 30.0)
    assert (run.card.target_stain, run.card.mpp, run.schedule.steps, run.half) == ("PAS", "0.5", 900, True)


def test_initial_weights_are_a_kind_and_its_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    network = taken(monkeypatch, "--init", "normal:0.5").network
    assert (network.init, network.init_gain) == ("normal", 0.5)


def test_the_card_is_a_table_whose_entries_options_override(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "card.toml"
    file.write_text('[card]\nsource-stain = "H&E"\ncredit = "a = b"\n')
    assert taken(monkeypatch).card == Card()
    assert taken(monkeypatch, "--config", str(file)).card == Card(source_stain="H&E", credit="a = b")
    both = taken(monkeypatch, "--config", str(file), "--card", "credit=c", "--card", "target-stain=IHC").card
    assert both == Card("H&E", "IHC", credit="c")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--augment", value) for value in ("", "flip:1", "scale", "scale:x", "turn", "none,flip")),
        *(("--init", value) for value in ("normal", "uniform:1", "xavier:x")),
        *(("--card", value) for value in ("credit", "owner=me")),
        ("--layers", "1,b"),
    ],
)
def test_values_that_make_no_sense_are_refused(option: str, value: str) -> None:
    arguments = ["cut", "--source", "he", "--target", "ihc", "-o", "run", option, value]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in result.output
