"""``kin register`` and ``kin validate`` on drawn sections, and what strangers bring."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from kin_cli.geometry import Doubles, Pixels
from kin_cli.slide.mask_file import load_mask
from kin_cli.slide.open import open_source
from tests.helpers.generators import write_generator
from tests.helpers.processes import kin, succeed

pytest.importorskip("SimpleITK")

UM, SHAPE = 4.0, (560, 640)
HAEMATOXYLIN, EOSIN, DAB = (0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78)
WHITE = 243.0


def layers(seed: int = 5) -> tuple[Doubles, Doubles, Doubles]:
    """Amounts (h, w) of nuclei, of stroma and of what is brown in one uneven piece of tissue."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]] - np.array([280, 310])[:, None, None]
    angle = np.arctan2(y, x)
    wave = sum(rng.uniform(0.04, 0.16) * np.cos(n * angle + rng.uniform(0, 6)) for n in range(1, 6))
    inside = np.hypot(x, y) < 190 * (1 + wave)
    fine, coarse = (ndimage.gaussian_filter(rng.normal(size=SHAPE), width) for width in (2, 20))
    nuclei = np.clip(0.25 + 0.25 * fine / fine.std(), 0, 1) * inside
    stroma = np.clip(0.25 + 0.05 * coarse / coarse.std(), 0, 1) * inside
    brown = np.clip(0.6 * (coarse / coarse.std() > 0.6) + 0.1 * fine / fine.std(), 0, 1) * inside
    return nuclei, stroma, brown * (brown > 0.15)


def save(path: Path, amounts: list[tuple[Doubles, tuple[float, ...]]], degrees: float = 0.0) -> Path:
    """A slide with these dyes, turned about its middle."""
    density = sum(amount[..., None] * np.array(dye) for amount, dye in amounts)
    noise = np.random.default_rng(0).normal(0, 1.0, (*SHAPE, 3))
    pixels = np.clip(WHITE * 10.0**-density + noise, 0, 255).astype(np.uint8)
    fill = (int(WHITE),) * 3
    turned: Pixels = np.asarray(Image.fromarray(pixels).rotate(-degrees, Image.Resampling.BICUBIC, fillcolor=fill))
    how = {"photometric": "rgb", "tile": (256, 256), "resolution": (1e4 / UM, 1e4 / UM), "resolutionunit": 3}
    tifffile.imwrite(path, turned, **how)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """H&E, the real DAB turned by 70°, a perfect translation, a pale one, other tissue, and a registration."""
    place = tmp_path_factory.mktemp("pair")
    nuclei, stroma, brown = layers()
    save(place / "he.tif", [(nuclei, HAEMATOXYLIN), (stroma, EOSIN)])
    save(place / "real.tif", [(nuclei * 0.7, HAEMATOXYLIN), (brown, DAB)], 70)
    save(place / "good.tif", [(nuclei * 0.7, HAEMATOXYLIN), (brown, DAB)])
    save(place / "half.tif", [(nuclei * 0.7, HAEMATOXYLIN), (brown * (np.arange(SHAPE[1]) < 310), DAB)])
    other = layers(99)
    save(place / "other.tif", [(other[0] * 0.7, HAEMATOXYLIN), (other[2], DAB)])
    save(place / "blank.tif", [(0 * nuclei, HAEMATOXYLIN)])
    register(place, "--picture", place / "pair.png", "--warped", place / "warped.tif")
    return place


def register(place: Path, *options: object) -> str:
    return succeed("register", place / "he.tif", place / "real.tif", "-o", place / "pair.json", *options)


def scores(place: Path, translated: str, *options: object) -> dict[tuple[int, str], dict[str, float]]:
    against = ("--against", place / "real.tif", "--registration", place / "pair.json", "--source", place / "he.tif")
    found = json.loads(succeed("validate", place / translated, *against, "--json", *options))
    return {(score["um"], score["name"]): score for score in found["scores"]}


