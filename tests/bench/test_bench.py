"""``kin bench``: the FLOP against a count by hand, how the numbers hang together, the table and the options."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from kin_cli.bench.limits import Clock, Timing, count_work, measure_limits, repeated
from kin_cli.bench.run import BenchSettings, RandomGenerator
from kin_cli.bench.table import seamless_ratio, table
from kin_cli.errors import UsageError
from kin_cli.geometry import Size
from kin_cli.models.architectures import build
from kin_cli.models.unet import UnetSpec
from tests.helpers.batch_slides import Run, kin, write_slide

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
TINY = ("--patch-size", "64", "--quick", "--device", "cpu", "-j", "1")


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


@pytest.mark.parametrize("architecture", ["cut", "cyclegan", "urust"])
def test_a_random_generator_has_the_architecture_it_is_asked_for(architecture: Any) -> None:
    random = RandomGenerator(architecture, 4, 2)
    with torch.device("meta"):
        assert build(random.spec)
    assert random.spec.architecture.endswith(architecture)


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


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    options = ("--architecture", "cut", "--width", "2", "--blocks", "1", "--size", "1100x300", "--json")
    run = kin("bench", *options, *TINY)
    assert run.code == 0, run.err
    return json.loads(run.out)


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


def test_the_table_shows_every_stage(measured: dict[str, Any]) -> None:
    lines = table(measured).splitlines()
    for name in ("read", "measure", "apply", "encode", "levels", "end to end", "plain loop", "plain loop, twice"):
        line = next(line for line in lines if line.startswith(name))
        assert len(line.split()) >= 3
    apply = next(stage for stage in measured["stages"] if stage["name"] == "apply")
    line = next(line for line in lines if line.startswith("apply"))
    assert f"{100 * apply['share_of_product']:.0f} %" in line
    assert any(f"{measured['speedup']:.2f} times the plain loop" in line for line in lines)
    for load, said in ((0.0, False), (99.0, True), (None, False)):
        told = table({**measured, "machine": {**measured["machine"], "load_before": load}})
        assert ("the machine was busy" in told) == said


def test_the_results_become_tables_and_a_picture(measured: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    (tmp_path / "one.json").write_text(json.dumps(measured))
    full = {**measured, "settings": {**measured["settings"], "quick": False}}
    (tmp_path / "two.json").write_text(json.dumps(full))
    (tmp_path / "failed.json").write_text("")
    done = subprocess.run([sys.executable, SCRIPTS / "report_bench.py", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [row[1].strip() for row in rows] == ["run", "one", "two"]
    assert len({len(row) for row in rows}) == 1
    assert "failed.json: no JSON" in done.stderr
    assert Image.open(tmp_path / "stages.png").size[0] > 500


@pytest.mark.slow
def test_the_script_for_a_gpu_in_rehearsal(tmp_path: Path) -> None:
    small = {"WIDTH": "2", "BLOCKS": "1", "SIZE": "1024", "SMALL": "512", "SIDES": "3072,4096", "BATCHES": "1"}
    variables = {"DEVICE": "cpu", "PRECISION": "fp32", "RESULTS": str(tmp_path), "PYTHON": sys.executable, **small}
    done = subprocess.run([SCRIPTS / "gpu.sh"], capture_output=True, text=True, env=os.environ | variables)
    (folder,) = tmp_path.iterdir()
    assert done.returncode == 0, (folder / "summary.txt").read_text() + done.stderr
    names = {file.name for file in folder.iterdir()}
    assert {
        "machine.txt",
        "cut.json",
        "cyclegan.json",
        "profile.txt",
        "memory.txt",
        "tables.txt",
        "stages.png",
    } <= names
    assert not [name for name in names if name.endswith(".err")]


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


def test_the_seamless_ratio_is_that_of_both_passes() -> None:
    seconds = {"measure": 3.0, "apply": 1.0, "apply, seamless": 2.0}
    stages = [{"name": name, "seconds_per_patch": value} for name, value in seconds.items()]
    assert seamless_ratio({"stages": stages}) == 1.25
    assert seamless_ratio({"stages": stages[:2]}) is None


def test_a_window_that_is_not_square_is_counted_by_its_area() -> None:
    spec = RandomGenerator("cyclegan", 4, 1).spec
    assert count_work(spec, Size(128, 64)).apply == 2 * count_work(spec, Size(64, 64)).apply


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--model", "m.pth", "--width", "8"), "--model and --width"),
        (("--width", "0"), "width 0"),
        (("--device", "cuda:99"), "cuda:99"),
    ],
)
def test_bad_options_are_one_line(options: tuple[str, ...], word: str) -> None:
    run = kin("bench", *options)
    assert run.code != 0
    assert word in run.err.strip().splitlines()[-1]


def test_no_repeats_are_refused() -> None:
    with pytest.raises(UsageError):
        BenchSettings(RandomGenerator(), repeats=0)
