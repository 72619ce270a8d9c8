"""``kin compare`` and ``kin sweep``: their files, and refusals before any work."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from kin_cli.commands.compare import kinds_from
from kin_cli.errors import UsageError
from kin_cli.figures.compare import (
    Comparison,
)
from kin_cli.figures.sheet import sweep_sheet
from tests.helpers.comparisons import COMMON, write_graded_photo
from tests.helpers.processes import kin


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_graded_photo(tmp_path_factory.mktemp("photo") / "photo.png")


def test_kinds_of_kernels_share_their_ends() -> None:
    assert kinds_from("constant, gaussian", "1,3,11,inf") == {
        "constant": ["1", "constant:3", "constant:11", "global"],
        "gaussian": ["1", "gaussian:3", "gaussian:11", "global"],
    }
    for kinds, sizes in (("box", "3"), ("constant", "4"), ("gaussian", "x")):
        with pytest.raises(UsageError):
            kinds_from(kinds, sizes)


def test_a_resampled_slide_is_compared_at_its_new_size(shared_data: Path, tiny_generator: Path, tmp_path: Path) -> None:
    slide, region = shared_data / "CMU-1-Small-Region.svs", "40,10,300,260"
    options = (slide, "-m", tiny_generator, "-o", tmp_path / "figure.svg", *COMMON, "--mpp", 2, "--region", region)
    done = kin("sweep", *options, "--sizes", "1", "--kinds", "constant", "--json", "--tissue", "none")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert (record["region"], record["mpp"]) == ([40, 10, 300, 260], 2.0)
    (place,) = record["close_ups"]
    scale = 2 / 0.499
    assert place["l0"] == pytest.approx([(40 + place["box"][0]) * scale, (10 + place["box"][1]) * scale], abs=8)
    assert (tmp_path / "figure.svg").read_text().startswith("<?xml")


def test_kin_compare_writes_picture_csv_and_json(photo: Path, tiny_generator: Path, tmp_path: Path) -> None:
    output, table = tmp_path / "figure.png", tmp_path / "values.csv"
    options = (*COMMON, "--kernels", "gaussian:3,global", "--csv", table, "--json", "--reference", photo)
    done = kin("compare", photo, "-m", tiny_generator, "-o", output, *options)
    assert done.code == 0, done.err
    record = json.loads(done.out)
    names = ["source", "in", "tin", "kin-gaussian-3", "kin-global", "seamless"]
    assert [column["name"] for column in record["columns"]] == names
    assert record["columns"][-1]["title"] == "seamless, gaussian:7"
    assert Image.open(output).width > 3000
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["column"] for row in rows} == set(names)
    written = {(row["column"], row["metric"]): row["value"] for row in rows}
    seams = record["columns"][1]["seams"]
    assert float(written["in", "excess both"]) == seams["both"]["step"]["excess"]
    assert {"ssim", "sobel_y", "piqe", "histogram"} <= {metric for name, metric in written if name == "in"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.png", "values.csv"]


def test_other_metrics_are_taken_from_kin_evaluate(photo: Path, tiny_generator: Path, tmp_path: Path) -> None:
    table, common = tmp_path / "values.csv", (photo, "-m", tiny_generator, "-o", tmp_path / "figure.png", *COMMON)
    assert "there is no metric 'psnr'" in kin("compare", *common, "--metrics", "psnr").err
    assert "cannot be computed: it needs" in kin("compare", *common, "--metrics", "fid").err
    assert "nowhere.svs: no such file" in kin("compare", *common, "--reference", tmp_path / "nowhere.svs").err
    weights = ("--reference", photo, "--inception", tmp_path / "nowhere.pth")
    assert "nowhere.pth" in kin("compare", *common, *weights).err
    assert "seams cannot be measured between patches of 32 px" in kin("sweep", *common, "--patch-size", 32).err
    assert not list(tmp_path.iterdir())
    done = kin("compare", *common, "--metrics", "FSIM, seams", "--csv", table)
    assert done.code == 0, done.err
    with table.open(newline="") as file:
        measured = {row["metric"] for row in csv.DictReader(file)}
    assert {name for name in measured if not name.startswith(("R", "excess"))} == {"fsim", "fsim_whole"}
    assert "FSIM" in done.out


def test_kin_sweep_draws_a_section_for_each_kind(
    photo: Path, tiny_generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheets = []

    def keep(found: Comparison, sections: list[tuple[str, list[str]]]) -> object:
        sheets.append((found, sweep_sheet(found, sections)))
        return sheets[0][1]

    monkeypatch.setattr("kin_cli.figures.sheet.sweep_sheet", keep)
    output = tmp_path / "grid.png"
    done = kin("sweep", photo, "-m", tiny_generator, "-o", output, *COMMON, "--sizes", "1,3,inf")
    assert done.code == 0, done.err
    (found, figure) = sheets[0]
    assert [column.name for column in found.variants] == [
        *("kernel-1", "kernel-constant-3", "kernel-global", "kernel-gaussian-3")
    ]
    assert len(figure.axes) == 2 * 4 + 2 * 1  # whole and close-up of source and sizes; of gaussian:3 alone
    texts = [text.get_text() for text in figure.texts]
    assert [texts.count(title) for title in ("source", "constant:3", "gaussian:3", "∞: average of all")] == [1, 1, 1, 1]
    assert output.exists()


@pytest.mark.parametrize("command", ["compare", "sweep", "analyse"])
def test_what_cannot_be_drawn_is_refused_before_any_work(
    photo: Path, tiny_generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def refused(output: Path) -> str:
        result = kin(command, photo, "-m", tiny_generator, "-o", output, *COMMON)
        assert result.code in (1, 2)
        assert len(result.err.strip().splitlines()) == 1
        return result.err

    assert "no known ending" in refused(tmp_path / "figure.tif")
    assert "no such folder" in refused(tmp_path / "nowhere" / "figure.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install 'kin-cli[figures]'" in refused(tmp_path / "figure.png")
    monkeypatch.undo()
    result = kin(command, photo, "-m", tmp_path / "no.pth", "-o", tmp_path / "figure.png", *COMMON)
    assert "no.pth" in result.err
    assert list(tmp_path.iterdir()) == []
