"""The rat kidney of the ANHIR challenge: landmarks say how far off a registration is."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.processes import succeed

pytest.importorskip("SimpleITK")


def turned(folder: Path, data: Path, degrees: int) -> tuple[Path, Path]:
    """The real section turned about its middle on a larger slide, and its landmarks."""
    picture = Image.open(data / "Rat-Kidney_PanCytokeratin.jpg").convert("RGB")
    width, height = picture.size
    edge = np.asarray(picture)[:8].reshape(-1, 3)
    fill = tuple(int(v) for v in np.median(edge, axis=0))
    out = picture.rotate(degrees, Image.Resampling.BICUBIC, expand=True, fillcolor=fill)
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    with (data / "Rat-Kidney_PanCytokeratin.csv").open() as file:
        rows = list(csv.reader(file))
    points = np.array([[float(v) for v in row[1:]] for row in rows[1:]])
    moved = (points - np.array([width, height]) / 2) @ turn.T + np.array(out.size) / 2
    lines = [",X,Y", *(f"{row[0]},{x},{y}" for row, (x, y) in zip(rows[1:], moved, strict=True))]
    out.save(folder / "real.png")
    (folder / "real.csv").write_text("\n".join(lines))
    return folder / "real.png", folder / "real.csv"


@pytest.mark.slow
@pytest.mark.parametrize("degrees", range(0, 360, 30))
def test_landmarks_of_the_rat_kidney_from_any_rotation(shared_data: Path, tmp_path: Path, degrees: int) -> None:
    data = shared_data / "landmarks"
    real, landmarks = turned(tmp_path, data, degrees)
    options = ("--source-mpp", 5, "--real-mpp", 5, "--landmarks", data / "Rat-Kidney_HE.csv", landmarks, "--json")
    output = ("-o", tmp_path / "reg.json")
    record = json.loads(succeed("register", data / "Rat-Kidney_HE.jpg", real, *output, *options))
    diagonal = np.hypot(*Image.open(data / "Rat-Kidney_PanCytokeratin.jpg").size)
    # of the section's own diagonal: a turned picture is larger, which would flatter the figure
    assert record["landmarks"]["registered"]["tre_um"]["median"] / 5 / diagonal * 100 <= 0.25
