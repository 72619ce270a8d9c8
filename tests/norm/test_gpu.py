"""The kernels of a GPU against the formula: in Triton's interpreter on a CPU, compiled without a card, and on a card.

The interpreter runs one program after the other, a few hundred a second, so the maps are small.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kin_cli.norm.fused import EagerOps, FieldAxis, Finish, Resize, Uniform, Values, formula
from tests.helpers.fields import varying

pytest.importorskip("triton", reason="Triton is not installed")
from kin_cli.norm import gpu
from kin_cli.norm.gpu import KernelOps, segments_of

DEVICE = "cuda" if os.environ.get("TRITON_INTERPRET") != "1" and torch.cuda.is_available() else "cpu"
needs_a_way_to_run = pytest.mark.skipif(
    DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1", reason="no GPU, and Triton was imported for one"
)
# Relative to the largest number: 1e-6 of float32; a unit in the last place of the others, two where a map is resized,
# since torch rounds in between.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
AFFINE = ("weight", "bias", "offset")


def pixels(*size: int, dtype: torch.dtype = torch.float32, scale: float = 2.0) -> Tensor:
    return (scale * torch.randn(*size) + 0.5).to(dtype).to(memory_format=torch.channels_last)


def uniform(batch: int, channels: int, *given: str) -> Uniform:
    parameters = {name: torch.randn(channels) for name in given}
    return Uniform(torch.randn(batch, channels), torch.rand(batch, channels) + 0.5, **parameters)


def assert_equal(found: Tensor, expected: Tensor, *, units: float = 1.0) -> None:
    assert found.shape == expected.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    allowed = units * TOLERANCE[found.dtype] * max(1.0, float(expected.float().abs().max()))
    torch.testing.assert_close(found.float(), expected.float(), atol=allowed, rtol=2 * TOLERANCE[found.dtype])


# one of each: shapes odd and even, channels that fill vectors and that do not, all that a kernel is specialised in
CASES: list[tuple[tuple[int, int, int, int], torch.dtype, str, bool, bool, Resize, int]] = [
    ((1, 64, 4, 6), torch.bfloat16, "uniform", True, False, "", 0),
    ((2, 24, 5, 7), torch.float32, "uniform", True, False, "", 1),
    ((8, 5, 3, 3), torch.float16, "affine", False, True, "", 1),
    ((1, 300, 2, 3), torch.float32, "affine", True, True, "", 1),  # two blocks of channels
    ((1, 3, 5, 9), torch.float32, "none", False, False, "", 3),
    ((1, 1, 4, 4), torch.float32, "uniform", True, False, "", 3),
    ((2, 8, 5, 7), torch.float32, "affine", True, False, "down", 0),
    ((1, 16, 6, 8), torch.bfloat16, "none", False, False, "down", 1),
    ((2, 8, 3, 5), torch.float32, "uniform", True, False, "up", 0),
    ((1, 16, 2, 3), torch.bfloat16, "affine", True, True, "up", 0),
    ((1, 12, 3, 2), torch.float32, "uniform", True, False, "nearest", 1),
    ((1, 7, 2, 3), torch.float16, "none", True, True, "nearest", 0),
    ((2, 24, 4, 12), torch.float32, "field", True, False, "", 1),
    ((1, 64, 3, 48), torch.bfloat16, "field affine", False, True, "", 0),
    ((1, 8, 4, 12), torch.float32, "field affine", True, True, "down", 0),
    ((1, 8, 4, 6), torch.float32, "field", True, False, "up", 1),
]


@needs_a_way_to_run
@pytest.mark.parametrize(("size", "dtype", "kind", "relu", "add", "resize", "pad"), CASES)
def test_a_kernel_equals_the_formula(
    size: tuple[int, int, int, int], dtype: torch.dtype, kind: str, relu: bool, add: bool, resize: Resize, pad: int
) -> None:
    torch.manual_seed(1)
    batch, channels, height, width = size
    x = pixels(*size, dtype=dtype)
    # a part of a larger map, as the residual of a padded block is
    residual = pixels(batch, channels, height + 2, width + 2, dtype=dtype)[:, :, 1:-1, 1:-1] if add else None
    values: Values = None
    if kind.startswith("field"):
        values = varying(batch, channels, height, width, affine="affine" in kind)
    elif kind != "none":
        values = uniform(batch, channels, *(AFFINE if kind == "affine" else ()))
    finish = Finish(relu, pad, resize=resize)
    before = x.clone()
    found = KernelOps()(
        x.to(DEVICE), _on_device(values), finish, residual=None if residual is None else residual.to(DEVICE)
    )
    assert_equal(found.cpu(), formula(x, values, finish, residual), units=2 if resize else 1)
    assert torch.equal(x, before)


def _on_device(values: Values) -> Values:
    if values is None or DEVICE == "cpu":
        return values
    if isinstance(values, Uniform):
        return Uniform(*(None if value is None else value.to(DEVICE) for value in values))
    parts = {name: getattr(values, name) for name in values._fields}
    for name, part in parts.items():
        if isinstance(part, Tensor):
            parts[name] = part.to(DEVICE)
        elif isinstance(part, FieldAxis):
            parts[name] = FieldAxis(part.lower.to(DEVICE), part.upper.to(DEVICE), part.fraction.to(DEVICE))
    return type(values)(**parts)


@needs_a_way_to_run
@pytest.mark.parametrize(
    ("size", "dtype", "correction"),
    [
        ((2, 24, 9, 7), torch.float32, 0),
        ((1, 70, 33, 31), torch.float32, 1),  # two chunks, two blocks of channels
        ((8, 5, 4, 4), torch.bfloat16, 0),
        ((1, 3, 1, 1), torch.float16, 0),
    ],
)
def test_statistics_are_torchs(size: tuple[int, int, int, int], dtype: torch.dtype, correction: int) -> None:
    torch.manual_seed(2)
    x, offset = pixels(*size, dtype=dtype) + 100, torch.randn(size[1])
    stats, scales = KernelOps().measured(x.to(DEVICE), correction=correction, eps=1e-5, offset=offset.to(DEVICE))
    var, mean = torch.var_mean(x.double(), dim=(2, 3), correction=correction)
    expected = torch.stack([mean + offset.double(), (var + 1e-5).sqrt()], dim=1)
    torch.testing.assert_close(stats.cpu().double(), expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(scales.cpu()[:, 1].double(), 1 / expected[:, 1], rtol=1e-6, atol=0)


@needs_a_way_to_run
@pytest.mark.filterwarnings("ignore:divide by zero")  # in the interpreter's arithmetic
def test_a_map_of_one_value_has_scale_zero_without_eps() -> None:
    stats, scales = KernelOps().measured(torch.full((1, 4, 3, 5), 7.0, device=DEVICE), correction=0, eps=0.0)
    assert stats.tolist() == [[[7.0] * 4, [0.0] * 4]]
    assert scales.tolist() == [[[7.0] * 4, [0.0] * 4]]


@needs_a_way_to_run
@pytest.mark.parametrize("resize", ["", "down", "up"])
def test_nan_and_infinity_stay_what_they_are(resize: Resize) -> None:
    x = pixels(1, 8, 6, 6)
    # not beside an edge, where torch weights the pixel beyond by 0, which makes NaN of infinity
    x[0, 2, 2, 2], x[0, 5, 3, 3] = float("nan"), float("inf")
    finish = Finish(relu=True, pad=1, resize=resize)
    values = uniform(1, 8)
    found = KernelOps()(x.to(DEVICE), _on_device(values), finish).cpu()
    expected = formula(x, values, finish)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.isinf(), expected.isinf())


@needs_a_way_to_run
def test_a_samples_numbers_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(3)
    ops, x = KernelOps(), pixels(8, 6, 23, 23, dtype=torch.bfloat16).to(DEVICE)
    whole, scales = ops.measured(x, correction=0, eps=1e-5)
    y = ops(x[:, :, :5], Uniform(*scales.unbind(1)), Finish(relu=True, pad=1))
    for first, last in ((0, 1), (2, 5), (7, 8)):
        stats, scales = ops.measured(x[first:last], correction=0, eps=1e-5)
        assert torch.equal(stats, whole[first:last])
        assert torch.equal(
            ops(x[first:last, :, :5], Uniform(*scales.unbind(1)), Finish(relu=True, pad=1)), y[first:last]
        )


@needs_a_way_to_run
@pytest.mark.parametrize("finish", [Finish(pad=3), Finish(resize="down")])
def test_a_map_too_small_to_reflect_is_refused_as_torch_does(finish: Finish) -> None:
    x = torch.zeros(1, 2, 3 if finish.pad else 1, 8, device=DEVICE)
    with pytest.raises(RuntimeError, match=r"[Pp]adding"):
        KernelOps()(x, None, finish)
    with pytest.raises(RuntimeError, match=r"[Pp]adding"):
        EagerOps()(x, None, finish)


@needs_a_way_to_run
def test_bytes_to_numbers_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 8, 32, 1).expand(2, 8, 32, 3).contiguous().to(DEVICE)
    ops = KernelOps()
    x = ops.to_input(levels, channels=8, dtype=torch.float32)
    assert x.shape == (2, 8, 8, 32)
    assert not x[:, 3:].any()
    torch.testing.assert_close(x[:, :3].permute(0, 2, 3, 1), levels.float() * (2 / 255) - 1, atol=1e-7, rtol=0)
    back, finite = ops.to_bytes(x[:, :3], 8)
    # to 255 the paper's code adds half a level
    assert (back.int() - levels.int()).abs().max() <= 1
    assert finite.tolist() == [[[True] * 4]] * 2
    broken = x[:, :3].clone()
    broken[1, 2, 3, 9], broken[0, 0, 0, 31], broken[0, 1, 0, 0] = float("nan"), float("-inf"), 3.0
    back, finite = ops.to_bytes(broken, 8)
    assert finite.tolist() == [[[True, True, True, False]], [[True, False, True, True]]]
    assert (back[1, 3, 9, 2], back[0, 0, 31, 0], back[0, 0, 0, 1]) == (0, 0, 255)


def test_segments_cover_the_padded_columns_and_keep_their_cells() -> None:
    cols = varying(1, 1, 16, 48, affine=False).cols
    cells = [(left, right) for run, left, right in cols.runs for _ in range(run.start, run.stop)]
    source = F.pad(torch.arange(48.0)[None, None], (3, 3), mode="reflect")[0, 0].int().tolist()
    covered = []
    for first, last, left, right in segments_of(cols, 3, 10):
        assert 0 < last - first <= 10
        assert {cells[source[col]] for col in range(first, last)} == {(left, right)}
        covered += range(first, last)
    assert covered == list(range(48 + 6))


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    assert gpu.why_not() == "there is no C compiler, such as gcc"
    told: list[str] = []
    assert gpu.checked(torch.device("cpu"), told=told.append) is None
    assert told == ["cpu: no kernels of its own, which is slower: there is no C compiler, such as gcc"]


@needs_a_way_to_run
def test_kernels_that_compute_nonsense_or_fail_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    assert gpu.checked(torch.device(DEVICE), told=told.append) is not None
    monkeypatch.setattr(KernelOps, "__call__", lambda self, x, *rest: F.pad(x, (1, 1, 1, 1)))
    assert gpu.checked(torch.device(DEVICE), told=told.append) is None

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler here\nand a long story")

    monkeypatch.setattr(KernelOps, "measured", broken)
    assert gpu.checked(torch.device(DEVICE), told=told.append) is None
    assert [line.partition("slower: ")[2] for line in told] == [
        "they compute other numbers than torch", "no compiler here and a long story"
    ]  # fmt: skip


def test_what_is_missing_for_the_kernels_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "gcc")
    assert gpu.why_not() is None
    monkeypatch.setattr(gpu.kernels().triton, "__version__", "3.2.0+git35c6c7c6")
    assert gpu.why_not() == "Triton 3.2.0+git35c6c7c6 is too old, 3.3 is needed"
    monkeypatch.setattr(gpu.kernels().triton, "__version__", "3.10.0")
    assert gpu.why_not() is None
    with monkeypatch.context() as patch:
        patch.setattr(gpu.sysconfig, "get_path", lambda *_: str(tmp_path))
        assert gpu.why_not() == "Python.h is missing, which is in python3-dev"
    monkeypatch.delenv("CC")
    monkeypatch.setattr(gpu.shutil, "which", lambda _name: None)
    assert gpu.why_not() == "there is no C compiler, such as gcc"


def test_compiled_code_lies_where_only_the_user_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.tempfile, "tempdir", str(tmp_path))
    own = gpu._own_folder()
    assert own.parent == tmp_path
    assert own == gpu._own_folder()
    own.chmod(0o777)
    assert gpu._own_folder() != own


def test_compiled_kernels_are_short_and_read_sixteen_bytes_at_once(tmp_path: Path) -> None:
    """For sm_80 and sm_90, without a card: instructions for 8 numbers, of those that are read if the map shrinks."""
    tool = Path(__file__).parents[1] / "helpers" / "compile_kernels.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = str(Path(__file__).parents[2])
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": root}
    run = subprocess.run([sys.executable, tool], capture_output=True, text=True, env=environment)
    if run.returncode == 77:
        pytest.skip(run.stderr.strip())
    assert run.returncode == 0, run.stderr
    for kernel in json.loads(run.stdout):
        assert kernel["per_8"] <= 300, kernel
        assert kernel["calls"] == 0, kernel
        assert kernel["vector_stores"] == kernel["stores"] > 0, kernel
        assert kernel["vector_loads"] >= kernel["least_loads"], kernel