def test_the_registered_slide_lies_on_the_source(folder: Path) -> None:
    warped, good = (tifffile.imread(folder / name) for name in ("warped.tif", "good.tif"))
    inside = ndimage.binary_erosion(good.min(axis=-1) < 200, iterations=8)
    one, other = (ndimage.gaussian_filter(p.mean(axis=-1), 2)[inside] for p in (warped, good))
    assert np.corrcoef(one, other)[0, 1] > 0.97
    sheet = np.asarray(Image.open(folder / "pair.png"))
    assert sheet.shape[1] == 2 * 320 + 8
    record = json.loads((folder / "pair.json").read_text())
    assert record["pieces"][0]["degrees"] == pytest.approx(70, abs=2)


def test_a_perfect_translation_beats_half_of_one_chance_and_the_recoloured_source(folder: Path) -> None:
    good, half = scores(folder, "good.tif"), scores(folder, "half.tif")
    for name in ("dice", "pearson", "auc"):
        perfect = good[64, name]
        assert perfect["value"] > 0.9
        assert perfect["value"] > half[64, name]["value"] + 0.04
        assert perfect["value"] > perfect["recoloured"] + 0.2
        assert perfect["value"] > perfect["chance"] + 0.3
    assert good[64, "density_ratio"]["value"] == pytest.approx(1, abs=0.1)
    assert half[64, "integrated_ratio"]["value"] < 0.75


def test_table_page_csv_and_geojson_say_the_same(folder: Path, tmp_path: Path) -> None:
    files = ("--report", tmp_path / "page.html", "--csv", tmp_path / "a.csv", "--geojson", tmp_path / "a.geojson")
    found = scores(folder, "good.tif", *files)
    with (tmp_path / "a.csv").open() as file:
        rows = {(int(row["area_um"]), row["figure"]): row for row in csv.DictReader(file)}
    assert float(rows[128, "dice"]["value"]) == found[128, "dice"]["value"]
    page = (tmp_path / "page.html").read_text()
    assert f"{found[128, 'pearson']['value']:.3f}" in page
    assert page.count("<img") >= 12
    assert page.count("ROC curve of areas of") == 4
    with (tmp_path / "a.csv").open() as file:
        curve = [row for row in csv.DictReader(file) if (row["area_um"], row["figure"]) == ("128", "roc_translation")]
    across, up = ([float(row[name]) for row in curve] for name in ("false_positive_rate", "value"))
    assert np.trapezoid(up, across) == pytest.approx(found[128, "auc"]["value"], abs=1e-3)
    areas = json.loads((tmp_path / "a.geojson").read_text())["features"]
    view = open_source(folder / "good.tif")
    with view.slide:
        mask = load_mask(tmp_path / "a.geojson", view)
    assert mask.tissue_fraction * 560 * 640 == pytest.approx(len(areas) * 32**2, rel=0.05)
    ours = [area["properties"]["measurements"]["density translation"] for area in areas]
    theirs = [area["properties"]["measurements"]["density real"] for area in areas]
    assert np.corrcoef(ours, theirs)[0, 1] == pytest.approx(found[128, "pearson"]["value"], abs=1e-3)


def test_strangers_are_told_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    he, real, out = folder / "he.tif", folder / "real.tif", ("-o", tmp_path / "x.json")
    Image.open(real).save(tmp_path / "nompp.png")
    cases = [
        (("register", he, folder / "other.tif", *out), "no piece of he.tif is found in it", 1),
        (("register", he, folder / "blank.tif", *out), "no tissue in it", 1),
        (("register", tmp_path / "nompp.png", tmp_path / "nompp.png", *out), "neither states a pixel size", 1),
        (("register", he, real, *out, "--landmarks", tmp_path / "absent.csv", he), "absent.csv: no such file", 1),
        (("register", he, tmp_path / "absent.tif", *out), "no such file", 1),
        (("register", he, real, "-o", tmp_path / "x.tif"), "write .json", 2),
        (("register", he, real, "-o", folder / "pair.json"), "exists already", 1),
        (("validate", he, "--against", real, "--registration", he), "neither JSON nor text", 1),
        (("validate", he, "--against", real, "--stain", "blue"), "is not a stain", 2),
        (("validate", he, "--against", folder / "blank.tif", "--registration", folder / "pair.json"), "no tissue", 1),
        (("validate", he, "--against", real, "--csv", real), "is a file of the real slide", 2),
    ]
    for arguments, said, code in cases:
        result = kin(*arguments)  # lines of progress may come first
        last = result.err.strip().splitlines()[-1]
        assert (result.code, said in last, "Traceback" in result.err) == (code, True, False), result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nompp.png"]


