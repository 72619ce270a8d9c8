"""What happens between two convolutions, against the formulas written down, and those against torch's own layers."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from kin_cli.norm import fused as ops
from kin_cli.norm.fused import (
    Affine,
    CompiledOps,
    EagerOps,
    FieldAxis,
    Finish,
    Varying,
    affine_formula,
    varying_formula,
)
from kin_cli.norm.lookup import Lookup

PATCH, HALO = 16, 8


def axis(features: int, patches: int) -> FieldAxis:
    taps = Lookup(PATCH, HALO, "bilinear").taps(features, patches)
    return FieldAxis(*(torch.from_numpy(values) for values in taps))


def varying(batch: int, channels: int, height: int, width: int, *, bias: bool) -> Varying:
    lookup = Lookup(PATCH, HALO, "bilinear")
    stats = torch.rand(batch, len(lookup.span(1)), len(lookup.span(2)), 2, channels) + 0.5
    return Varying(stats, axis(height, 1), axis(width, 2), torch.randn(channels) if bias else None)


def written_down(x: Tensor, values: Affine | Varying | None, finish: Finish, residual: Tensor | None) -> Tensor:
    relu, pad = finish.relu, finish.pad
    if isinstance(values, Varying):
        axes = tuple(t for a in (values.rows, values.cols) for t in (a.lower, a.upper, a.fraction))
        return varying_formula(x, values.stats, axes, values.bias, residual, relu=relu, pad=pad)
    return affine_formula(x, values, residual, relu=relu, pad=pad)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([(16, 24), (32, 48), (8, 12)]),
    st.sampled_from(["none", "affine", "field", "field and bias"]),
    st.booleans(),
    st.sampled_from([0, 1, 3]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_strips_equal_the_formula(
    size: tuple[int, int], kind: str, relu: bool, pad: int, add: bool, in_place: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, *size).to(dtype=dtype, memory_format=torch.channels_last)
    residual = torch.randn_like(x) if add else None
    values: Affine | Varying | None = None
    if kind == "affine":
        values = Affine(torch.rand(2, 5), torch.randn(2, 5))
    elif kind.startswith("field"):
        values = varying(2, 5, *size, bias="bias" in kind)
    expected = written_down(x, values, Finish(relu, pad), residual)
    before = x.clone()
    # strips of a few rows, as a large map is cut
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "_STRIP_BYTES", 3 * 2 * 5 * size[1] * 4)
        found = EagerOps()(x, values, Finish(relu, pad, in_place), residual=residual)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    if not in_place:
        assert torch.equal(x, before)


def test_the_formula_is_torchs_layers_one_after_the_other() -> None:
    torch.manual_seed(0)
    x, residual = torch.randn(2, 2, 6, 12, 10).unbind(0)
    mean, var = EagerOps().moments(x, 0)
    scale = (var + 1e-5).rsqrt()
    layers = nn.Sequential(nn.ReLU(), nn.ReflectionPad2d(3))
    expected = layers(F.instance_norm(x) + residual)
    found = affine_formula(x, Affine(scale, -mean * scale), residual, relu=True, pad=3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("correction", [0, 1])
def test_moments_are_torchs(correction: int) -> None:
    x = (torch.randn(3, 4, 50, 30) * 3 + 100).to(memory_format=torch.channels_last)
    mean, var = EagerOps().moments(x, correction)
    expected_var, expected_mean = torch.var_mean(x.double(), dim=(2, 3), correction=correction)
    torch.testing.assert_close(mean, expected_mean.float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(var, expected_var.float(), rtol=1e-5, atol=0)


def test_a_map_too_small_to_reflect_is_refused_as_torch_does() -> None:
    x = torch.zeros(1, 2, 3, 8)
    with pytest.raises(RuntimeError, match=r"[Pp]adding"):
        nn.ReflectionPad2d(3)(x)
    with pytest.raises(RuntimeError, match=r"[Pp]adding"):
        EagerOps()(x, None, Finish(pad=3))


@pytest.mark.slow
def test_compiled_kernels_equal_the_formula() -> None:
    torch.manual_seed(0)
    told: list[str] = []
    compiled = CompiledOps(told.append)
    x = torch.randn(2, 5, 16, 24).to(memory_format=torch.channels_last)
    for values in (Affine(torch.rand(2, 5), torch.randn(2, 5)), varying(2, 5, 16, 24, bias=True)):
        found = compiled(x, values, Finish(relu=True, pad=1), residual=x)
        torch.testing.assert_close(found, written_down(x, values, Finish(relu=True, pad=1), x), atol=1e-5, rtol=1e-4)
    for one, other in zip(compiled.moments(x, 1), EagerOps().moments(x, 1), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert not told


def test_without_a_compiler_work_goes_on_and_the_user_is_told_once() -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler here\nand a long story")

    told: list[str] = []
    compiled = CompiledOps(told.append)
    compiled._affine = compiled._moments = broken  # type: ignore[assignment]
    x = torch.randn(1, 3, 8, 8)
    for _ in range(2):
        found = compiled(x, None, Finish(relu=True))
        assert torch.equal(found, x.relu())
        assert torch.equal(compiled.moments(x, 0)[0], EagerOps().moments(x, 0)[0])
    assert told == ["no compiler here"]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_freed_maps_are_not_fetched_from_the_kernel_again() -> None:
    code = """
import resource, torch
from concurrent.futures import ThreadPoolExecutor
from kin_cli.passes.devices import keep_freed_memory
keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def make(times):
    for _ in range(times):
        for mib in (25, 50, 100):
            torch.ones(mib << 18)  # freed at once
with ThreadPoolExecutor(2) as readers:
    list(readers.map(lambda size: bytearray(size), [1 << 20] * 8))
make(8)
with ThreadPoolExecutor(1) as engine:
    engine.submit(make, 8).result()
    before = faults()
    engine.submit(make, 4).result()
print(faults() - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 1000  # of 179,200 pages
