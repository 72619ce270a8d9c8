"""Whole runs: exact resume, what is refused, and checkpoints that the rest of the program takes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from click.testing import CliRunner
from PIL import Image

from kin_cli.commands.main import cli
from kin_cli.errors import KinError, OutputError, UsageError
from kin_cli.models.checkpoint import load_generator
from kin_cli.progress import SilentProgress
from kin_cli.training.run import build, train
from kin_cli.training.settings import (
    CutLosses,
    GuidanceSettings,
    NetworkSettings,
    PatchSettings,
    Schedule,
    TrainSettings,
)
from tests.helpers.training_runs import LOSSES, Interrupting, Noting, assert_same_state, draw_images, rows, settings


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("images"))


@pytest.mark.parametrize("framework", list(LOSSES))
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(images: Path, tmp_path: Path, framework: str) -> None:
    whole, parts = (settings(images, tmp_path / name, framework) for name in ("whole", "parts"))
    train(whole, SilentProgress())
    # stopped after its fifth step: the checkpoint is that of the fourth
    with pytest.raises(KeyboardInterrupt):
        train(parts, Interrupting(after=5))
    train(parts, SilentProgress())
    assert_same_state(whole.output, parts.output)
    kept = [{k: v for k, v in row.items() if k != "seconds"} for row in rows(whole.output)]
    assert kept == [{k: v for k, v in row.items() if k != "seconds"} for row in rows(parts.output)]
    assert len(kept) == 6


@pytest.mark.parametrize("framework", list(LOSSES))
def test_a_run_leaves_a_generator_with_its_card_and_pictures(images: Path, tmp_path: Path, framework: str) -> None:
    run = settings(images, tmp_path / "run", framework)
    path = train(run, SilentProgress())
    generator = load_generator(path)
    assert (generator.width, generator.blocks, generator.architecture) == (4, 1, "resnet-cyclegan")
    card = generator.metadata
    assert card["source_stain"] == "H&E"
    assert card["use"] == "research only, not for diagnosis"
    assert card["framework"] == framework
    assert f'"framework": "{framework}"' in card["training"]
    shown = CliRunner().invoke(cli, ["info", str(path)], catch_exceptions=False).stdout.splitlines()
    told = {line[:26].strip(): line[26:].strip() for line in shown}
    assert (told["source stain"], told["credit"], told["steps"]) == ("H&E", "drawn by the test", "6 of 6")
    assert told["training schedule"].startswith("accumulate 1, batch 1, decay_fraction 0.5")
    assert told["training framework"] == framework
    exported = load_generator(path.with_suffix(".pth"))
    for name, tensor in generator.module.state_dict().items():
        assert torch.equal(tensor, exported.module.state_dict()[name])
    out = tmp_path / "translated.ome.tif"
    arguments = ["translate", str(images / "he" / "0.png"), "-m", str(path), "-o", str(out), "--patch-size", "32"]
    result = CliRunner().invoke(cli, [*arguments, "--device", "cpu"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert tifffile.imread(out).shape == (96, 96, 3)
    pictures = sorted(file.name for file in (run.output / "samples").iterdir())
    assert pictures == ["0000002.png", "0000004.png", "0000006.png"]
    assert Image.open(run.output / "samples" / pictures[0]).size == (4 * 32, 3 * 32)


@pytest.mark.parametrize("framework", list(LOSSES))
def test_a_guided_run_in_every_framework_continues_bit_for_bit(images: Path, tmp_path: Path, framework: str) -> None:
    whole, parts = (settings(images, tmp_path / name, framework) for name in ("whole", "parts"))
    guided = {
        "patches": replace(whole.patches, guide=images / "he", guide_shift_px=8, source_jitter=0.1, rotate=True),
        "network": replace(whole.network, smooth_norm=True),
        "guidance": GuidanceSettings(3.0, 1.0, 8, 2.0),
    }
    whole, parts = replace(whole, **guided), replace(parts, **guided)
    path = train(whole, SilentProgress())
    assert {"guide", "colours", "background"} <= set(rows(whole.output)[0])
    with pytest.raises(KeyboardInterrupt):
        train(parts, Interrupting(after=3))
    train(parts, SilentProgress())
    assert_same_state(whole.output, parts.output)
    assert not any("std" in name for name in load_generator(path).module.state_dict())
    with pytest.raises(OutputError, match=r"was begun with guidance weight 3.0, not 4.0"):
        train(replace(parts, guidance=GuidanceSettings(4.0, 1.0, 8, 2.0)), SilentProgress())


def test_a_guide_leads_the_translation_to_its_colours(images: Path, tmp_path: Path) -> None:
    guides = tmp_path / "guides"
    guides.mkdir()
    for file in (images / "he").iterdir():
        # green where the source is pink, red where it is purple
        dark = np.asarray(Image.open(file))[..., :1] < 160
        Image.fromarray(np.where(dark, [200, 40, 40], [60, 220, 60]).astype(np.uint8)).save(guides / file.name)
    run = settings(images, tmp_path / "run")
    patches = replace(run.patches, guide=guides, guide_shift_px=0)
    run = replace(run, patches=patches, losses=CutLosses(gan=0.0, nce=0.0))
    run = replace(run, schedule=Schedule(steps=80, lr=5e-3), guidance=GuidanceSettings(10.0, 5.0, 4))
    train(replace(run, save_every=80), SilentProgress())
    distances = [float(row["guide"]) for row in rows(run.output)]
    assert np.mean(distances[-10:]) < 0.35 * np.mean(distances[:3])


def test_cut_without_adversary_and_contrast_builds_neither_and_needs_a_guide(images: Path, tmp_path: Path) -> None:
    run = settings(images, tmp_path / "run", losses=CutLosses(gan=0.0))
    framework = build(run)
    assert set(framework.networks) == {"generator", "projection"}
    assert [phase.name for phase in framework.phases] == ["generator"]
    without = replace(run, losses=CutLosses(nce=0.0))
    assert set(build(without).networks) == {"generator", "disc_target"}
    with pytest.raises(UsageError, match="nothing leads the translation"):
        replace(run, losses=CutLosses(gan=0.0, nce=0.0))


def test_a_finished_run_takes_a_new_card(images: Path, tmp_path: Path) -> None:
    run = settings(images, tmp_path / "run")
    path = train(run, SilentProgress())
    before = load_generator(path)
    card = replace(run.card, figures="ROC 0.9", licence="MIT", mpp="0.5")
    train(replace(run, card=card), SilentProgress())
    after = load_generator(path)
    assert (after.metadata["figures"], after.metadata["licence"], after.trained_mpp) == ("ROC 0.9", "MIT", 0.5)
    assert all(torch.equal(t, after.module.state_dict()[n]) for n, t in before.module.state_dict().items())


def test_other_settings_are_refused_by_name_and_overwrite_starts_afresh(images: Path, tmp_path: Path) -> None:
    run = settings(images, tmp_path / "run")
    train(run, SilentProgress())
    other = replace(run, schedule=replace(run.schedule, lr=5e-4))
    with pytest.raises(OutputError, match=r"was begun with schedule lr 0.001, not 0.0005"):
        train(other, SilentProgress())
    train(replace(other, overwrite=True), SilentProgress())
    assert rows(run.output)[0]["lr"] == "5.000e-04"
    # what does not enter the weights may change
    train(replace(other, workers=1, log_every=3), SilentProgress())


def test_more_steps_before_the_rate_falls_equal_a_run_of_that_length(images: Path, tmp_path: Path) -> None:
    def scheduled(name: str, steps: int) -> TrainSettings:
        return settings(images, tmp_path / name, schedule=Schedule(steps=steps, lr=1e-3, decay_fraction=0.0))

    train(scheduled("long", 6), SilentProgress())
    train(scheduled("parts", 3), SilentProgress())
    told = Noting()
    train(scheduled("parts", 6), told)
    assert told.notes == ["goes on with step 4 of now 6, at a learning rate of 1.0e-03"]
    weights = [
        load_generator(tmp_path / name / "generator.safetensors").module.state_dict() for name in ("long", "parts")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_more_steps_take_the_rates_of_the_new_schedule_and_fewer_are_refused(images: Path, tmp_path: Path) -> None:
    run = settings(images, tmp_path / "run", schedule=Schedule(steps=4, lr=1e-3, decay_fraction=0.5))
    train(run, SilentProgress())
    told = Noting()
    longer = replace(run, schedule=replace(run.schedule, steps=8))
    train(longer, told)
    assert told.notes == ["goes on with step 5 of now 8, at a learning rate of 1.0e-03, which falls from step 6 on"]
    rates = [float(row["lr"]) for row in rows(run.output)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3, 5e-4, 1e-3, 7.5e-4, 5e-4, 2.5e-4])
    train(longer, told)
    assert told.notes[1:] == ["all 8 steps are done already"]
    with pytest.raises(OutputError, match=r"run: has done 8 steps already, more than the 4 asked for"):
        train(run, SilentProgress())


def test_a_damaged_state_is_refused(images: Path, tmp_path: Path) -> None:
    run = settings(images, tmp_path / "run")
    train(run, SilentProgress())
    state = run.output / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(OutputError, match=r"state\.pt: is damaged"):
        train(run, SilentProgress())


def test_a_loss_that_is_not_finite_stops_the_run(images: Path, tmp_path: Path) -> None:
    run = settings(images, tmp_path / "run", "cyclegan", schedule=Schedule(steps=50, lr=1e30))
    with pytest.raises(KinError, match=r"the loss \w+ is (nan|inf) at step \d+: training has diverged"):
        train(run, SilentProgress())


def test_training_begins_with_a_given_generator(images: Path, tmp_path: Path) -> None:
    first = settings(images, tmp_path / "first", network=NetworkSettings(width=6, blocks=2, disc_width=4))
    start = train(first, SilentProgress())
    tuned = settings(
        images,
        tmp_path / "tuned",
        network=NetworkSettings(start=start, disc_width=4),
        schedule=Schedule(steps=1, lr=1e-9),
    )
    before, after = load_generator(start), load_generator(train(tuned, SilentProgress()))
    assert (after.width, after.blocks) == (6, 2)
    for name, tensor in before.module.state_dict().items():
        torch.testing.assert_close(after.module.state_dict()[name], tensor, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["cyclegan", "cut"])
def test_official_weights_go_in_and_come_out_under_their_keys(
    images: Path, tmp_path: Path, shared_reference: Path, name: str
) -> None:
    official = torch.load(shared_reference / f"{name}.pth", weights_only=True)
    run = settings(
        images,
        tmp_path / "run",
        patches=PatchSettings(images / "he", images / "ihc", patch_px=64),
        network=NetworkSettings(start=shared_reference / f"{name}.pth", disc_width=4, antialias=name == "cut"),
        schedule=Schedule(steps=1, lr=1e-9, ema=0.0),
    )
    exported = torch.load(train(run, SilentProgress()).with_suffix(".pth"), weights_only=True)
    assert list(exported) == list(official)
    for key, tensor in official.items():
        torch.testing.assert_close(exported[key], tensor, atol=1e-6, rtol=0)


def test_epochs_count_the_patches_that_fit(images: Path, tmp_path: Path) -> None:
    run = settings(images, tmp_path / "run", schedule=Schedule(epochs=2, batch=4), log_every=1)
    train(run, SilentProgress())
    # 2 pictures of 3 × 3 patches, twice, 4 at a time
    assert len(rows(run.output)) == math.ceil(2 * 18 / 4)


def test_bf16_trains_and_half_stores_half(images: Path, tmp_path: Path) -> None:
    run = settings(images, tmp_path / "run", precision="bf16", half=True, schedule=Schedule(steps=2))
    path = train(run, SilentProgress())
    stored, full = load_generator(path), load_generator(path.with_suffix(".pth"))
    assert stored.notes == ("converted weights from float16 to float32",)
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    grey_levels = (stored.module(x) - full.module(x)).abs() * 127.5
    assert 0 < grey_levels.max() < 1


@pytest.mark.slow
@pytest.mark.parametrize("framework", list(LOSSES))
def test_two_hundred_steps_lower_the_loss(images: Path, tmp_path: Path, framework: str) -> None:
    run = settings(images, tmp_path / "run", framework, schedule=Schedule(steps=200, lr=1e-3), log_every=20)
    train(run, SilentProgress())
    term = {"cyclegan": "cycle_source", "cut": "nce", "lsesim": "maps"}[framework]
    values = [float(row[term]) for row in rows(run.output)]
    assert min(values[-3:]) < 0.8 * values[0]


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_from_twice_the_batch(images: Path, tmp_path: Path) -> None:
    def run(processes: int, batch: int) -> dict[str, torch.Tensor]:
        output = tmp_path / f"run{processes}"
        arguments = ["cyclegan", "--source", str(images / "he"), "--target", str(images / "ihc"), "-o", str(output)]
        arguments += ["--patch-size", "32", "--steps", "3", "--width", "4", "--blocks", "1", "--disc-width", "4"]
        arguments += ["--disc-layers", "1", "--pool", "0", "-b", str(batch), "--device", "cpu"]
        launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
        script = "from kin_cli.commands.train import train; train()"
        (tmp_path / "go.py").write_text(script)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*launch, str(tmp_path / "go.py"), *arguments], check=True, env=environment, timeout=300)
        return load_generator(output / "generator.safetensors").module.state_dict()

    alone, together = run(1, 2), run(2, 1)
    # a bias in front of a norm layer has no gradient but rounding errors, which Adam scales up to full steps
    for name in (name for name in alone if name.endswith("weight")):
        torch.testing.assert_close(together[name], alone[name], atol=2e-5, rtol=1e-3)
