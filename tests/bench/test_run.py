"""``kin bench``: the FLOP against a count by hand, how the numbers hang together, the table and the options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kin_cli.bench.limits import count_work
from kin_cli.bench.run import BenchSettings, RandomGenerator
from kin_cli.bench.table import table
from kin_cli.errors import UsageError
from kin_cli.geometry import Size
from kin_cli.models.architectures import build
from tests.helpers.processes import Run, kin
from tests.helpers.slides import write_slide

TINY = ("--patch-size", "64", "--quick", "--device", "cpu", "-j", "1")


@pytest.mark.parametrize("architecture", ["cut", "cyclegan", "urust"])
def test_a_random_generator_has_the_architecture_it_is_asked_for(architecture: Any) -> None:
    random = RandomGenerator(architecture, 4, 2)
    with torch.device("meta"):
        assert build(random.spec)
    assert random.spec.architecture.endswith(architecture)


def test_every_stage_is_measured_and_its_rates_agree(measured: dict[str, Any]) -> None:
    names = [stage["name"] for stage in measured["stages"]]
    assert names == ["read", "measure", "apply", "encode", "levels"]
    assert measured["plan"]["patches"] == 18 * 5
    for stage in [*measured["stages"], *(measured[name] for name in ("end_to_end", "plain_loop", "plain_loop_twice"))]:
        assert stage["fastest"] <= stage["seconds_per_patch"] <= stage["slowest"]
        assert stage["patches_per_s"] * stage["seconds_per_patch"] == pytest.approx(1)
        assert stage["mpixel_per_s"] == pytest.approx(stage["patches_per_s"] * 64**2 / 1e6)
        assert stage["repeats"] == 1


def test_the_shares_are_those_of_the_limits(measured: dict[str, Any]) -> None:
    work = count_work(RandomGenerator("cut", 2, 1).spec, Size(64, 64))
    for name, expected in (("measure", work.measure), ("apply", work.apply)):
        stage = next(stage for stage in measured["stages"] if stage["name"] == name)
        rate = expected * stage["patches_per_s"] / 1e12
        assert stage["tflop_per_s"] == pytest.approx(rate)
        for fraction, limit in (("fraction_of_product", "product"), ("fraction_of_convolution", "convolution")):
            assert stage[fraction] == pytest.approx(rate / measured["limits"][limit]["tflop_per_s"])
    plain, whole = measured["plain_loop"]["patches_per_s"], measured["end_to_end"]["patches_per_s"]
    assert measured["speedup"] == pytest.approx(whole / plain)
    assert measured["speedup_twice"] == pytest.approx(whole / measured["plain_loop_twice"]["patches_per_s"])


def test_the_machine_and_the_generator_are_told(measured: dict[str, Any]) -> None:
    assert measured["generator"] == {
        "architecture": "resnet-cut",
        "width": 2,
        "blocks": 1,
        "parameters": sum(p.numel() for p in build(RandomGenerator("cut", 2, 1).spec).parameters()),
    }
    assert measured["machine"]["torch_threads"] == torch.get_num_threads()
    assert measured["memory"]["peak_rss_bytes"] > 50 << 20
    assert measured["memory"]["peak_device_bytes"] is None
    assert measured["torch"] == torch.__version__


def test_a_slide_and_a_model_of_ones_own(tmp_path: Path, tiny_generator: Path) -> None:
    slide = write_slide(tmp_path / "slide.tif", width=300, height=200)
    run: Run = kin("bench", "-m", tiny_generator, "--slide", slide, "--size", "128", *TINY, "--json")
    assert run.code == 0, run.err
    found = json.loads(run.out)
    assert found["plan"]["patches"] == 4
    assert found["settings"]["slide"] == "slide.tif"
    assert found["settings"]["model"] == tiny_generator.name
    assert {path.name for path in tmp_path.iterdir()} == {"slide.tif"}


def test_the_seamless_windows_are_compared_with_plain_ones() -> None:
    options = ("--width", "2", "--blocks", "1", "--size", "128", "--patch-size", "64", "--repeats", "1", "-j", "1")
    run = kin("bench", *options, "--device", "cpu")
    assert run.code == 0, run.err
    assert "seamless windows:" in run.out


def test_a_smaller_measured_middle_is_less_work() -> None:
    options = ("--architecture", "cyclegan", "--width", "2", "--blocks", "1", "--size", "128", "--measure-size", "32")
    run = kin("bench", *options, *TINY, "--json")
    assert run.code == 0, run.err
    found = json.loads(run.out)
    work = count_work(RandomGenerator("cyclegan", 2, 1).spec, Size(32, 32))
    stage = next(stage for stage in found["stages"] if stage["name"] == "measure")
    assert stage["gflop_per_patch"] == work.measure / 1e9
    assert found["settings"]["measured_px"] == 32
    assert "of which pass 1 sees the middle 32" in table(found)


def test_no_repeats_are_refused() -> None:
    with pytest.raises(UsageError):
        BenchSettings(RandomGenerator(), repeats=0)


@pytest.mark.gpu
def test_the_benchmark_runs_on_it() -> None:
    run = kin("bench", "--width", "8", "--blocks", "1", "--size", "1024", "--device", "cuda", "--quick", "--json")
    assert run.code == 0, run.err
    assert json.loads(run.out)["memory"]["peak_device_bytes"] > 0
