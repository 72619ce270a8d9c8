"""Engines and fleets: memory that runs out, several devices, budgets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kin_cli import plan as budget
from kin_cli.errors import DeviceError
from kin_cli.models.checkpoint import Generator, load_generator
from kin_cli.norm.lookup import Lookup
from kin_cli.passes.devices import resolve_devices
from kin_cli.passes.engine import Engine, EnginePool
from kin_cli.progress import SilentProgress
from tests.helpers.batch_slides import kin, write_slide

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
    engine.tell, engine._most = told.append, 1 << 30
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


def test_a_fleet_keeps_the_order_and_uses_all_its_engines(
    generator: Generator, images: list[NDArray[np.uint8]]
) -> None:
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


def test_a_fleet_raises_what_an_engine_raises(generator: Generator) -> None:
    def work(_: Engine, number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    def numbers() -> Iterator[int]:
        yield from range(100)

    found = EnginePool([engine_of(generator)]).run(work, numbers(), progress=SilentProgress())
    with pytest.raises(ValueError, match="three"):
        list(found)


@pytest.mark.parametrize("options", [(), ("--seamless"), ("--method", "tin")], ids=lambda o: " ".join(o) or "plain")
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


@pytest.mark.parametrize(
    ("names", "what"), [("cpu,tpu", "'tpu'"), ("cpu,", "''"), ("cuda:99", "'cuda:99'"), ("cuda:all", "'cuda")]
)
def test_devices_that_are_not_there_are_named(names: str, what: str) -> None:
    if names == "cuda:all" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceError, match=what):
        resolve_devices(names)


def test_batches_fit_what_is_free(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    need = budget.activation_bytes(generator, 512, "bf16")
    cuda = torch.device("cuda")
    for free, expected in ((80 << 30, 8), (round(3.2 * need / 0.7), 3), (need // 10, 1)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 80 << 30))
        assert budget.auto_batch(generator, 512, device=cuda, precision="bf16") == expected
    assert budget.auto_batch(generator, 512, device=torch.device("cpu"), precision="fp32") == 1
