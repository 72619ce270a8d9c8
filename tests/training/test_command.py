"""``kin train`` on the command line: settings files, defaults, and what the papers say."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from kin_cli.commands.train import train as command
from kin_cli.training.settings import (
    CutLosses,
    CycleGanLosses,
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
    ("framework", "config"),
    [("cyclegan", "cyclegan"), ("cut", "cut"), ("lsesim", "l-lsesim"), ("lsesim", "f-lsesim"), ("cut", "he2syn")],
)
def test_the_command_takes_every_settings_file(images: Path, tmp_path: Path, framework: str, config: str) -> None:
    patch = "32"
    if config == "he2syn":  # it evaluates, on whole patches of 64 px and more beside its region
        images, patch = draw_images(tmp_path, side=256), "64"
    arguments = [framework, "--config", str(CONFIGS / f"{config}.toml"), "--source", str(images / "he")]
    arguments += ["--target", str(images / "ihc"), "-o", str(tmp_path / "run"), "--patch-size", patch, "--steps", "1"]
    arguments += ["--width", "4", "--blocks", "1", "--disc-width", "4", "--device", "cpu", "--warm-steps", "0"]
    arguments += ["--border-fraction", "0", "--background-fraction", "0", "--disc-layers", "1"]
    if framework == "lsesim":
        arguments += ["--random-features", "--layers", "1", "--window", "4"]
    if config == "he2syn":
        arguments += ["--layers", "", "--source-region", "0,0,256,128"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "generator.safetensors").is_file()


_VGG = {"vgg": Path("vgg16.pth")}
PAPERS: dict[str, tuple[Losses, int, bool, str]] = {
    # the official defaults: losses, the KIN paper's epochs, anti-aliasing, initialisation
    "cyclegan": (CycleGanLosses(cycle=10.0, identity=0.5, pool=50), 50, False, "normal"),
    "cut": (CutLosses(gan=1.0, nce=1.0, identity=True, locations=256, projection=256, tau=0.07), 100, True, "xavier"),
    "l-lsesim": (LsesimLosses(True, 10.0, (4, 7), 256, 32, 0.07, 2.0, 50, **_VGG), 100, True, "xavier"),
    "f-lsesim": (LsesimLosses(False, 10.0, (4, 7), 256, 32, 0.07, 2.0, 50, **_VGG), 100, True, "xavier"),
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
        )
    ]
