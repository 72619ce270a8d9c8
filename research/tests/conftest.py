"""Makes the scripts importable, and lends these tests what those of kin_cli have."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import pytest_collection_modifyitems, tiny_generator  # noqa: F401  # a hook and a fixture

RESEARCH = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(RESEARCH))
# so that scripts in processes of their own use this checkout's kin_cli
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(RESEARCH.parent), os.environ.get("PYTHONPATH")]))


def pytest_addoption(parser: pytest.Parser) -> None:
    with suppress(ValueError):  # added by tests/conftest.py, if those tests run, too
        parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")
