"""The stages of a benchmark do the work of a translation, and their times are per patch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kin_cli.bench.limits import Clock, count_work
from kin_cli.bench.stages import Bench, plain_loops
from kin_cli.geometry import Box, Size
from kin_cli.models.checkpoint import load_generator
from kin_cli.plan import Plan, make_plan
from tests.helpers.pictures import smooth_picture
from tests.helpers.translations import PATCH, settings

CLOCK = Clock(1, 0.0)


@pytest.fixture(scope="module")
def plan(tiny_generator: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plan]:
    """Of 3 × 4 patches."""
    folder = tmp_path_factory.mktemp("photo")
    Image.fromarray(smooth_picture(4 * PATCH, 3 * PATCH)).save(folder / "photo.png")
    plan = make_plan(settings(folder / "photo.png", tiny_generator, folder / "o.tif", workers=1))
    with plan.view.slide:
        yield plan


def test_stages_work_on_the_slides_own_patches(plan: Plan, tmp_path: Path) -> None:
    bench = Bench(plan, None, tmp_path, CLOCK)
    assert len(bench.patches) == 12
    for cell, pixels in zip(plan.grid, bench.patches, strict=True):
        np.testing.assert_array_equal(pixels, plan.view.read(plan.grid.box(cell)))
    work = count_work(load_generator(plan.settings.model).spec, Size(PATCH, PATCH))
    assert (bench.measure().flop, bench.apply().flop) == (work.measure, work.apply)
    assert bench.apply_seamless() is None
    assert bench.pyramid() is None, "an image smaller than 1024 px has no reduced levels"


def test_every_stage_takes_time(plan: Plan, tmp_path: Path) -> None:
    stages = [measure() for measure in Bench(plan, None, tmp_path, CLOCK).stages()]
    found = {stage.name: stage.timing for stage in stages if stage is not None}
    assert found.keys() == {"read", "measure", "apply", "encode"}
    assert all(timing.seconds > 0 for timing in found.values())


def test_the_plain_loop_is_the_original_generator(plan: Plan, tmp_path: Path) -> None:
    import torch

    plain_loops(plan, tmp_path, CLOCK)
    written = sorted(tmp_path.glob("*.png"))
    assert written
    module = load_generator(plan.settings.model).module
    for file in written:
        row, col = map(int, file.stem.split("_"))
        pixels = plan.view.read(Box(col * PATCH, row * PATCH, PATCH, PATCH))
        with torch.inference_mode():
            made = module(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1)[0]
        expected = ((made.permute(1, 2, 0) + 1) * 127.5).numpy()
        assert np.abs(np.asarray(Image.open(file)) - expected).max() <= 1