def test_a_translation_of_a_region_is_compared_where_it_lies(folder: Path, tmp_path: Path) -> None:
    write_generator(tmp_path / "tiny.safetensors")
    region, options = "128,112,352,320", ("--patch-size", 64, "--halo", 0, "-m", tmp_path / "tiny.safetensors")
    succeed("translate", folder / "he.tif", "-o", tmp_path / "part.tif", "--region", region, *options)
    against = ("--against", folder / "real.tif", "--registration", folder / "pair.json", "--source", folder / "he.tif")
    result = kin("validate", tmp_path / "part.tif", *against, "--json")
    assert (result.code, "shows the region 128,112,352,320" in result.err) == (0, True), result.err
    part = {(score["um"], score["name"]): score for score in json.loads(result.out)["scores"]}
    # the source, recoloured, has the right cells in the right places, and so it has in the part of it
    whole = scores(folder, "he.tif")
    assert part[32, "nuclei_pearson"]["recoloured"] == pytest.approx(whole[32, "nuclei_pearson"]["recoloured"], abs=0.1)
    assert part[32, "nuclei_pearson"]["recoloured"] > 0.4


def test_a_pixel_size_that_is_missing_or_wrong_is_found(folder: Path, tmp_path: Path) -> None:
    Image.open(folder / "real.tif").save(tmp_path / "real.png")
    for options, said in (((), "real.png states no pixel size"), (("--real-mpp", 5.2), "do not fit: the sections do")):
        output = tmp_path / f"pair{len(options)}.json"
        result = kin("register", folder / "he.tif", tmp_path / "real.png", "-o", output, "--affine", *options)
        assert (result.code, said in result.err) == (0, True), result.err
        record, known = (json.loads(file.read_text()) for file in (output, folder / "pair.json"))
        ours, theirs = (
            np.array(one["pieces"][0]["matrix_um"]) @ [1240.0, 1120.0, 1.0] / one["real"]["mpp"]
            for one in (record, known)
        )
        assert np.hypot(*(ours - theirs)) * UM < 16
        assert record["real"]["mpp"] == pytest.approx(options[1] if options else UM, rel=0.04)


def test_a_matrix_of_another_program_is_enough(folder: Path, tmp_path: Path) -> None:
    record = json.loads((folder / "pair.json").read_text())
    matrix = np.array(record["pieces"][0]["matrix_um"])
    matrix[:, 2] /= UM
    (tmp_path / "qupath.txt").write_text("\n".join(", ".join(f"{v:.6f}" for v in row) for row in matrix))
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    np.save(tmp_path / "inverse.npy", inverse[:2])
    against = ("--against", folder / "real.tif", "--registration", tmp_path / "qupath.txt", "--json")
    found = json.loads(succeed("validate", folder / "good.tif", *against))
    values = {(score["um"], score["name"]): score for score in found["scores"]}
    assert values[64, "pearson"]["value"] > 0.8
    assert values[64, "pearson"]["recoloured"] is None
    assert "states no error of its own" in " ".join(found["notes"])
    other = kin("validate", folder / "good.tif", *against[:2], "--registration", tmp_path / "inverse.npy")
    assert (other.code, "it maps the other way" in other.err) == (1, True)
