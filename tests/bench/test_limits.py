"""The FLOP against a count by hand; limits and timings."""

from __future__ import annotations

import statistics

import pytest
import torch
from torch import nn

from kin_cli.bench.limits import Clock, Timing, count_work, measure_limits, repeated
from kin_cli.bench.run import RandomGenerator
from kin_cli.geometry import Size
from kin_cli.models.unet import UnetSpec


def flop(inputs: int, outputs: int, kernel: int, *, pixels: int) -> int:
    """Of a convolution with so many pixels of output: a multiplication and an addition for each weight."""
    return 2 * inputs * outputs * kernel**2 * pixels


@pytest.mark.parametrize("width", [4, 12])
def test_the_flop_of_a_cyclegan_generator_are_those_counted_by_hand(width: int) -> None:
    side = 64
    full, half, quarter = side**2, (side // 2) ** 2, (side // 4) ** 2
    norms = flop(3, width, 7, pixels=full)
    norms += flop(width, 2 * width, 3, pixels=half) + flop(2 * width, 4 * width, 3, pixels=quarter)
    norms += 2 * 3 * flop(4 * width, 4 * width, 3, pixels=quarter)
    # a transposed convolution uses each weight once per pixel of its input
    norms += flop(4 * width, 2 * width, 3, pixels=quarter) + flop(2 * width, width, 3, pixels=half)
    work = count_work(RandomGenerator("cyclegan", width, 3).spec, Size(side, side))
    assert work.measure == norms
    assert work.apply == norms + flop(width, 3, 7, pixels=full)


def test_the_flop_of_the_papers_generators_are_the_known_ones() -> None:
    for architecture, expected in (("cut", 510e9), ("cyclegan", 400e9), ("urust", 620e9)):
        work = count_work(RandomGenerator(architecture).spec, Size(512, 512))  # type: ignore[arg-type]
        assert work.apply == pytest.approx(expected, rel=0.01)
        assert work.largest.module.in_channels == work.largest.module.out_channels == 256
        # the residual block's, whose reflected border is one pixel
        assert work.largest.shape == (256, 130, 130)
        assert work.largest.flop == flop(256, 256, 3, pixels=128**2)


def test_a_u_net_is_counted_too() -> None:
    work = count_work(UnetSpec(width=4, downs=7), Size(128, 128))
    assert 0 < work.measure < work.apply
    assert isinstance(work.largest.module, (nn.Conv2d, nn.ConvTranspose2d))


def test_a_timing_is_the_median_of_repeats_that_last_long_enough() -> None:
    calls = []
    timing = repeated(lambda: calls.append(0), repeats=3, at_least_s=0.01)
    assert timing.repeats == 3
    assert len(calls) > 3 * 10
    assert timing.fastest <= timing.seconds <= timing.slowest
    odd = Timing.of([3.0, 1.0, 8.0])
    assert odd.seconds == statistics.median([3.0, 1.0, 8.0])
    assert odd.per(2) == Timing(1.5, 0.5, 4.0, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_limits_are_measured_in_the_dtype_of_the_run(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("kin_cli.bench.limits", fromlist=["_SIDE"])._SIDE, "cpu", 64)
    seen = []
    plain = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, out: seen.append(a.dtype) or plain(a, b, out=out))
    layer = count_work(RandomGenerator("cut", 4, 1).spec, Size(32, 32)).largest
    limits = measure_limits(layer, device=torch.device("cpu"), dtype=dtype, batch=2, clock=Clock(1, 0.0))
    assert set(seen) == {dtype}
    assert limits.product.flop_per_s == 2 * 64**3 / limits.product.timing.seconds
    assert limits.convolution.flop_per_s == layer.flop / limits.convolution.timing.seconds


def test_a_window_that_is_not_square_is_counted_by_its_area() -> None:
    spec = RandomGenerator("cyclegan", 4, 1).spec
    assert count_work(spec, Size(128, 64)).apply == 2 * count_work(spec, Size(64, 64)).apply
