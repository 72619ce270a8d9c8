"""Files of registrations: written and read, of other programs, damaged, and of another pair."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from skimage import transform

from kin_cli.errors import InputError
from kin_cli.geometry import Size
from kin_cli.registration.elastic import Bend
from kin_cli.registration.foreign import check_direction
from kin_cli.registration.landmarks import landmark_errors, paired_landmarks, read_landmarks
from kin_cli.registration.transform import Piece, Registration, Side, contents, read_registration
from kin_cli.slide.tissue import TissueMask

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


@pytest.mark.parametrize("degrees", [-150.0, -63.6, 0.0, 20.0, 90.0])
def test_the_rotation_is_that_of_scikit_image_also_of_a_mirrored_piece(degrees: float) -> None:
    turned = transform.SimilarityTransform(scale=1.1, rotation=np.radians(degrees), translation=(5, 7)).params[:2]
    mirrored = turned * [[-1], [1]]
    assert [Piece(matrix).degrees for matrix in (turned, mirrored)] == pytest.approx([degrees] * 2)


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
        ("javafx.txt", "Affine [\n\t1.8, -0.2, 0.0, 120.0\n\t0.2, 2.2, 0.0, -80.0\n\t0.0, 0.0, 1.0, 0.0\n]"),
        ("awt.txt", "AffineTransform[[1.8, -0.2, 120.0], [0.2, 2.2, -80.0]]"),
        ("server.json", '{"transform": {"m00": 1.8, "m10": 0.2, "m01": -0.2, "m11": 2.2, "m02": 120, "m12": -80}}'),
    ],
)
def test_an_affine_map_of_other_programs_is_in_pixels(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    found = read_registration(tmp_path / name, SOURCE, REAL)
    assert found.to_real(np.array([10.0, 20.0])) == pytest.approx([18 - 4 + 120, 2 + 44 - 80])


def test_two_matrices_of_valis_are_joined_as_scikit_image_warps(tmp_path: Path) -> None:
    """The matrices warp processed pictures to one registered picture; a point that both show is mapped."""
    rng = np.random.default_rng(0)
    slides, shown = {}, {}
    picture = np.zeros((90, 110))
    picture[40:44, 60:64] = 1  # the registered picture
    for name, size, shape in (("source", SOURCE.size, (300, 400)), ("real", REAL.size, (320, 360))):
        backwards = transform.SimilarityTransform(scale=2.5, rotation=rng.uniform(-0.3, 0.3), translation=(90, 60))
        # what skimage.transform.warp(processed, backwards) gives is the registered picture
        processed = transform.warp(picture, backwards.inverse, output_shape=shape)
        row, col = ndimage.center_of_mass(processed)
        shown[name] = (np.array([col, row]) + 0.5) * (size.width / shape[1])
        slides[name] = {"M": backwards.params.tolist(), "processed_img_shape_rc": shape}
    (tmp_path / "valis.json").write_text(json.dumps(slides))
    found = read_registration(tmp_path / "valis.json", SOURCE, REAL)
    assert found.foreign
    assert found.to_real(shown["source"]) == pytest.approx(shown["real"], abs=8)  # a pixel of the processed picture
    (tmp_path / "swapped.json").write_text(json.dumps({"source": slides["real"], "real": slides["source"]}))
    with pytest.raises(InputError, match="is not of a slide of"):
        read_registration(tmp_path / "swapped.json", SOURCE, REAL)


def test_a_map_that_fits_better_the_other_way_is_refused(tmp_path: Path) -> None:
    matrix = np.array([[0.0, -2.0, 2400.0], [2.0, 0.0, 300.0]])
    tissue = np.zeros((300, 400), np.bool_)
    tissue[20:120, 60:160] = True
    source = TissueMask(tissue, SOURCE.size)
    y, x = np.mgrid[:3200:10, :3600:10]
    back = (np.stack([x, y], -1) - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    inside = (back >= (600, 200)).all(-1) & (back < (1600, 1200)).all(-1)
    real = TissueMask(inside, REAL.size)
    whole = np.vstack([matrix, [0, 0, 1]])
    (tmp_path / "right.json").write_text(json.dumps(matrix.tolist()))
    (tmp_path / "wrong.json").write_text(json.dumps(np.linalg.inv(whole)[:2].tolist()))
    (tmp_path / "reduced.json").write_text(json.dumps((np.diag([0.1, 0.1, 1]) @ whole)[:2].tolist()))
    found = {name: read_registration(tmp_path / f"{name}.json", SOURCE, REAL) for name in ("right", "wrong", "reduced")}
    assert check_direction(tmp_path / "right.json", found["right"], source, real) is None
    with pytest.raises(InputError, match="it maps the other way"):
        check_direction(tmp_path / "wrong.json", found["wrong"], source, real)
    assert "level 0" in (check_direction(tmp_path / "reduced.json", found["reduced"], source, real) or "")


def test_numpy_files_hold_a_matrix_too(tmp_path: Path) -> None:
    matrix = np.array([[1.8, -0.2, 120], [0.2, 2.2, -80], [0, 0, 1]])
    np.save(tmp_path / "m.npy", matrix)
    np.savez(tmp_path / "m.npz", M=matrix)
    for name in ("m.npy", "m.npz"):
        found = read_registration(tmp_path / name, SOURCE, REAL)
        assert found.to_real(np.array([10.0, 20.0])) == pytest.approx([134, -34])


@pytest.mark.parametrize(("content", "said"), [(b"\x80\x04pickle", "any program"), (b"\xac\xed\x00", "Java object")])
def test_files_that_could_run_programs_are_not_read(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x.pickle").write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_registration(tmp_path / "x.pickle", SOURCE, REAL)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "[1, 2]",
        "{}",
        '{"source": 1, "real": 2}',
        '{"transform": {"m00": 1}}',
        "[[1,0,0],[0,0,0]]",
        "[[1,0,0],[0,1,NaN]]",
        "[" * 9999,
    ],
)
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
    assert read_landmarks(tmp_path / "b.csv", REAL).keys() == {"0"}
    rows = "".join(f"{n},{x},{y}\n" for n, (x, y) in zip((1, 2), moved, strict=True))
    (tmp_path / "b.csv").write_text("name,X,Y\n" + rows)
    found = landmark_errors(Registration(SOURCE, REAL, (Piece(MATRIX),)), (tmp_path / "a.csv", tmp_path / "b.csv"))
    assert found.final_px == pytest.approx([5.0, 0.0], abs=1e-9)
    assert found.as_dict()["registered"] == {
        "tre_um": {"median": 0.62, "p90": 1.12, "max": 1.25},
        "rtre_percent": {"median": 0.0519, "p90": 0.0934, "max": 0.1038},
    }


@pytest.mark.parametrize(
    "text",
    [
        "X,Y\n100,200\n301.5,400\n",
        "\ufeff;X;Y\n0;100,0;200,0\n1;301,5;400,0\n",  # a spreadsheet where decimals have a comma
        " ,Area,Mean,X,Y\n1,0,200,100,200\n2,0,180,301.5,400\n",
        "x\ty\tclass\tname\tcolor\n100\t200\t\t\t-65536\n301.5\t400\t\t\t-65536\n",
        "Image\tObject ID\tName\tCentroid X µm\tCentroid Y µm\nhe.svs\ta\t\t50\t100\nhe.svs\tb\t\t150.75\t200\n",
        "id,x [px],y [px]\nA,100,200\nB,301.5,400\n",
        "name,pos_x,pos_y\nA,100,200\nB,301.5,400\n",
        "Position X (um),Position Y (um)\n50,100\n150.75,200\n",
        "100 200\n301.5 400\n",
        "1,100,200\n2,301.5,400\n",
        '{"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": {"type": "MultiPoint",'
        ' "coordinates": [[100, 200], [301.5, 400]]}, "properties": {}}]}',
        '[{"geometry": {"type": "Point", "coordinates": [100, 200]}, "properties": {"name": "A"}},'
        ' {"geometry": {"type": "Point", "coordinates": [301.5, 400]}, "properties": {"name": "B"}}]',
    ],
)
def test_tables_of_other_programs_hold_the_same_landmarks(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    found = list(read_landmarks(tmp_path / "a.csv", SOURCE).values())
    assert found == [pytest.approx((100, 200)), pytest.approx((301.5, 400))]


def test_landmarks_without_names_must_be_as_many(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("X,Y\n1,2\n3,4\n5,6\n")
    (tmp_path / "b.csv").write_text("X,Y\n1,2\n3,4\n")
    with pytest.raises(InputError, match=r"2 landmarks, but a\.csv has 3"):
        paired_landmarks((tmp_path / "a.csv", tmp_path / "b.csv"), (SOURCE, REAL))
    (tmp_path / "a.csv").write_text("name,X,Y\none,1,2\ntwo,3,4\nthree,5,6\n")
    (tmp_path / "b.csv").write_text("name,X,Y\nthree,50,60\none,10,20\n")
    ours, theirs = paired_landmarks((tmp_path / "a.csv", tmp_path / "b.csv"), (SOURCE, REAL))
    assert (ours * 10 == theirs).all()


def test_landmarks_beyond_the_slide_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("X,Y\n10,10\n9000,20\n")
    with pytest.raises(InputError, match=r"landmark 1 at 9000,20 is beyond the slide of 4000×3000 px"):
        read_landmarks(tmp_path / "a.csv", SOURCE)


@pytest.mark.parametrize(
    "text", ["", "1,2,3,4\n", "[1]", '{"type": "Polygon"}', "a,b\n1,2\n", "X,Y\n1,\n", "X,Y\n", "X,Y\nnan,1\n"]
)
def test_what_is_no_table_of_landmarks_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match="columns X and Y"):
        read_landmarks(tmp_path / "a.csv", SOURCE)
