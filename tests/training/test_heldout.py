"""Evaluation while training: it changes nothing, survives an interruption, and measures what it says."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from click.testing import CliRunner
from PIL import Image

from kin_cli.commands.train import train as command
from kin_cli.errors import InputError, ModelError, UsageError
from kin_cli.geometry import Box, Size
from kin_cli.metrics.fid import FeatureExtractor, FeatureSums, InceptionV3, frechet_distance
from kin_cli.progress import SilentProgress
from kin_cli.training.heldout import find_pieces, largest_left_out
from kin_cli.training.patches import PatchSource
from kin_cli.training.run import train
from kin_cli.training.settings import CutLosses, HeldOut, NetworkSettings, PatchSettings, Schedule, TrainSettings
from kin_cli.training.state import read_state
from kin_cli.translation import translate
from tests.helpers.seams import measure_seams
from tests.helpers.training_runs import Interrupting

SIDE = 64


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(1)
    for name in ("he", "ihc"):
        coarse = rng.integers(60, 250, (24, 28, 3), np.uint8)
        Image.fromarray(coarse).resize((224, 192), Image.Resampling.BILINEAR).save(folder / f"{name}.png")
    return folder


def settings(images: Path, output: Path, **changes: object) -> TrainSettings:
    made = TrainSettings(
        output=output,
        patches=PatchSettings(images / "he.png", images / "ihc.png", patch_px=SIDE),
        losses=CutLosses(),
        network=NetworkSettings(width=2, blocks=1, disc_width=2, disc_layers=1, init="xavier", init_gain=1.0),
        schedule=Schedule(steps=4, lr=1e-3),
        save_every=2,
        log_every=1,
        device="cpu",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "evaluation.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def states(*runs: Path) -> list[list[torch.Tensor]]:
    found = []
    for run in runs:
        content = read_state(run / "state.pt")
        networks = [tensor for network in content["networks"].values() for tensor in network.values()]
        moments = [v for o in content["optimizers"].values() for s in o["state"].values() for v in s.values()]
        found.append([*networks, *moments, *content["ema"].values()])
    return found


def test_evaluation_changes_no_weight_and_a_resumed_run_has_the_same_rows(images: Path, tmp_path: Path) -> None:
    without = settings(images, tmp_path / "without")
    whole, parts = (settings(images, tmp_path / name, evaluation=HeldOut(every=1)) for name in ("whole", "parts"))
    train(without, SilentProgress())
    train(whole, SilentProgress())
    with pytest.raises(KeyboardInterrupt):
        train(parts, Interrupting(after=3))
    train(parts, SilentProgress())
    plain, evaluated, resumed = states(without.output, whole.output, parts.output)
    assert len(plain) == len(evaluated) == len(resumed) > 20
    for a, b, c in zip(plain, evaluated, resumed, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(b, c)
    assert rows(whole.output) == rows(parts.output)
    assert [(row["step"], row["method"]) for row in rows(whole.output)] == [
        (str(step), method) for step in range(1, 5) for method in ("in", "kin")
    ]


def test_an_evaluation_that_was_interrupted_is_done_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = settings(images, tmp_path / "run", evaluation=HeldOut(every=2))

    def failing(*arguments: object) -> None:
        translate(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("kin_cli.training.heldout.translate", failing)
        with pytest.raises(KeyboardInterrupt):
            train(run, SilentProgress())
    assert rows(run.output) == []
    train(run, SilentProgress())
    assert [row["step"] for row in rows(run.output)] == ["2", "2", "4", "4"]
    assert not list((run.output / "evaluation").glob("table*"))


def test_metrics_are_those_of_the_translations_that_are_left(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def features(tiles: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([tile[:32, :, 1].ravel() / 255.0 for tile in tiles])

    weights = tmp_path / "inception.pth"
    torch.save(InceptionV3().state_dict(), weights)
    # the network itself takes half a second a tile, and is tested elsewhere
    monkeypatch.setattr(FeatureExtractor, "features", lambda _, tiles: features(tiles))
    evaluation = HeldOut(inception=weights, patches=5, region=Box(0, 0, 128, 192))
    run = settings(images, tmp_path / "run", evaluation=evaluation)
    train(run, SilentProgress())
    source = np.asarray(Image.open(images / "he.png"))[:, :128]
    target = PatchSource([images / "ihc.png"], run.patches, stain="target", seed=0)
    real = FeatureSums()
    real.add(features([target.draw((1 << 41) + number) for number in range(5)]))
    found = rows(run.output)
    assert [row["step"] for row in found] == ["4", "4"]
    for row in found:
        made = tifffile.imread(run.output / "evaluation" / f"he-0-{row['method']}.ome.tif")
        readers = [lambda box, image=image: image[box.slices()] for image in (made, source)]
        seams = measure_seams(readers[0], Size(128, 192), patch_px=SIDE, source=readers[1]).result()
        assert float(row["seam_ratio"]) == pytest.approx(seams.ratio_to_source, abs=1e-4)
        assert float(row["seam_excess"]) == pytest.approx(seams.excess, abs=1e-4)
        assert row["boundaries"] == "7"
        tiles = FeatureSums()
        tiles.add(features([made[y : y + SIDE, x : x + SIDE] for y in (0, 64, 128) for x in (0, 64)]))
        assert float(row["fid"]) == pytest.approx(frechet_distance(tiles, real), rel=1e-3)
        assert row["fid_tiles"] == "6"


def test_what_is_held_out_is_evaluated_where_the_tissue_is(images: Path, tmp_path: Path) -> None:
    picture = np.full((700, 300, 3), 255, np.uint8)
    picture[64:600, 30:170] = np.random.default_rng(0).integers(60, 200, (536, 140, 1), np.uint8)
    tifffile.imwrite(tmp_path / "slide.tif", picture, photometric="rgb", tile=(128, 128))
    patches = PatchSettings(
        tmp_path / "slide.tif", images / "ihc.png", patch_px=SIDE, source_region=Box(0, 0, 300, 300)
    )
    (piece,) = find_pieces(settings(images, tmp_path / "run", patches=patches, evaluation=HeldOut(every=1)))
    # y from 300 on is held out: 6 rows of patches, all 4 columns
    assert piece.region == Box(0, 316, 256, 384)
    assert largest_left_out(Size(100, 50), Box(10, 0, 70, 50)) == Box(80, 0, 20, 50)
    whole = replace(patches, source_region=None)
    (piece,) = find_pieces(settings(images, tmp_path / "run", patches=whole, evaluation=HeldOut(every=1)))
    assert piece.region == Box(0, 64, 256, 512)


def test_a_folder_is_evaluated_image_by_image(images: Path, tmp_path: Path) -> None:
    run = settings(images, tmp_path / "run", evaluation=HeldOut(slides=images, region=Box(10, 0, 128, 192)))
    train(run, SilentProgress())
    found = rows(run.output)
    assert [(row["image"], row["method"], row["boundaries"]) for row in found] == [
        (image, method, "7") for method in ("in", "kin") for image in ("he.png", "ihc.png")
    ]


@pytest.mark.parametrize(
    ("evaluation", "patch_px", "error", "match"),
    [
        (HeldOut(every=1, inception=Path("absent.pth")), 64, ModelError, "absent.pth: no such file"),
        (HeldOut(every=1), 32, UsageError, "seams cannot be measured between patches of 32 px"),
        (HeldOut(region=Box(0, 0, 999, 10)), 64, UsageError, "reaches outside the image"),
        (HeldOut(region=Box(0, 0, 63, 63)), 64, InputError, "no patch of the piece to evaluate"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_the_first_step(
    images: Path, tmp_path: Path, evaluation: HeldOut, patch_px: int, error: type[Exception], match: str
) -> None:
    patches = PatchSettings(images / "he.png", images / "ihc.png", patch_px=patch_px)
    run = settings(images, tmp_path / "run", evaluation=evaluation, patches=patches)
    with pytest.raises(error, match=match):
        train(run, SilentProgress())
    assert not (run.output / "state.pt").exists()


def test_the_command_takes_the_options_of_an_evaluation(images: Path, tmp_path: Path) -> None:
    arguments = ["cyclegan", "--source", str(images / "he.png"), "--target", str(images / "ihc.png")]
    arguments += ["-o", str(tmp_path / "run"), "--patch-size", "64", "--steps", "2", "--width", "2", "--blocks", "1"]
    arguments += ["--disc-width", "2", "--disc-layers", "1", "--device", "cpu", "--evaluate-every", "1"]
    arguments += ["--evaluation", str(images / "ihc.png"), "--evaluation-region", "0,0,128,128"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "step 2: ihc.png in: seams" in result.stderr
    assert len(rows(tmp_path / "run")) == 4
