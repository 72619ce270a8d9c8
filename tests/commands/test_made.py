"""Commands take from a finished file how it was made, and say what contradicts it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from kin_cli.slide.open import open_slide
from tests.helpers.pictures import speckled_ramps
from tests.helpers.processes import kin, succeed

_APERIO = "Aperio Image Library v12.0.1\n700x600 (128x128) JPEG/RGB Q=70|AppMag = 20|MPP = 0.5000"
_SMALL = ("--patch-size", 64, "--tissue", "none", "--method", "in", "-j", 1)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide scanned at 20× and 0.5 µm/px, with a second level."""
    path, pixels = tmp_path_factory.mktemp("slide") / "slide.svs", speckled_ramps(704, 640)
    with tifffile.TiffWriter(path) as writer:
        for picture in (pixels, pixels[::2, ::2]):
            writer.write(picture, description=_APERIO, metadata=None, tile=(128, 128), photometric="rgb")
    return path


@pytest.fixture(scope="module")
def translated(slide: Path, tiny_generator: Path) -> dict[str, Path]:
    """Its translations: a region, the second level, and resampled."""
    ways = {
        "region.ome.tif": ("--region", "70,30,512,448"),
        "level.ome.tif": ("--level", 1),
        "level.tif": ("--level", 1),
        "mpp.ome.tif": ("--mpp", 0.8, "--source-mpp", 0.4, "--region", "10,20,320,256"),
    }
    for name, options in ways.items():
        succeed("translate", slide, "-m", tiny_generator, "-o", slide.with_name(name), *_SMALL, *options)
    return {name: slide.with_name(name) for name in ways}


def seams(*options: object) -> tuple[dict[str, object], str]:
    done = kin("seams", *options, "--tissue", "none", "--json")
    assert done.code == 0, done.err
    return json.loads(done.out), done.err


@pytest.mark.parametrize(
    ("name", "explicit"),
    [
        ("region.ome.tif", ("--source-level", 0, "--source-region", "70,30,512,448")),
        ("level.ome.tif", ("--source-level", 1)),
    ],
)
def test_seams_are_those_of_the_explicit_options(
    slide: Path, translated: dict[str, Path], name: str, explicit: Sequence[object]
) -> None:
    told, said = seams(translated[name], "--source", slide)
    asked, _ = seams(translated[name], "--source", slide, "--patch-size", 64, *explicit)
    assert told == asked
    assert told["patch_px"] == 64
    assert ".tif: " not in said


def test_a_resampled_source_is_resampled_again(slide: Path, translated: dict[str, Path]) -> None:
    told, said = seams(translated["mpp.ome.tif"], "--source", slide)
    assert told["against_source"]
    assert ".tif: " not in said
    found = json.loads(
        succeed(
            "evaluate",
            translated["mpp.ome.tif"],
            "--source",
            slide,
            "--tissue",
            "none",
            "--tile-size",
            128,
            "--metrics",
            "seams,ssim",
            "--json",
        )
    )
    assert found["seams"]["both"] == told["both"]
    assert found["tiles"]["slide"] == 4
    refused = kin("evaluate", translated["mpp.ome.tif"], "--source", slide, "--mpp", 1, "--metrics", "ssim")
    assert refused.code == 2
    assert "--source-region" in refused.err.splitlines()[-1]


def test_what_contradicts_the_file_is_said_and_followed(
    slide: Path, translated: dict[str, Path], tmp_path: Path
) -> None:
    found, said = seams(translated["region.ome.tif"], "--patch-size", 128)
    assert found["patch_px"] == 128
    assert "was made in patches of 64 px; --patch-size 128" in said
    options = ("--source", slide, "--source-region", "0,0,512,448")
    assert "region 70,30,512,448; --source-region says otherwise" in seams(translated["region.ome.tif"], *options)[1]
    other = tmp_path / "other.tif"
    tifffile.imwrite(other, np.full((640, 704, 3), 99, np.uint8), photometric="rgb", tile=(128, 128))
    assert (
        "was made from slide.svs, a file of another size" in seams(translated["region.ome.tif"], "--source", other)[1]
    )
    copy = tmp_path / "renamed.svs"
    copy.write_bytes(slide.read_bytes())
    assert ".tif: " not in seams(translated["region.ome.tif"], "--source", copy)[1]
    refused = kin("seams", translated["level.ome.tif"], "--source", slide, "--source-level", 0, "--tissue", "none")
    assert refused.code == 1
    assert "level 1; --source-level says otherwise" in refused.err


def test_a_file_that_tells_nothing_is_measured_as_before_with_a_note(slide: Path) -> None:
    found, said = seams(slide)
    assert found["patch_px"] == 512
    assert "does not tell the patches it was made in; 512 px are taken (--patch-size)" in said
    assert "does not tell" not in kin("evaluate", slide, "--metrics", "sobel", "--tissue", "none").err


@pytest.mark.parametrize(
    ("name", "power"), [("region.ome.tif", 20), ("level.ome.tif", 10), ("level.tif", 10), ("mpp.ome.tif", 10)]
)
def test_the_objective_goes_with_the_pixels(translated: dict[str, Path], name: str, power: float) -> None:
    with open_slide(translated[name]) as opened:
        assert opened.objective == power
    assert f"{power}×" in succeed("info", translated[name])
    with tifffile.TiffFile(translated[name]) as tiff:
        if tiff.is_ome:
            lens = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Instrument"]["Objective"]
            assert lens["NominalMagnification"] == power
        else:
            assert json.loads(tiff.pages.first.description)["objective"] == power


def test_openslide_reads_the_same_resolution(translated: dict[str, Path]) -> None:
    with openslide.OpenSlide(translated["level.tif"]) as opened:
        assert float(opened.properties["openslide.mpp-x"]) == pytest.approx(1.0)
