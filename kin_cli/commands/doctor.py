"""``kin doctor``: what a bug report needs to know about this machine."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import cloup

from kin_cli import __version__
from kin_cli.commands.info import table_text
from kin_cli.commands.parameters import examples, json_option
from kin_cli.commands.streams import json_text, show
from kin_cli.concurrency import available_cores
from kin_cli.store.files import bytes_text

_PACKAGES = (
    *("torch", "triton", "numpy", "scipy", "safetensors", "click", "cloup", "tqdm"),
    *("openslide-python", "openslide-bin", "tifffile", "imagecodecs", "pyvips", "pyvips-binary", "pillow"),
)
_EXTRAS = ("matplotlib", "SimpleITK", "torchstain", "statsmodels")
_LEAST_TEMPORARY_BYTES = 2 << 30


@cloup.command(
    short_help="Describe this machine for a bug report.",
    epilog=examples("kin doctor", "kin doctor --json > doctor.json"),
)
@json_option
def doctor(as_json: bool) -> int:
    """Print versions, devices, memory, cores and image libraries, and what is missing; nothing is changed.

    Paste the text into a bug report. The exit code is 1 if kin cannot work here.
    """
    facts: dict[str, Any] = {**_software(), **_machine(), **_devices()}
    problems = [*_problems(facts)]
    if as_json:
        show(json_text({**facts, "problems": problems}))
    else:
        rows = [(name, value) for name, value in facts.items() if not isinstance(value, dict)]
        rows += [(name, text) for part in facts.values() if isinstance(part, dict) for name, text in part.items()]
        show(table_text([_row(name, value) for name, value in rows]))
        show("\n".join(f"problem: {problem}" for problem in problems) or "no problem found")
    return 1 if problems else 0


def _row(name: str, value: object) -> tuple[str, str]:
    if name.endswith("_bytes") and isinstance(value, int):
        return name.removesuffix("_bytes") + " space", bytes_text(value) + " free"
    return name, str(value)


def _software() -> dict[str, Any]:
    """Versions of kin, Python and its packages; None for one that is not installed."""
    return {
        "kin": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {name: _version(name) or "missing" for name in _PACKAGES},
        "extras": {name: _version(name) or "not installed" for name in _EXTRAS},
        "libraries": dict(_libraries()),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _libraries() -> Iterator[tuple[str, str]]:
    """Versions of the C libraries behind the packages, or why one does not load."""
    try:
        from kin_cli.slide.wsi import library_version

        yield "OpenSlide", library_version()
    except Exception as error:
        yield "OpenSlide", f"does not load: {error}"
    try:
        import pyvips

        yield "libvips", ".".join(str(pyvips.version(part)) for part in range(3))
    except Exception as error:
        yield "libvips", f"does not load: {error}"


def _machine() -> dict[str, Any]:
    """Cores, memory and temporary space, as this process may use them; settings in environment variables."""
    folder = tempfile.gettempdir()
    cores = available_cores()
    return {
        "cores": f"{cores} of {os.cpu_count()}",
        "memory": bytes_text(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        "temporary folder": folder,
        "temporary_bytes": shutil.disk_usage(folder).free,
        "C compiler (for GPU kernels)": os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or "missing",
        "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith(("KIN_", "OMP_"))},
    }


def _devices() -> dict[str, Any]:
    """The devices that torch finds, with their memory."""
    try:
        import torch

        found = {}
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            capability = f"{properties.major}.{properties.minor}"
            found[f"cuda:{index}"] = (
                f"{properties.name}, {bytes_text(properties.total_memory)}, capability {capability}"
            )
        cuda = torch.version.cuda or "none: this build of torch is for CPUs"
        return {"CUDA of torch": cuda, "torch threads": torch.get_num_threads(), "devices": {"cpu": "yes", **found}}
    except Exception as error:
        return {"devices": {"torch": f"does not load: {error}"}}


def _problems(facts: dict[str, Any]) -> Iterator[str]:
    missing = [name for name, found in facts["packages"].items() if found == "missing" and name != "triton"]
    optional = {"openslide-bin", "pyvips-binary"}  # the system's libraries do as well
    for name in missing:
        if name not in optional:
            yield f"the package {name} is missing: pip install {name}"
    for name, text in {**facts["libraries"], **facts["devices"]}.items():
        if str(text).startswith("does not load"):
            yield f"{name} {text}"
    if facts["temporary_bytes"] < _LEAST_TEMPORARY_BYTES:
        free = bytes_text(facts["temporary_bytes"])
        yield f"only {free} free in {facts['temporary folder']}: set TMPDIR to a folder with more space"
    if any(name.startswith("cuda") for name in facts["devices"]) and facts["C compiler (for GPU kernels)"] == "missing":
        yield "no C compiler: GPU kernels need one (apt install gcc)"
