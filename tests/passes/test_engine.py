"""Engines and pools of engines: memory that runs out, several devices, budgets."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

from kin_cli.errors import DeviceError, LostDeviceError
from kin_cli.geometry import Box, Size
from kin_cli.models.architectures import build
from kin_cli.models.checkpoint import Generator, bundled_model, load_generator, save_generator
from kin_cli.models.resnet import ResnetSpec
from kin_cli.norm.fused import EagerOps
from kin_cli.norm.lookup import Lookup
from kin_cli.passes import engine as engine_module
from kin_cli.passes.devices import Precision
from kin_cli.passes.engine import Engine, EnginePool
from kin_cli.progress import SilentProgress
from kin_cli.slide.synthetic import SampleSlide
from tests.helpers.processes import kin
from tests.helpers.slides import write_slide

SIDE = 64


@pytest.fixture(scope="module")
def generator(tiny_generator: Path) -> Generator:
    return load_generator(tiny_generator)


@pytest.fixture(scope="module")
def images() -> list[NDArray[np.uint8]]:
    return list(np.random.default_rng(0).integers(0, 255, (5, SIDE, SIDE, 3), np.uint8))


def engine_of(generator: Generator) -> Engine:
    return Engine(generator, device=torch.device("cpu"), precision="fp32")


def short_of_memory(engine: Engine, monkeypatch: pytest.MonkeyPatch, *, most: int) -> list[str]:
    """Make a device of the engine that holds ``most`` images at once; returns what the engine tells."""
    told: list[str] = []
    engine.note, engine._batch_limit = told.append, 1 << 30
    for name in ("measure", "apply"):
        whole = getattr(engine._network, name)

        def limited(x: torch.Tensor, *rest: object, whole: object = whole) -> torch.Tensor:
            if len(x) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return whole(x, *rest)  # type: ignore[operator, no-any-return]

        monkeypatch.setattr(engine._network, name, limited)
    return told


def test_out_of_memory_halves_the_batch_and_goes_on(
    generator: Generator, images: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = engine_of(generator).measure(images)
    engine = engine_of(generator)
    told = short_of_memory(engine, monkeypatch, most=2)
    stats = engine.measure(images)
    np.testing.assert_allclose(stats, expected, rtol=1e-4, atol=1e-5)
    assert told == ["cpu: out of memory for 5 windows at once, going on with 2"]
    cells = np.ascontiguousarray(np.stack([expected[:, 0], 1 / expected[:, 1]], axis=1)[:, None, None])
    lookup = Lookup(SIDE, 0, "nearest")
    for one, other in zip(
        engine.apply(images, cells, lookup), engine_of(generator).apply(images, cells, lookup), strict=True
    ):
        assert np.abs(one.astype(int) - other).max() <= 1
    assert len(told) == 1


def test_memory_for_not_even_one_window_is_one_line(
    generator: Generator, images: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(generator)
    short_of_memory(engine, monkeypatch, most=0)
    with pytest.raises(DeviceError, match="out of memory for a single window"):
        engine.measure(images)


def test_a_pool_keeps_the_order_and_uses_all_its_engines(generator: Generator, images: list[NDArray[np.uint8]]) -> None:
    engines = [engine_of(generator), engine_of(generator)]
    used = set()

    def work(engine: Engine, number: int) -> NDArray[np.float32]:
        used.add(id(engine))
        return engine.measure([images[number % 5]])[0]

    found = list(EnginePool(engines).run(work, range(40), progress=SilentProgress()))
    expected = engines[0].measure(images)
    for number, stats in enumerate(found):
        np.testing.assert_array_equal(stats, expected[number % 5])
    assert used == {id(engine) for engine in engines}


def test_a_pool_raises_what_an_engine_raises(generator: Generator) -> None:
    def work(_: Engine, number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    def numbers() -> Iterator[int]:
        yield from range(100)

    found = EnginePool([engine_of(generator)]).run(work, numbers(), progress=SilentProgress())
    with pytest.raises(ValueError, match="three"):
        list(found)


@pytest.mark.parametrize("options", [(), ("--seamless",), ("--method", "tin")], ids=lambda o: " ".join(o) or "plain")
def test_two_devices_give_the_bytes_of_one(tiny_generator: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    slide = write_slide(tmp_path / "slide.tif", width=700, height=520)
    written = []
    for devices in ("cpu", "cpu,cpu"):
        output = tmp_path / devices / "out.ome.tif"
        output.parent.mkdir()
        run = kin(
            "translate", slide, "-m", tiny_generator, "-o", output, "--patch-size", "128", "--tissue", "none",
            "--devices", devices, *options,
        )  # fmt: skip
        assert run.code == 0, run.err
        written.append(output.read_bytes())
    assert written[0] == written[1]


class Imitation(EagerOps):
    """What the kernels do, in torch: no folding, and the convolutions' biases added in the fused operations."""

    folds, adds_bias = False, True

    def to_input(
        self, levels: torch.Tensor, *, channels: int, dtype: torch.dtype, black: float, white: float
    ) -> torch.Tensor:
        x = levels.permute(0, 3, 1, 2).to(dtype) * ((white - black) / 255) + black
        return torch.cat([x, x.new_zeros(len(x), channels - 3, *x.shape[2:])], dim=1)

    def to_bytes(self, y: torch.Tensor, patch_px: int) -> tuple[torch.Tensor, torch.Tensor]:
        return engine_module._to_bytes(y), engine_module._finite_patches(y, patch_px)


