"""Outputs that are complete but no translation: NaN in the features or the output, one colour for all tissue."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from torch import Tensor

from kin_cli.models.exchange import TableNetwork
from kin_cli.norm.layer import Field
from kin_cli.passes.quality import NO_CONTRAST, ONE_COLOUR, SOUND, contrast_of, flaws, one_colour_note
from tests.helpers.cases_models import one_colour, overflowing
from tests.helpers.pictures import random_pixels
from tests.helpers.processes import assert_refused, kin
from tests.helpers.slides import write_slide
from tests.helpers.translations import SMALL, digest

PLAN = {"patches_measured": 9, "tiles_translated": 4}


def half_textured(path: Path) -> Path:
    """512×256 px: the left half is one grey, the right half noise; patches of 128 px are of one kind each."""
    pixels = np.full((256, 512, 3), 90, np.uint8)
    pixels[:, 256:] = random_pixels(256, 256)
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(128, 128), metadata=None)
    return path


def record_of(output: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((output.parent / f"{output.name}.json").read_bytes())
    return found


def test_contrast_is_judged_in_tissue_and_against_the_source() -> None:
    noise, flat = random_pixels(64, 64), np.full((64, 64, 3), 7, np.uint8)
    everywhere, nowhere = np.ones((64, 64), bool), np.zeros((64, 64), bool)
    left = everywhere.copy()
    left[:, 32:] = False
    half = noise.copy()
    half[:, :32] = 7
    assert contrast_of(noise, everywhere, lambda: pytest.fail("was read")) == SOUND
    assert contrast_of(flat, nowhere, lambda: pytest.fail("was read")) == NO_CONTRAST
    assert contrast_of(flat, everywhere, lambda: noise) == ONE_COLOUR
    assert contrast_of(flat, everywhere, lambda: flat) == NO_CONTRAST
    assert contrast_of(half, left, lambda: noise) == ONE_COLOUR  # only background has contrast
    dot = flat.copy()
    dot[33, 33] = 255  # between the pixels of the sample
    assert contrast_of(dot, everywhere, lambda: noise) == SOUND


def test_few_tiles_of_one_colour_are_a_note_and_many_a_flaw() -> None:
    record = {"unreadable": {"tiles": 0, "patches": 0}, "plan": PLAN, "not_finite": {"patches": 0, "tiles": 0}}
    few, many = ({**record, "one_colour": {"tiles": count, "of": 4}} for count in (1, 2))
    assert (flaws(few), one_colour_note(few)) == ([], "the tissue of 1 of 4 tiles has one colour in the output")
    assert len(flaws(many)) == 1
    assert one_colour_note(many) is None
    assert flaws({name: value for name, value in record.items() if name != "not_finite"}) == []  # of an older kin


@pytest.mark.parametrize("options", [(), ("--method", "tin"), ("--table", "table")])
def test_features_that_are_nowhere_finite_are_refused_and_leave_nothing(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = overflowing(tmp_path / "G.pth")
    for _ in range(2):  # the second time the table, if any, is complete
        result = kin("translate", slide, "-m", model, "-o", "out.ome.tif", *SMALL, *options)
        assert result.code == 1
        last = result.err.strip().splitlines()[-1]
        assert last.startswith("kin: the generator is broken: its features of ")
        assert "are not finite numbers" in last
        assert "Traceback" not in result.err
    assert {path.name for path in tmp_path.iterdir()} <= {"G.pth", "table"}


def test_patches_that_are_not_finite_are_counted_also_after_an_interruption_and_in_shards(tmp_path: Path) -> None:
    slide, model = half_textured(tmp_path / "slide.tif"), overflowing(tmp_path / "G.pth", factor=1e21)
    common = (slide, "-m", model, *SMALL, "--kernel", "1")
    once = kin("translate", *common, "-o", tmp_path / "out.ome.tif")
    assert once.code == 1
    said = "4 of 8 patches were left out of the statistics"
    assert said in once.err.splitlines()[-1]
    assert record_of(tmp_path / "out.ome.tif")["not_finite"] == {"patches": 4, "tiles": 0}
    (tmp_path / "shards").mkdir()
    shards = ("-o", tmp_path / "shards" / "out.ome.tif")
    for number in ("1/2", "2/2"):
        assert kin("translate", *common, *shards, "--pass", "measure", "--shard", number).code == 0
    assert kin("translate", *common, *shards, "--pass", "apply").code == 0
    joined = kin("assemble", *common, *shards)
    assert (joined.code, said in joined.err) == (1, True)
    assert digest(tmp_path / "shards" / "out.ome.tif") == digest(tmp_path / "out.ome.tif")
    again = kin("translate", *common, "-o", tmp_path / "out.ome.tif", "--skip-existing")
    assert (again.code, said in again.err) == (1, True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_output_that_is_not_finite_is_counted_in_its_tiles(
    tiny_generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    write_slide(tmp_path / "slide.tif", width=1300, height=700)
    common = ("translate", tmp_path / "slide.tif", "-m", tiny_generator, *SMALL, "--compression", "deflate")
    assert kin(*common, "-o", tmp_path / "sound.tif").code == 0
    apply, calls = TableNetwork.apply, []

    def broken(self: TableNetwork, x: Tensor, field: Field) -> Tensor:
        y = apply(self, x, field).clone()
        calls.append(y.shape)
        if len(calls) == 1:
            y[:, 1, 3, 5] = value
        return y

    monkeypatch.setattr(TableNetwork, "apply", broken)
    result = kin(*common, "-o", tmp_path / "out.tif")
    assert result.code == 1
    record = record_of(tmp_path / "out.tif")
    tiles = record["plan"]["tiles_translated"]  # type: ignore[index]
    assert (record["not_finite"], tiles > 1) == ({"patches": 0, "tiles": 1}, True)
    assert f"1 of {tiles} tiles show black instead" in result.err.splitlines()[-1]
    sound, found = (tifffile.imread(tmp_path / name) for name in ("sound.tif", "out.tif"))
    assert [tuple(place) for place in np.argwhere((sound != found).any(axis=2))] == [(3, 5)]
    assert found[3, 5, 1] == (0 if value != value else 255)


def test_one_colour_for_all_tissue_is_said(slide: Path, tmp_path: Path) -> None:
    model = one_colour(tmp_path / "G.pth")
    result = kin("translate", slide, "-m", model, "-o", tmp_path / "out.png", *SMALL, "--json")
    assert result.code == 1
    counted = json.loads(result.out)["one_colour"]
    assert counted["tiles"] == counted["of"] > 0
    assert "the generator gives one colour to the tissue of" in result.err.splitlines()[-1]


def test_a_sound_translation_says_nothing(slide: Path, tiny_generator: Path, tmp_path: Path) -> None:
    result = kin("translate", slide, "-m", tiny_generator, "-o", tmp_path / "out.ome.tif", *SMALL)
    assert result.code == 0
    record = record_of(tmp_path / "out.ome.tif")
    assert record["not_finite"] == {"patches": 0, "tiles": 0}
    assert record["one_colour"]["tiles"] == 0  # type: ignore[index]


@pytest.mark.parametrize("grey", [0, 255])
def test_a_slide_of_one_grey_has_no_tissue(tiny_generator: Path, tmp_path: Path, grey: int) -> None:
    slide = tmp_path / "slide.tif"
    tifffile.imwrite(slide, np.full((512, 512, 3), grey, np.uint8), photometric="rgb", tile=(128, 128), metadata=None)
    common = ("translate", slide, "-m", tiny_generator, "-o", tmp_path / "out.ome.tif", "--patch-size", "128")
    for options in ((), ("--dry-run",), ("--json",), ("--table", tmp_path / "table"), ("--region", "0,0,256,256")):
        assert_refused(kin(*common, *options), str(slide), "no tissue", "--tissue none", code=1)
    assert [path.name for path in tmp_path.iterdir()] == ["slide.tif"]
    assert_refused(kin("seams", slide), "no tissue", "--tissue none", code=1)
    assert_refused(kin("evaluate", slide), "tissue", "--tissue none", code=1)
    everything = kin(*common, "--tissue", "none")
    assert everything.code == 0, everything.err
    assert tifffile.imread(tmp_path / "out.ome.tif").shape == (512, 512, 3)
