"""Options, markers and fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helpers.shared import shared_folder

# As the command does it, and before anything imports torch: waiting threads must not spin on cores that others need.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

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
