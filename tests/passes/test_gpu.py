"""What only a GPU can show; run by ``pytest -m gpu`` and by ``benchmarks/gpu.sh``. Skipped without one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kin_cli.geometry import Box, Size
from kin_cli.models.checkpoint import bundled_model, load_generator
from kin_cli.norm.lookup import Lookup
from kin_cli.passes.devices import Precision
from kin_cli.passes.engine import Engine
from kin_cli.slide.synthetic import SampleSlide
from tests.helpers.batch_slides import kin, write_slide

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SIDE = 256


@pytest.fixture(scope="module")
def patches() -> list[NDArray[np.uint8]]:
    """Four patches of made-up tissue."""
    slide = SampleSlide(Size(4096, 4096), seed=1)
    return [slide.read(0, Box(1000 + SIDE * number, 900, SIDE, SIDE)) for number in range(4)]


def both_passes(
    device: str, precision: Precision, patches: list[NDArray[np.uint8]]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    generator = load_generator(bundled_model())
    engine = Engine(generator, device=torch.device(device), precision=precision)
    stats = engine.measure(patches)
    cells = np.stack([stats[:, 0], 1 / stats[:, 1]], axis=1)[:, None, None]
    return stats, np.stack(engine.apply(patches, np.ascontiguousarray(cells), Lookup(SIDE, 0, "nearest")))


@pytest.mark.parametrize(("precision", "median", "tail"), [("fp32", 0, 1), ("bf16", 0, 3)])
def test_pixels_are_those_of_the_cpu(
    patches: list[NDArray[np.uint8]], precision: Precision, median: int, tail: int
) -> None:
    _, expected = both_passes("cpu", "fp32", patches)
    _, found = both_passes("cuda", precision, patches)
    difference = np.abs(found.astype(int) - expected)
    assert np.median(difference) <= median
    assert np.quantile(difference, 0.999) <= tail


def test_the_same_batch_gives_the_same_bytes(patches: list[NDArray[np.uint8]]) -> None:
    one, other = (both_passes("cuda", "bf16", patches) for _ in range(2))
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


def test_device_memory_does_not_grow_with_the_slide(tmp_path: Path, tiny_generator: Path) -> None:
    peaks = []
    for side in (512, 2048):
        slide = write_slide(tmp_path / f"{side}.tif", width=side, height=side)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        options = ("--patch-size", "128", "--tissue", "none", "--device", "cuda", "--json")
        run = kin("translate", slide, "-m", tiny_generator, *options)
        assert run.code == 0, run.err
        peaks.append(json.loads(run.out)["peak_device_bytes"])
    assert 0 < peaks[1] <= 1.05 * peaks[0]


def test_the_benchmark_runs_on_it() -> None:
    run = kin("bench", "--width", "8", "--blocks", "1", "--size", "1024", "--device", "cuda", "--quick", "--json")
    assert run.code == 0, run.err
    assert json.loads(run.out)["memory"]["peak_device_bytes"] > 0
