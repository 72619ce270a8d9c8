"""What happens between two convolutions, against the formulas written down, and those against torch's own layers."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from kin_cli.norm import fused as ops
from kin_cli.norm.fused import EagerOps, Finish, Resize, Uniform, Values, formula
from tests.helpers.fields import varying


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([(16, 24), (32, 48), (8, 12)]),
    st.sampled_from(["none", "affine", "field", "field and bias"]),
    st.booleans(),
    st.sampled_from([0, 1, 3]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["", "down", "up", "nearest"]),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_strips_equal_the_formula(
    size: tuple[int, int],
    kind: str,
    relu: bool,
    pad: int,
    add: bool,
    in_place: bool,
    resize: Resize,
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, *size).to(dtype=dtype, memory_format=torch.channels_last)
    residual = torch.randn_like(x) if add else None
    values: Values = None
    if kind == "affine":
        values = Uniform(torch.randn(2, 5), torch.rand(2, 5), torch.rand(5), torch.randn(5), torch.randn(5))
    elif kind.startswith("field"):
        values = varying(2, 5, *size, affine="bias" in kind)
    finish = Finish(relu, pad, in_place, resize)
    expected = formula(x, values, finish, residual)
    before = x.clone()
    # strips of a few rows, as a large map is cut
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "_STRIP_BYTES", 3 * 2 * 5 * size[1] * 4)
        found = EagerOps()(x, values, finish, residual=residual)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2  # a resized map is rounded twice
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
    found = formula(x, Uniform(mean, scale), Finish(relu=True, pad=3), residual)
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