def passes_of_batches(
    generator: Generator, images: list[NDArray[np.uint8]], lookup: Lookup, batch: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Both passes as on a GPU, imitated on the CPU: batches filled up, convolutions that take one image at a time."""
    with torch.backends.mkldnn.flags(enabled=False):
        engine = Engine(generator, device=torch.device("cpu"), precision="fp32", kernels=True, batch=batch)
        engine._batch_limit = batch
        assert engine._kernels is not None
        assert not engine._kernels.folds
        groups = [slice(first, first + batch) for first in range(0, len(images), batch)]
        stats = np.concatenate([engine.measure(images[group]) for group in groups])
        table = cells_around(stats, len(lookup.span(1)))
        outputs = [output for group in groups for output in engine.apply(images[group], table[group], lookup)]
    return stats, np.stack(outputs)


def cells_around(stats: NDArray[np.float32], cells: int) -> NDArray[np.float32]:
    """Cells (B, cells, cells, 2, ΣC) around windows of one patch, no two alike."""
    inverse = np.stack([stats[:, 0], 1 / stats[:, 1]], axis=1)[:, None, None]
    factors = np.linspace(0.8, 1.2, cells**2, dtype=np.float32).reshape(1, cells, cells, 1, 1)
    return np.ascontiguousarray(inverse * (factors if cells > 1 else 1))


@pytest.fixture(scope="module")
def antialiased(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("models") / "cut.safetensors"
    spec = ResnetSpec(width=2, blocks=2, antialias_down=True, antialias_up=True)
    save_generator(build(spec), file, spec=spec)
    return load_generator(file)


@pytest.mark.parametrize("halo", [0, 16], ids=["plain", "halo"])
@pytest.mark.parametrize("batch", [3, 8])
def test_the_way_of_a_gpu_gives_the_same_bytes_for_any_batch(
    antialiased: Generator, batch: int, halo: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "checked", lambda *_, **__: Imitation())
    side, lookup = 32 + 2 * halo, Lookup(32, halo, "bilinear" if halo else "nearest")
    images = list(np.random.default_rng(1).integers(0, 255, (10, side, side, 3), np.uint8))
    one = passes_of_batches(antialiased, images, lookup, 1)
    found = passes_of_batches(antialiased, images, lookup, batch)
    np.testing.assert_array_equal(found[0], one[0])
    np.testing.assert_array_equal(found[1], one[1])
    plain = engine_of(antialiased)
    np.testing.assert_allclose(found[0], plain.measure(images), rtol=1e-4, atol=1e-5)
    expected = np.stack(plain.apply(images, cells_around(found[0], len(lookup.span(1))), lookup))
    assert np.abs(found[1].astype(int) - expected).max() <= 1


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="a GPU is there: see the tests for one")
def test_the_kernels_themselves_give_the_same_bytes_for_any_batch(antialiased: Generator) -> None:
    images = list(np.random.default_rng(1).integers(0, 255, (4, 16, 16, 3), np.uint8))
    one, other = (passes_of_batches(antialiased, images, Lookup(16, 0, "nearest"), batch) for batch in (1, 3))
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])
    np.testing.assert_allclose(one[0], engine_of(antialiased).measure(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("pass_", "most"), [("measure", 100), ("apply", 60)])
def test_operators_launched_per_batch(pass_: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At nine blocks; with torch's operators alone it was 750 to 850, 7 to 9 ms of one core."""
    launched: list[str] = []

    class Counted(Imitation):
        def _counted(self, name: str, number: int, work: Callable[[], Any]) -> Any:
            launched.extend([name] * number)
            with torch._C._DisableTorchDispatch():
                return work()

        def measured(self, *args: Any, **kwargs: Any) -> Any:
            return self._counted("moments", 2, lambda: super(Counted, self).measured(*args, **kwargs))

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self._counted("sweep", 1, lambda: super(Counted, self).__call__(*args, **kwargs))

        def to_input(self, *args: Any, **kwargs: Any) -> Any:
            return self._counted("input", 1, lambda: super(Counted, self).to_input(*args, **kwargs))

        def to_bytes(self, *args: Any, **kwargs: Any) -> Any:
            return self._counted("bytes", 3, lambda: super(Counted, self).to_bytes(*args, **kwargs))

    views = "select slice unbind permute view alias lift_fresh to resolve_conj resolve_neg expand detach unsqueeze"
    no_kernel = {*views.split(), "empty"}

    class Launches(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func.overloadpacket.__name__ not in no_kernel:
                launched.append(str(func))
            return result

    monkeypatch.setattr(engine_module, "checked", lambda *_, **__: Counted())
    spec = ResnetSpec(width=2, blocks=9, antialias_down=True, antialias_up=True)
    save_generator(build(spec), tmp_path / "g.safetensors", spec=spec)
    engine = Engine(
        load_generator(tmp_path / "g.safetensors"), device=torch.device("cpu"), precision="fp32", kernels=True
    )
    engine._batch_limit = 8
    images = list(np.random.default_rng(1).integers(0, 255, (8, 64, 64, 3), np.uint8))
    table = cells_around(engine.measure(images), 1)
    launched.clear()
    with Launches():
        _ = engine.measure(images) if pass_ == "measure" else engine.apply(images, table, Lookup(64, 0, "nearest"))
    assert 24 < len(launched) <= most, Counter(launched)


PLACES = ("copy in", "sweep", "copy out")


def failing(
    engine: Engine, place: str, error: Callable[[], BaseException], monkeypatch: pytest.MonkeyPatch, *, most: int = 0
) -> list[str]:
    """Let a place on the way of a batch raise an error if it has more than ``most`` images; returns what is told."""
    told: list[str] = []
    engine.note, engine._batch_limit = told.append, 1 << 30
    transfer = engine._transfer

    def checked(work: Callable[..., Any], count: Callable[..., int]) -> Callable[..., Any]:
        def checking(*args: Any, **kwargs: Any) -> Any:
            if count(*args) > most:
                raise error()
            return work(*args, **kwargs)

        return checking

    if place == "copy in":
        monkeypatch.setattr(transfer, "send", checked(transfer.send, len))
    elif place == "copy out":  # asynchronous: the error comes when the result is waited for
        fetch = transfer.fetch
        monkeypatch.setattr(transfer, "fetch", lambda made: checked(fetch(made), lambda: len(made)))
    else:
        monkeypatch.setattr(EagerOps, "__call__", checked(EagerOps.__call__, lambda _self, x, *_: len(x)))
    return told


def run_pass(engine: Engine, pass_: str, images: list[NDArray[np.uint8]]) -> NDArray[Any]:
    if pass_ == "measure":
        return engine.measure(images)
    table = np.tile(np.array([0.1, 1.2], np.float32)[:, None], (len(images), 1, 1, 1, engine.channels))
    return np.stack(engine.apply(images, table, Lookup(SIDE, 0, "nearest")))


@pytest.mark.parametrize("pass_", ["measure", "apply"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported"),  # of pinned memory
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        MemoryError(),
    ],
    ids=["torch", "driver", "cuDNN", "host"],
)
def test_memory_that_runs_out_anywhere_halves_the_batch_once(
    generator: Generator,
    images: list[NDArray[np.uint8]],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    place: str,
    pass_: str,
) -> None:
    expected = run_pass(engine_of(generator), pass_, images)
    engine = engine_of(generator)
    told = failing(engine, place, lambda: error, monkeypatch, most=2)
    for _ in range(2):
        np.testing.assert_allclose(run_pass(engine, pass_, images), expected, rtol=1e-4, atol=1e-5)
    assert told == ["cpu: out of memory for 5 windows at once, going on with 2"]
    failing(engine, place, lambda: error, monkeypatch)
    with pytest.raises(DeviceError, match="cpu: out of memory for a single window") as caught:
        run_pass(engine, pass_, images)
    assert not isinstance(caught.value, LostDeviceError)


@pytest.mark.parametrize("pass_", ["measure", "apply"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be\nCompile with `X`"),
            "cpu failed: CUDA error: unspecified launch failure",
        ),
        (
            getattr(torch, "AcceleratorError", type("AcceleratorError", (RuntimeError,), {}))("the device is lost"),
            "cpu failed: the device is lost",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "cpu failed: cuDNN error: CUDNN_STATUS_EXEC"),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access"), "cpu failed: Triton Error [CUDA]: an illegal"),
    ],
    ids=["driver", "accelerator", "cuDNN", "Triton"],
)
def test_a_device_that_fails_anywhere_is_one_line(
    generator: Generator,
    images: list[NDArray[np.uint8]],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    line: str,
    place: str,
    pass_: str,
) -> None:
    engine = engine_of(generator)
    told = failing(engine, place, lambda: error, monkeypatch)
    with pytest.raises(LostDeviceError) as caught:
        run_pass(engine, pass_, images)
    assert caught.value.message.startswith(line)
    assert len(str(caught.value).splitlines()) == 1
    assert not told, "nothing is tried again on it"


def test_another_error_stays_what_it_is(
    generator: Generator, images: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in PLACES:
        engine = engine_of(generator)
        failing(engine, place, lambda: RuntimeError("shapes do not fit"), monkeypatch)
        with pytest.raises(RuntimeError, match="shapes do not fit"):
            engine.measure(images)


GPU_SIDE = 256


@pytest.fixture(scope="module")
def patches() -> list[NDArray[np.uint8]]:
    """Four patches of made-up tissue."""
    slide = SampleSlide(Size(4096, 4096), seed=1)
    return [slide.read(0, Box(1000 + GPU_SIDE * number, 900, GPU_SIDE, GPU_SIDE)) for number in range(4)]


def both_passes(
    device: str,
    precision: Precision,
    patches: list[NDArray[np.uint8]],
    *,
    kernels: bool = True,
    batch: int | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    generator = load_generator(bundled_model())
    engine = Engine(
        generator, device=torch.device(device), precision=precision, kernels=kernels and device == "cuda", batch=batch
    )
    stats = engine.measure(patches)
    cells = np.stack([stats[:, 0], 1 / stats[:, 1]], axis=1)[:, None, None]
    return stats, np.stack(engine.apply(patches, np.ascontiguousarray(cells), Lookup(GPU_SIDE, 0, "nearest")))


@pytest.mark.gpu
@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_pixels_are_those_of_the_cpu(patches: list[NDArray[np.uint8]], precision: Precision, kernels: bool) -> None:
    """A GPU's bf16 may be as far from float32 as a CPU's: how far depends on the generator and on the tissue."""
    _, expected = both_passes("cpu", "fp32", patches)
    _, found = both_passes("cuda", precision, patches, kernels=kernels)
    difference = np.abs(found.astype(int) - expected)
    if precision == "fp32":
        assert np.quantile(difference, 0.999) <= 1
        return
    _, rounded = both_passes("cpu", precision, patches)
    allowed = np.abs(rounded.astype(int) - expected)
    for part in (0.5, 0.9, 0.99):
        assert np.quantile(difference, part) <= 1.5 * np.quantile(allowed, part) + 1


@pytest.mark.gpu
def test_the_same_bytes_whatever_else_is_in_the_batch(patches: list[NDArray[np.uint8]]) -> None:
    one, other = (both_passes("cuda", "bf16", patches, batch=4) for _ in range(2))
    some = both_passes("cuda", "bf16", patches[:3], batch=4)
    for number in range(2):
        np.testing.assert_array_equal(one[number], other[number])
        np.testing.assert_array_equal(one[number][:3], some[number])


@pytest.mark.gpu
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
