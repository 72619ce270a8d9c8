"""The package's face for Python: every public name is there, and importing it loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

import kin_cli


def test_every_public_name_is_what_its_module_defines() -> None:
    assert {"translate", "open_slide", "load_generator", "exchange_norms", "Kernel", "KinError"} <= set(dir(kin_cli))
    for name in kin_cli.__all__:
        found = getattr(kin_cli, name)
        if name != "__version__":
            assert found.__name__ == name
            assert found.__module__.startswith("kin_cli.")
            assert getattr(kin_cli, name) is found


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        kin_cli.nothing  # noqa: B018


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, kin_cli; dir(kin_cli); print([m for m in ('torch', 'numpy', 'click') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
