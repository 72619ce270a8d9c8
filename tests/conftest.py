"""Fixtures shared by all tests: real slides and the authors' reference outputs, where a checkout has them beside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# As the command does it, and before anything imports torch: waiting threads must not spin on cores that others need.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="takes minutes; run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


def _shared_folder(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"no folder shared/{name} beside this checkout (real slides and reference outputs live there)")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real slides."""
    return _shared_folder("data")


@pytest.fixture(scope="session")
def shared_reference() -> Path:
    """The folder of outputs of the authors' own code."""
    return _shared_folder("reference")


@pytest.fixture(scope="session")
def tiny_generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the official CycleGAN layout with random weights: width 4, two blocks."""
    import torch

    from kin_cli.models.resnet import ResnetGenerator, ResnetSpec

    torch.manual_seed(0)
    spec = ResnetSpec(width=4, blocks=2, antialias_down=False, antialias_up=False)
    file = tmp_path_factory.mktemp("models") / "latest_net_G.pth"
    torch.save(ResnetGenerator(spec).state_dict(), file)
    return file
