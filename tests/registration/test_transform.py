"""Files of registrations: written and read, of other programs, damaged, and of another pair."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kin_cli.errors import InputError
from kin_cli.geometry import Size
from kin_cli.registration.agreement import read_landmarks
from kin_cli.registration.elastic import Bend
from kin_cli.registration.run import landmark_errors
from kin_cli.registration.transform import Piece, Registration, Side, contents, read_registration

SOURCE, REAL = Side(Path("he.tif"), Size(4000, 3000), 0.5), Side(Path("real.tif"), Size(3600, 3200), 0.25)
MATRIX = np.array([[0.9, -0.1, 30.0], [0.1, 1.1, -20.0]])


def registration() -> Registration:
    bend = Bend((100.0, 50.0), np.random.default_rng(0).normal(0, 9, (2, 20, 30)).astype(np.float32))
    labels = np.zeros((75, 100), np.uint8)
    labels[10:60, 5:45], labels[10:60, 55:95] = 1, 2
    return Registration(SOURCE, REAL, (Piece(MATRIX, bend), Piece(MATRIX[::-1].copy())), labels, {"median": 1.0})


def write(folder: Path) -> Path:
    for path, content in contents(registration(), folder / "reg.json").items():
        path.write_bytes(content)
    return folder / "reg.json"


def test_a_file_gives_the_same_map(tmp_path: Path) -> None:
    found = read_registration(write(tmp_path), SOURCE, REAL)
    points = np.random.default_rng(1).uniform(0, 3000, (500, 2))
    assert np.allclose(found.to_real(points), registration().to_real(points))
    assert (found.known(points * 0.5) == registration().known(points * 0.5)).all()


def test_pixels_of_both_slides_have_their_own_size() -> None:
    plain = Registration(SOURCE, REAL, (Piece(MATRIX),))
    assert plain.to_real(np.array([100.0, 200.0])) == pytest.approx([(45 - 10 + 30) / 0.25, (5 + 110 - 20) / 0.25])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qupath.txt", "1.8, -0.2, 120,\n 0.2, 2.2, -80"),
        ("m.json", '{"M": [[1.8, -0.2, 120], [0.2, 2.2, -80], [0, 0, 1]]}'),
        ("list.json", "[[1.8, -0.2, 120], [0.2, 2.2, -80]]"),
        ("m.csv", "1.8;-0.2;1.2e2\n0.2;2.2;-80\n0;0;1\n"),
    ],
)
def test_an_affine_map_of_other_programs_is_in_pixels(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    found = read_registration(tmp_path / name, SOURCE, REAL)
    assert found.to_real(np.array([10.0, 20.0])) == pytest.approx([18 - 4 + 120, 2 + 44 - 80])


def test_numpy_files_hold_a_matrix_too(tmp_path: Path) -> None:
    matrix = np.array([[1.8, -0.2, 120], [0.2, 2.2, -80], [0, 0, 1]])
    np.save(tmp_path / "m.npy", matrix)
    np.savez(tmp_path / "m.npz", M=matrix)
    for name in ("m.npy", "m.npz"):
        found = read_registration(tmp_path / name, SOURCE, REAL)
        assert found.to_real(np.array([10.0, 20.0])) == pytest.approx([134, -34])


@pytest.mark.parametrize("text", ["", "hello", "[1, 2]", "{}", "[[1,0,0],[0,0,0]]", "[[1,0,0],[0,1,NaN]]", "[" * 9999])
def test_what_is_no_matrix_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match="affine matrix"):
        read_registration(tmp_path / "x.json", SOURCE, REAL)


def test_another_pair_and_damage_are_told(tmp_path: Path) -> None:
    path = write(tmp_path)
    with pytest.raises(InputError, match="covers"):
        read_registration(path, REAL, SOURCE)
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "pieces": [{}]}))
    with pytest.raises(InputError, match="damaged"):
        read_registration(path, SOURCE, REAL)
    beside = tmp_path / "reg.field.npz"
    beside.write_bytes(beside.read_bytes()[:-1])
    with pytest.raises(InputError, match="damaged, or of another"):
        read_registration(path, SOURCE, REAL)
    beside.unlink()
    with pytest.raises(InputError, match="is missing"):
        read_registration(path, SOURCE, REAL)


def test_landmarks_give_the_error_in_micrometres_and_per_cent(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",X,Y\n1,100,200\n2,300,400\n7,1,1\n")
    there = Registration(SOURCE, REAL, (Piece(MATRIX),)).to_real(np.array([[100.0, 200.0], [300.0, 400.0]]))
    moved = there + [[3.0, 4.0], [0.0, 0.0]]
    (tmp_path / "b.csv").write_text(f"X,Y\n{moved[0, 0]},{moved[0, 1]}\n")
    assert read_landmarks(tmp_path / "b.csv").keys() == {"0"}
    rows = "".join(f"{n},{x},{y}\n" for n, (x, y) in zip((1, 2), moved, strict=True))
    (tmp_path / "b.csv").write_text("name,X,Y\n" + rows)
    found = landmark_errors(Registration(SOURCE, REAL, (Piece(MATRIX),)), (tmp_path / "a.csv", tmp_path / "b.csv"))
    assert found.final_px == pytest.approx([5.0, 0.0], abs=1e-9)
    assert found.as_dict()["registered"] == {
        "tre_um": {"median": 0.62, "p90": 1.12, "max": 1.25},
        "rtre_percent": {"median": 0.0519, "p90": 0.0934, "max": 0.1038},
    }


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "X,Y\n1,\n", "X,Y\n", "X,Y\nnan,1\n"])
def test_what_is_no_table_of_landmarks_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match="columns X and Y"):
        read_landmarks(tmp_path / "a.csv")
