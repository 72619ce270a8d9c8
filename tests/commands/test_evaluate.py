"""``kin evaluate``: a table, JSON and CSV."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from PIL import Image

from kin_cli.geometry import Pixels
from tests.helpers.processes import succeed


def test_kin_evaluate_prints_a_table_json_and_csv(spoiled: Pixels, tmp_path: Path) -> None:
    slide, table = tmp_path / "slide.png", tmp_path / "values.csv"
    Image.fromarray(spoiled).save(slide)
    options = (slide, "--metrics", "sobel, piqe", "--tiles", 2, "--authors", "--csv", table)
    text = succeed("evaluate", *options)
    assert [line.split()[0] for line in text.splitlines()] == [
        *("sobel_y", "sobel_cb", "sobel_cr", "sobel_authors", "piqe", "piqe_authors")
    ]
    record = json.loads(succeed("evaluate", *options, "--json", "--overwrite"))
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["metric"], float(row["value"])) for row in rows] == [
        (value["metric"], value["value"]) for value in record["values"]
    ]
    assert rows[0]["slide"] == str(slide)
