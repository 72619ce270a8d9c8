"""Options, markers and fixtures that all tests share."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kin_cli.geometry import Pixels
from tests.helpers.shared import shared_folder

# As the command does it, and before anything imports torch: waiting threads must not spin on cores that others need.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if not Path("/dev/nvidiactl").exists():  # without a GPU its kernels run on the CPU, if Triton is imported this way
    os.environ.setdefault("TRITON_INTERPRET", "1")

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_SHARED_FIXTURES = {"shared_data", "shared_reference"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of real slides ``data``; skip slow ones without ``--slow`` and those of a GPU without one."""
    for item in items:
        if _SHARED_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.data)
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes; run with --slow"))
        if "gpu" in item.keywords and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real slides."""
    return shared_folder("data")


@pytest.fixture(scope="session")
def shared_reference() -> Path:
    """The folder of outputs of the authors' own code."""
    return shared_folder("reference")


@pytest.fixture(scope="session")
def tiny_generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the official CycleGAN layout with random weights: width 4, two blocks."""
    from tests.helpers.generators import write_generator

    return write_generator(tmp_path_factory.mktemp("models") / "latest_net_G.pth")


@pytest.fixture(scope="session")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide file of 520×1040 px, which has 9 × 5 patches of 128 px; nobody may write to it."""
    from tests.helpers.slides import write_slide

    return write_slide(tmp_path_factory.mktemp("slides") / "slide.tif")


@pytest.fixture(scope="session")
def wanted(slide: Path, tiny_generator: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its translation by the tiny generator with the options ``SMALL``, in one go."""
    from tests.helpers.translations import uninterrupted

    return uninterrupted(slide, tiny_generator, tmp_path_factory.mktemp("wanted"))


@pytest.fixture(scope="session")
def tissue(shared_data: Path) -> Pixels:
    """1024×1024 px of a real slide."""
    from kin_cli.geometry import Box
    from kin_cli.slide.open import open_slide

    with open_slide(shared_data / "CMU-1-Small-Region.svs") as slide:
        return slide.read(0, Box(400, 900, 1024, 1024))


@pytest.fixture(scope="session")
def spoiled(tissue: Pixels) -> Pixels:
    """The same with one tile of 128 px much too dark, in row 3 and column 5."""
    pixels = tissue.copy()
    pixels[3 * 128 : 4 * 128, 5 * 128 : 6 * 128] //= 2
    return pixels


@pytest.fixture(scope="session")
def measured() -> dict[str, Any]:
    """What ``kin bench --json`` says about 18 × 5 patches of 64 px, by a generator of width 2."""
    from tests.helpers.processes import succeed

    generator = ("--architecture", "cut", "--width", "2", "--blocks", "1", "--size", "1100x300")
    done = succeed("bench", *generator, "--patch-size", "64", "--quick", "--device", "cpu", "-j", "1", "--json")
    return json.loads(done)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A Chromium that playwright drives."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pages are tested through playwright")
    program = os.environ.get("KIN_CHROMIUM") or next(filter(None, map(shutil.which, _BROWSERS)), None)
    if program is None:
        pytest.skip("no Chromium is installed (apt-get install chromium, or name one by KIN_CHROMIUM)")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=program)
        yield running
        running.close()
