"""A guide says how much brown belongs where: its loss, the patches it comes with, and a run that follows it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from kin_cli.errors import InputError, UsageError
from kin_cli.geometry import Box
from kin_cli.metrics.dab import dab_density
from kin_cli.models.checkpoint import load_generator
from kin_cli.progress import SilentProgress
from kin_cli.training.counterstain import haematoxylin_target, stain_densities
from kin_cli.training.framework import PatchBatch, distance_to_painting
from kin_cli.training.guide import aligned_target, dab_densities, known, misplaced_brown, stained_target
from kin_cli.training.patches import PatchSource
from kin_cli.training.run import train
from kin_cli.training.settings import CutLosses, PatchSettings
from tests.helpers.training_runs import assert_same_state, draw_images, rows, settings

BROWN, WHITE, BLACK = (70, 40, 20), (251, 251, 251), (0, 0, 0)
PURPLE, PINK = (80, 50, 140), (225, 160, 205)


def image(colour: tuple[int, int, int], side: int = 128) -> Tensor:
    levels = torch.tensor(colour, dtype=torch.float32)[None, :, None, None].expand(1, 3, side, side)
    return levels.clone() / 127.5 - 1.0


def noise(side: int, seed: int) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2.0 - 1.0


def test_densities_are_those_of_the_metric() -> None:
    pixels = np.random.default_rng(0).integers(1, 256, (1, 16, 16, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    expected = np.maximum(dab_density(pixels, white=251.0) * math.log(10.0), 0.0)
    np.testing.assert_allclose(dab_densities(images)[:, 0].numpy(), expected, atol=2e-4)


@pytest.mark.parametrize("side", [64, 96, 128, 256])
def test_misplaced_brown_is_a_loop_over_areas(side: int) -> None:
    made, guide = noise(side, 1), noise(side, 2)
    guide[:, :, : side // 3] = -1.0
    differences = []
    for picture in range(2):
        found, wanted = (dab_densities(v)[picture, 0] * (guide[picture].amax(0) > -0.9).float() for v in (made, guide))
        for y in range(-32, side - 31, 32):
            for x in range(-32, side - 31, 32):
                part = (slice(max(0, y), y + 64), slice(max(0, x), x + 64))
                differences.append(float(found[part].mean() - wanted[part].mean()) ** 2)
    assert misplaced_brown(made, guide).item() == pytest.approx(sum(differences) / len(differences), rel=1e-4)
    assert misplaced_brown(guide, guide).item() == 0.0


def test_brown_may_move_within_an_area_and_must_not_leave_it() -> None:
    guide = image(WHITE)
    guide[..., :64, :64] = image(BROWN, 64)
    shuffled, moved = guide.clone(), image(WHITE)
    corner = guide[..., :64, :64].flatten(2)
    corner[..., ::2] = image(BROWN, 64).flatten(2)[..., ::2]
    shuffled[..., :64, :64] = corner.flip(-1).unflatten(-1, (64, 64))
    moved[..., 64:, 64:] = image(BROWN, 64)
    assert misplaced_brown(shuffled, guide) < 1e-9
    assert misplaced_brown(moved, guide) > 0.5


def test_the_unknown_is_neither_judged_nor_taught() -> None:
    guide, made = image(WHITE), image((200, 170, 140)).requires_grad_()
    guide[..., 64:] = image(BLACK)[..., 64:]
    assert known(guide).mean() == 0.5
    misplaced_brown(made, guide).backward()  # type: ignore[no-untyped-call]
    assert made.grad is not None
    assert made.grad[..., 64:].abs().max() == 0.0
    assert made.grad[..., :64].abs().max() > 0.0


def test_the_painted_target_has_the_guides_brown_in_cytoplasm_and_blue_nuclei() -> None:
    source = image(PINK)
    source[..., 24:40, 24:40] = image(PURPLE, 16)
    source[..., 88:104, 88:104] = image(PURPLE, 16)
    assert stain_densities(source)[0, 0, 32, 32] > 0.9
    guide = image(WHITE)
    guide[..., :64] = image(BROWN)[..., :64]
    painted = stained_target(source, guide)
    dab = dab_densities(painted)[0, 0]
    assert dab[96, 10] > 1.0  # far from the border between brown and white
    assert dab[10, 120] < 0.2
    red, _, blue = painted[0, :, 96, 96]
    assert blue > red
    assert dab[32, 32] < 0.6 * dab[10, 32]


@pytest.mark.parametrize("target", [stained_target, aligned_target])
def test_without_brown_the_target_is_the_counterstain(target: Callable[[Tensor, Tensor], Tensor]) -> None:
    source = noise(128, 3)
    painted = target(source, image(WHITE).expand(2, -1, -1, -1))
    assert torch.allclose(painted, haematoxylin_target(source), atol=1e-6)


def test_an_aligned_guide_is_painted_to_the_pixel() -> None:
    source, guide = image(PINK), image(WHITE)
    source[..., 24:40, 24:40] = image(PURPLE, 16)
    source[..., 88:104, 88:104] = image(PURPLE, 16)
    source[..., 60:68] = image(WHITE)[..., 60:68]  # a gap
    guide[..., :50] = image(BROWN)[..., :50]
    guide[..., 110:, :] = -1.0  # unknown
    dab = dab_densities(aligned_target(source, guide))[0, 0]
    dense = dab_densities(image(BROWN))[0, 0, 0, 0]
    assert dab[60, 49] > 0.4 * dense
    assert dab[60, 50] < 0.2
    assert dab[32, 32] < 0.7 * dab[60, 32]
    assert dab[60, 64] < 0.1
    assert dab[120, 10] < 0.2
    nucleus = aligned_target(source, guide)[0, :, 96, 96]
    assert nucleus[2] > nucleus[0]


@pytest.mark.parametrize("region", [None, Box(10, 20, 150, 120)])
def test_guide_and_patch_are_of_one_place_and_turn_together(tmp_path: Path, region: Box | None) -> None:
    y, x = np.mgrid[:180, :200]
    picture = np.stack([x, y, (x * y) % 251], axis=-1).astype(np.uint8)
    for name in ("a.png", "b.png"):
        Image.fromarray(picture).save(tmp_path / name)
    given = PatchSettings(
        tmp_path / "a.png",
        tmp_path / "a.png",
        patch_px=32,
        rotate=True,
        scale=0.3,
        source_region=region,
        guide=tmp_path / "b.png",
    )
    pool = PatchSource([given.source], given, stain="source", seed=5)
    without = PatchSource([given.source], replace(given, guide=None), stain="source", seed=5)
    for number in range(20):
        patch, guide = pool.draw_guided(number)
        assert guide is not None
        np.testing.assert_array_equal(guide, patch)
        np.testing.assert_array_equal(without.draw(number), patch)
    assert without.draw_guided(0)[1] is None
    assert PatchSource([given.target], given, stain="target", seed=5).draw_guided(0)[1] is None


def test_a_guide_elsewhere_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (100, 80), PINK).save(tmp_path / "a.png")
    Image.new("RGB", (100, 81), WHITE).save(tmp_path / "b.png")
    given = PatchSettings(tmp_path / "a.png", tmp_path / "a.png", patch_px=32, guide=tmp_path / "b.png")
    with pytest.raises(InputError, match=r"b\.png: 100×81 px instead of the 100×80 px"):
        PatchSource([given.source], given, stain="source", seed=0)
    with pytest.raises(UsageError, match="one source slide, not on 2"):
        PatchSource([given.source] * 2, given, stain="source", seed=0)


def test_there_is_nothing_to_align_without_a_guide(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is none"):
        PatchSettings(tmp_path, tmp_path, guide_aligned=True)


def test_a_run_puts_the_brown_where_its_guide_has_it(tmp_path: Path) -> None:
    images = draw_images(tmp_path)
    picture = images / "he" / "0.png"
    pixels, guide = np.array(Image.open(picture)), np.full((96, 96, 3), 250, np.uint8)
    pixels[:, :48] = pixels[:, :48] // 2 + 20  # denser tissue on the left
    guide[:, :48] = BROWN
    Image.fromarray(pixels).save(picture)
    Image.fromarray(guide).save(tmp_path / "guide.png")
    run = settings(images, tmp_path / "run")
    run = replace(
        run,
        patches=replace(run.patches, source=picture, guide=tmp_path / "guide.png", patch_px=64),
        losses=CutLosses(locations=16, projection=16, guided=10.0, painted=0.5),
        network=replace(run.network, width=8),
        schedule=replace(run.schedule, steps=60, warm_steps=20, lr=2e-3, decay_fraction=0.0, ema=0.5),
    )
    generator = load_generator(train(run, SilentProgress())).module
    log = rows(run.output)
    assert [bool(row["warm"]) for row in log] == [True] * 20 + [False] * 40
    assert all(float(row["guided"]) > 0 for row in log[20:])
    assert np.mean([float(row["painted"]) for row in log[-8:]]) < 0.5 * float(log[0]["warm"])  # half the weight at most
    source = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1.0
    with torch.inference_mode():
        dab = dab_densities(generator(source))[0, 0]
    assert dab[:, :40].mean() > dab[:, 56:].mean() + 0.5


def test_an_aligned_guide_is_regressed_in_l1(tmp_path: Path) -> None:
    source, guide = noise(64, 1), noise(64, 2)
    guide[:, :, :20] = -1.0
    made = noise(64, 3)
    wanted = aligned_target(source, guide)
    expected = sum(
        float((made[b, c, y, x] - wanted[b, c, y, x]).abs()) * float(guide[b, :, y, x].max() > -0.9)
        for b in range(2)
        for c in range(3)
        for y in range(64)
        for x in range(64)
    ) / (2 * 3 * 64 * 64)
    found = distance_to_painting(made, PatchBatch(source, made, guide=guide, aligned=True))
    assert found.item() == pytest.approx(expected, rel=1e-4)

    images = draw_images(tmp_path)
    Image.new("RGB", (96, 96), BROWN).save(tmp_path / "guide.png")
    run = settings(images, tmp_path / "run")
    patches = replace(
        run.patches, source=images / "he" / "0.png", guide=tmp_path / "guide.png", guide_aligned=True, patch_px=64
    )
    train(replace(run, patches=patches, schedule=replace(run.schedule, steps=30, warm_steps=30)), SilentProgress())
    log = [float(row["warm"]) for row in rows(run.output)]
    assert np.mean(log[-5:]) < 0.7 * np.mean(log[:5])


def test_a_resumed_run_with_a_guide_is_an_uninterrupted_one(tmp_path: Path) -> None:
    images = draw_images(tmp_path)
    Image.new("RGB", (96, 96), BROWN).save(tmp_path / "guide.png")

    def run(name: str, steps: int) -> Path:
        made = settings(images, tmp_path / name)
        patches = replace(made.patches, source=images / "he" / "0.png", guide=tmp_path / "guide.png")
        schedule = replace(made.schedule, steps=steps, decay_fraction=0.0, accumulate=2, warm_steps=1)
        train(replace(made, patches=patches, schedule=schedule), SilentProgress())
        return made.output

    run("halves", 2)
    assert_same_state(run("halves", 4), run("whole", 4))
