"""Trust on the command line: the map of a translation, ``kin models learn``, ``kin trust`` and ``kin info -m``."""

from __future__ import annotations

import base64
import csv
import json
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kin_cli.geometry import Box
from kin_cli.passes.trust import percent
from kin_cli.slide.open import open_source
from kin_cli.view.findings import trust_of
from kin_cli.view.layers import ViewChoice, opened_layers
from tests.helpers.processes import assert_refused, kin
from tests.helpers.trusting import SIDE, learned, write_tissue

LOSSLESS = ("--patch-size", SIDE, "--compression", "deflate", "-j", 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator that has learned."""
    return learned(tmp_path_factory.mktemp("learned"))


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide whose right third is green."""
    return write_tissue(tmp_path_factory.mktemp("odd") / "odd.tif", seed=40, odd=True)


def translated(slide: Path, model: Path, folder: Path, *options: object) -> tuple[Any, dict[str, Any]]:
    folder.mkdir()
    result = kin("translate", slide, "-m", model, "-o", folder / "o.ome.tif", *LOSSLESS, *options)
    assert result.code == 0, result.err
    return result, json.loads((folder / "o.ome.tif.json").read_text())


def percentiles(folder: Path) -> list[float]:
    found = json.loads((folder / "o.ome.tif.trust.geojson").read_text())["features"]
    return [feature["properties"]["measurements"]["trust percentile, %"] for feature in found]


def test_the_map_finds_what_is_odd_and_changes_no_byte(model: Path, odd: Path, tmp_path: Path) -> None:
    result, record = translated(odd, model, tmp_path / "a", "--report")
    without, plain = translated(odd, model, tmp_path / "b", "--no-trust")
    assert (tmp_path / "a/o.ome.tif").read_bytes() == (tmp_path / "b/o.ome.tif").read_bytes()
    assert "of the tissue looks like nothing the generator was trained on" in result.err
    assert "trained on" not in without.err
    assert "trust" not in plain
    assert 0.25 < record["trust"]["tissue_below"] < 0.45
    assert {p.name for p in (tmp_path / "b").iterdir()} == {"o.ome.tif", "o.ome.tif.json"}
    page = (tmp_path / "a/o.ome.tif.report.html").read_text()
    assert "Where to believe it" in page
    assert page.count("data:image/png;base64") == 1
    assert kin("check", tmp_path / "a/o.ome.tif").code == 0


def test_kernel_and_halo_do_not_change_the_score(model: Path, odd: Path, tmp_path: Path) -> None:
    for name, options in {"a": ("--kernel", 1), "b": ("--seamless",), "c": ("--kernel", "gaussian:7")}.items():
        translated(odd, model, tmp_path / name, *options)
    assert percentiles(tmp_path / "a") == percentiles(tmp_path / "b") == percentiles(tmp_path / "c")
    assert len(percentiles(tmp_path / "a")) > 60


def test_shards_make_the_same_map_and_file(model: Path, odd: Path, tmp_path: Path) -> None:
    options = ("--trust-below", "2%", "--background", "keep")
    translated(odd, model, tmp_path / "a", *options)
    (tmp_path / "b").mkdir()
    command = ("translate", odd, "-m", model, "-o", tmp_path / "b/o.ome.tif", *LOSSLESS, *options)
    for name in ("measure", "apply"):
        for shard in ("1/2", "2/2"):
            assert kin(*command, "--pass", name, "--shard", shard).code == 0
    assert kin("assemble", *command[1:]).code == 0
    for ending in ("", ".trust.png", ".trust.geojson"):
        assert (tmp_path / f"a/o.ome.tif{ending}").read_bytes() == (tmp_path / f"b/o.ome.tif{ending}").read_bytes()


def test_what_is_not_believed_is_left_out_on_request(model: Path, odd: Path, tmp_path: Path) -> None:
    _, record = translated(odd, model, tmp_path / "a", "--trust-below", "1%", "--background", "keep")
    _, marked = translated(odd, model, tmp_path / "b", "--trust-below", "1%")
    assert record["settings"]["trust below"] == 0.01
    assert "trust below" not in marked["settings"]
    right, left = Box(512, 128, 128, 256), Box(128, 128, 128, 256)
    with open_source(odd).slide as slide, open_source(tmp_path / "a/o.ome.tif").slide as output:
        np.testing.assert_array_equal(slide.read(0, right), output.read(0, right))
        assert (slide.read(0, left) != output.read(0, left)).mean() > 0.9
    with open_source(odd).slide as slide, open_source(tmp_path / "b/o.ome.tif").slide as output:
        assert (slide.read(0, right) != output.read(0, right)).mean() > 0.9


def test_matched_colours_are_nearer_and_told_in_the_record(model: Path, tmp_path: Path) -> None:
    pale = write_tissue(tmp_path / "pale.tif", seed=60, stain=0.4, glass=150)
    _, before = translated(pale, model, tmp_path / "a", "--background", "keep")
    _, after = translated(pale, model, tmp_path / "b", "--stain-match", "reinhard", "--background", "keep")
    assert after["trust"]["median"] > 3 * before["trust"]["median"]
    assert after["settings"]["stain match"].startswith("reinhard (crc32 ")
    assert set(after["stain_match"]) == {"method", "slide", "target", "shift", "left", "needed"}
    corner = Box(0, 0, 16, 16)  # background keeps the slide's own colours
    with open_source(pale).slide as slide, open_source(tmp_path / "b/o.ome.tif").slide as output:
        np.testing.assert_array_equal(slide.read(0, corner), output.read(0, corner))
    again = kin("translate", pale, "-m", model, "-o", tmp_path / "a/o.ome.tif", *LOSSLESS, "--stain-match", "macenko")
    assert_refused(again, "exists already", "--overwrite")


def test_a_generator_that_knows_nothing_is_told_so(tiny_generator: Path, odd: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.ome.tif"
    for option in (("--trust",), ("--trust-below", "1%")):
        refused = kin("translate", odd, "-m", tiny_generator, "-o", output, *LOSSLESS, *option)
        assert_refused(refused, "holds no reference statistics", "kin models learn")
    refused = kin("translate", odd, "-m", tiny_generator, "-o", output, *LOSSLESS, "--stain-match", "reinhard")
    assert_refused(refused, "does not tell which colours it knows", "kin models learn")
    assert_refused(kin("info", odd, "-m", tiny_generator), "holds no reference statistics", "kin models learn")
    assert_refused(kin("translate", odd, "--trust-below", "150%"), "not between 0% and 100%", "write 1%", code=2)
    assert not list(tmp_path.iterdir())


def test_a_map_of_somebody_else_is_not_replaced(model: Path, odd: Path, tmp_path: Path) -> None:
    (tmp_path / "o.ome.tif.trust.png").write_bytes(b"mine")
    refused = kin("translate", odd, "-m", model, "-o", tmp_path / "o.ome.tif", *LOSSLESS)
    assert_refused(refused, "kin did not write it", "--overwrite")
    assert [p.name for p in tmp_path.iterdir()] == ["o.ome.tif.trust.png"]


def test_learning_on_the_command_line(model: Path, tiny_generator: Path, tmp_path: Path) -> None:
    mine = shutil.copy(tiny_generator, tmp_path / "g.pth")
    (tmp_path / "slides").mkdir()
    write_tissue(tmp_path / "slides/a.tif", seed=3)
    command = ("models", "learn", mine, "--from", tmp_path / "slides", "--patches", 60, "--patch-size", SIDE)
    result = kin(*command)
    assert result.code == 0, result.err
    assert result.out.strip() == str(tmp_path / "g.safetensors")
    assert_refused(kin(*command), "exists already", "--overwrite")
    assert kin("models", "learn", tmp_path / "g.safetensors", *command[3:]).code == 0  # in place
    told = kin("info", tmp_path / "g.safetensors").out
    assert "60 patches of 64 px at 0.5 µm/px of a.tif" in told
    assert_refused(kin(*command, "-o", tmp_path / "g.bin"), ".safetensors", "-o")
    slide = tmp_path / "slides/a.tif"
    refused = kin("models", "learn", mine, "--from", slide, "-o", slide, "--overwrite")
    assert_refused(refused, "safetensors", "-o")


def test_witnesses_and_nearness_on_the_command_line(model: Path, odd: Path, tmp_path: Path) -> None:
    table = tmp_path / "w.csv"
    command = ("trust", odd, "-m", model, "-m", model, "--back", model, "--patches", 6)
    found = json.loads(kin(*command, "--json", "--csv", table).out)
    assert set(found["witnesses"]) == {"shift", "generators", "way back"}
    assert found["witnesses"]["generators"]["mean"] == 0
    rows = list(csv.DictReader(table.open()))
    assert [float(row["percentile"]) for row in rows] == [row["percentile"] for row in found["patches"]]
    assert_refused(kin(*command, "--csv", table), "exists already", "--overwrite")
    near = json.loads(kin("info", odd, "-m", model, "--json").out)["trust"]
    assert [entry["as"] for entry in near[:3]] == ["as it is", "--stain-match macenko", "--stain-match reinhard"]
    assert "verdict" in near[-1]
    text = kin("info", odd, "-m", model).out
    assert "trust" in text
    assert_refused(kin("info", model, "-m", model), "goes with a slide", "kin info SLIDE")


def test_a_batch_lists_how_much_of_each_slide_is_odd(model: Path, odd: Path, tmp_path: Path) -> None:
    result = kin("batch", odd, "-m", model, "-o", tmp_path / "out", *LOSSLESS)
    assert result.code == 0, result.err
    (row,) = csv.DictReader((tmp_path / "out/kin-batch/status.csv").open())
    assert 0.25 < float(row["unlike_training"]) < 0.45


def test_everything_that_tells_of_trust_tells_the_same(model: Path, odd: Path, tmp_path: Path) -> None:
    result, record = translated(odd, model, tmp_path / "a", "--report", "--trust-below", "2%")
    told, output = record["trust"], tmp_path / "a/o.ome.tif"
    share = percent(told["tissue_below"])
    counted = f"{told['patches_below']} of {told['patches_judged']} patches"
    assert f"{share} of the tissue looks like nothing" in result.err
    assert f"<td>{share} ({counted})</td>" in (tmp_path / "a/o.ome.tif.report.html").read_text()
    squares = json.loads((tmp_path / "a/o.ome.tif.trust.geojson").read_text())["features"]
    odd_squares = [one for one in squares if one["properties"]["classification"]["name"].startswith("unlike")]
    assert (len(odd_squares), len(squares)) == (told["patches_below"], told["patches_judged"])
    tissue = [one["properties"]["tissue"] for one in odd_squares]
    assert sum(tissue) / sum(one["properties"]["tissue"] for one in squares) == pytest.approx(
        told["tissue_below"], abs=1e-4
    )
    with opened_layers(ViewChoice(odd, (output,))) as layers:
        shown = trust_of(layers[1])
    assert shown["text"] == f"{share} of the tissue is below 2 % ({counted})"
    cells = np.asarray(Image.open(BytesIO(base64.b64decode(shown["image"].partition(",")[2]))))
    assert (cells[..., 3] > 0).sum() == told["patches_judged"]
    picture = np.asarray(Image.open(tmp_path / "a/o.ome.tif.trust.png")).astype(int)
    scale = picture.shape[1] / open_source(output).size.width
    for one in squares:
        corner, far = np.array(one["geometry"]["coordinates"][0])[[0, 2]]
        x, y = ((corner + far) / 2 * scale).astype(int)
        red = picture[y, x, 0] > picture[y, x, 1]  # below 5 %; all others are blue
        assert red == (one["properties"]["measurements"]["trust percentile, %"] < 5)
    batch = kin("batch", odd, "-m", model, "-o", tmp_path / "out", *LOSSLESS, "--trust-below", "2%")
    assert batch.code == 0, batch.err
    (row,) = csv.DictReader((tmp_path / "out/kin-batch/status.csv").open())
    assert float(row["unlike_training"]) == told["tissue_below"]
