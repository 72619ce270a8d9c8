"""``kin analyse``: its picture, CSV and JSON, and a table that is kept."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.processes import kin
from tests.helpers.slides import write_photo

PATCH = 32


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photo(
        tmp_path_factory.mktemp("photo") / "photo.png", (7 * PATCH, 5 * PATCH), coarse=(5, 4), noise=(20,)
    )


def test_kin_analyse_writes_picture_csv_and_json(photo: Path, tiny_generator: Path, tmp_path: Path) -> None:
    output, table = tmp_path / "figure.png", tmp_path / "values.csv"
    common = (photo, "-m", tiny_generator, "-o", output, "--patch-size", PATCH, "--device", "cpu", "-j", 1)
    done = kin("analyse", *common, "--csv", table, "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(record["similarity"])
    assert {row["with"] for row in rows} == {"patches", "thumbnail", "all patches", "neighbourhood gaussian:7"}
    assert set(record["thumbnail"]["outside_90_percent"]) == {block["name"] for block in record["blocks"]}
    assert Image.open(output).width == 2500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.png", "values.csv"]
    kept = kin("analyse", *common, "-o", tmp_path / "folder", "--table", tmp_path / "kept")
    assert "mean, residual" in kept.out
    assert (tmp_path / "kept" / "table-0.dat").exists()
    folder = tmp_path / "folder"
    assert sorted(path.suffix for path in folder.iterdir()) == [".csv", ".json", ".png"]
    assert (folder / "statistics.csv").read_bytes() == table.read_bytes()
    assert json.loads((folder / "statistics.json").read_text())["similarity"] == record["similarity"]
