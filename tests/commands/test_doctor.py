"""What kin doctor finds, against the libraries' own words."""

from __future__ import annotations

import json
import shutil

import openslide
import pytest
import pyvips
import torch

from kin_cli.commands import doctor as module
from tests.helpers.processes import kin


def test_the_facts_are_those_of_the_libraries() -> None:
    run = kin("doctor", "--json")
    facts = json.loads(run.out)
    assert (run.code, facts["problems"]) == (0, [])
    assert facts["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]  # a wheel may not name its build
    assert facts["libraries"]["OpenSlide"] == openslide.__library_version__
    assert facts["libraries"]["libvips"] == ".".join(str(pyvips.version(part)) for part in range(3))
    assert len(facts["devices"]) == 1 + torch.cuda.device_count()
    assert kin("doctor").out.endswith("no problem found\n")


def test_what_is_missing_is_a_problem_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = module._version
    monkeypatch.setattr(module, "_version", lambda name: None if name == "tifffile" else versions(name))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1 << 20))  # type: ignore[attr-defined]
    run = kin("doctor")
    assert run.code == 1
    assert "problem: the package tifffile is missing: pip install tifffile" in run.out
    assert "problem: only 1.00 MiB free" in run.out
