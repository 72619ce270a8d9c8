"""Settings check themselves: presets, names beside the output, and what makes no sense."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kin_cli.errors import UsageError
from kin_cli.norm.kernel import Kernel
from kin_cli.settings import (
    ComputeSettings,
    NormSettings,
    OutputSettings,
    Settings,
    SourceSettings,
    default_output,
)

ENDINGS = [".ome.tif", ".ome.tiff", ".tif", ".tiff", ".png", ".jpg", ".jpeg", ".OME.TIF", ".PNG"]


@pytest.mark.parametrize(
    ("method", "kernel", "interpolation"),
    [("in", "1", "nearest"), ("kin", "gaussian:7", "bilinear"), ("dn", "1", "bilinear")],
)
def test_methods_are_presets(method: str, kernel: str, interpolation: str) -> None:
    norm = NormSettings(method=method)  # type: ignore[arg-type]
    assert (str(norm.effective_kernel), norm.effective_interpolation) == (kernel, interpolation)
    same = NormSettings(method, Kernel.parse(kernel), interpolation)  # type: ignore[arg-type]
    assert (same.effective_kernel, same.effective_interpolation) == (norm.effective_kernel, interpolation)


@pytest.mark.parametrize(
    "options",
    [
        {"patch_px": 0},
        {"patch_px": 30},
        {"patch_px": 64, "window_px": 96},
        {"halo_px": -1},
        {"correction": 2},
        {"eps": -1e-5},
        {"eps": float("nan")},
        {"thumbnail": Path("t.png")},
        {"method": "tin", "kernel": Kernel.parse("constant:3")},
        {"method": "in", "kernel": Kernel.parse("constant:3")},
        {"method": "dn", "interpolation": "nearest"},
        {"measure_px": 100, "patch_px": 512},
        {"measure_px": 256, "method": "in"},
    ],
    ids=str,
)
def test_normalizations_that_make_no_sense(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        NormSettings(**options)  # type: ignore[arg-type]


@given(st.text("aZ0 ._-", min_size=1, max_size=12), st.sampled_from(ENDINGS))
def test_all_files_of_one_output_share_its_name(stem: str, ending: str) -> None:
    output = OutputSettings(Path("folder") / f"{stem}{ending}")
    names = (output.record_path.name, output.report_path.name)
    assert names == (f"{stem}{ending}.json", f"{stem}{ending}.report.html")
    assert {output.record_path.parent, output.report_path.parent} == {Path("folder")}
    assert output.flat == ending.lower().endswith(("png", "jpg", "jpeg"))


@pytest.mark.parametrize(
    ("slide", "output"),
    [
        ("a.svs", "a.kin.ome.tif"),
        ("a.b.ndpi", "a.b.kin.ome.tif"),
        ("a.ome.tif", "a.kin.ome.tif"),
        ("A.TIFF", "A.kin.ome.tif"),
        ("no_ending", "no_ending.kin.ome.tif"),
    ],
)
def test_the_default_output_never_is_the_slide(slide: str, output: str) -> None:
    assert default_output(Path("in") / slide) == Path("in") / output


@pytest.mark.parametrize("name", ["a.bmp", "a", "tif", "a.tif.gz"])
def test_outputs_of_unknown_kinds(name: str) -> None:
    with pytest.raises(UsageError, match="no known ending"):
        OutputSettings(Path(name))


def test_the_rest_that_makes_no_sense() -> None:
    for mpp in (0.0, -1.0, 1e-4, 2e4, float("nan")):
        with pytest.raises(UsageError, match="is not within"):
            SourceSettings(Path("a.svs"), mpp=mpp)
    for options in ({"workers": 0}, {"batch_size": -1}):
        with pytest.raises(UsageError, match="at least 1"):
            ComputeSettings(**options)
    parts = (SourceSettings(Path("a.svs"), on_read_error="fill"), Path("m.pth"), OutputSettings(Path("o.tif")))
    with pytest.raises(UsageError, match="exclude each other"):
        Settings(*parts, table=Path("t"))
