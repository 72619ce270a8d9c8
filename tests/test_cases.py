"""The files that bug reports and public slides led to, as ``shared/cases`` builds them: each with its right value.

Siblings of each kind have tests of their own beside the part that reads them.
"""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from scipy import ndimage

from kin_cli.batch.manifest import read_manifest
from kin_cli.models.checkpoint import load_generator
from kin_cli.slide.mask_file import load_mask
from kin_cli.slide.open import open_slide
from kin_cli.slide.view import open_view
from tests.helpers.processes import assert_refused, kin
from tests.helpers.shared import shared_folder
from tests.helpers.slides import read_all

SMALL = ("--patch-size", "64", "--window", "64", "-j", "2")


def make_cases(*arguments: str, name: str = "cases") -> dict[str, Any]:
    """What the script that builds the cases defines; under the name ``__main__`` it builds them, too."""
    script = shared_folder("cases") / "make_cases.py"
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setattr(sys, "argv", [str(script), *arguments])
        return runpy.run_path(str(script), run_name=name)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders images, masks, manifests, models and damaged."""
    folder = tmp_path_factory.mktemp("cases")
    make_cases(str(folder), name="__main__")
    return folder


def plane(seed: int) -> NDArray[np.uint8]:
    """A channel as the cases have it."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random((256, 320)), 4)
    return ((noise - noise.min()) / (noise.max() - noise.min()) * 250).astype(np.uint8)


RGB = np.stack([plane(seed) for seed in range(3)], -1)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("images/pages_tiled.tif", "5 planes of uint8 in pages of their own, not red, green and blue"),
        ("images/pages_strips.tif", "5 planes of uint8 in pages of their own, not red, green and blue"),
        ("images/fluor5.qptiff", "5 channels of uint8 in pages of their own"),
        ("images/five_samples_16bit.tif", "5 channels per pixel, not red, green and blue"),
        ("images/three_markers.ome.tif", "3 channels of fluorescence (DAPI, FITC, Cy5)"),
        ("images/float32_tiled.tif", "floating-point numbers of 32 bits"),
        ("images/pixels_not_square.tif", "its pixels are not square, 0.25 × 0.5 µm"),
        ("images/all_white.tif", "no tissue in it"),
        ("images/all_black.tif", "no tissue in it"),
        ("damaged/seven_bytes.tif", "not a readable TIFF: it ends too early"),
        ("damaged/one_huge_tile.tif", "one tile of 65520×65520 pixels takes 12.9 GB of memory"),
    ],
)
def test_slides_that_are_refused(cases: Path, tiny_generator: Path, tmp_path: Path, name: str, words: str) -> None:
    before = names_in(cases)
    refused = kin("translate", cases / name, "-m", tiny_generator, "-o", tmp_path / "out.ome.tif", *SMALL)
    assert_refused(refused, words, Path(name).name, code=1)
    assert refused.err.rstrip().endswith(")")  # the way out
    assert names_in(tmp_path) == set()
    assert names_in(cases) == before


def test_slides_that_are_read(cases: Path) -> None:
    images = cases / "images"
    with open_slide(images / "rgb_plus_nir_tiled.tif") as slide:
        pixels = read_all(slide)
        np.testing.assert_array_equal(pixels[100, 100], (125, 104, 185))
        np.testing.assert_array_equal(pixels, RGB)
    with open_slide(images / "rgb_12_bits_in_16.tif") as slide:
        assert np.abs(read_all(slide).astype(int) - RGB.astype(int) * 16 * 255 / 4095).max() <= 1
        assert "12 bits" in slide.notes[0]
    for series, size, shown in ((None, (320, 256), RGB), (0, (96, 64), RGB[:64, :96])):
        with open_slide(images / "label_first.ome.tif", series=series) as slide:
            assert (slide.levels[0].width, slide.levels[0].height) == size
            np.testing.assert_array_equal(read_all(slide), shown)
            assert ("2 pictures" in "".join(slide.notes)) == (series is None)
    with open_slide(images / "fiji_half_um.tif") as slide:
        assert slide.mpp == pytest.approx(0.5)
    with open_slide(images / "fax_group4.tif") as slide:
        squares = (np.indices((256, 320)).sum(0) // 32 % 2 * 255).astype(np.uint8)
        np.testing.assert_array_equal(read_all(slide), np.repeat(squares[..., None], 3, axis=-1))
    for name, size in (("jfif_density_0.jpg", (320, 256)), ("grey_1x1.png", (1, 1))):
        with open_slide(images / name) as slide:
            assert ((slide.levels[0].width, slide.levels[0].height), slide.mpp) == (size, None)


def test_slides_without_tissue_have_a_status_of_their_own(cases: Path, tiny_generator: Path, tmp_path: Path) -> None:
    slides = [cases / "images" / name for name in ("all_white.tif", "all_black.tif")]
    done = kin("batch", *slides, "-m", tiny_generator, "-o", tmp_path, *SMALL)
    assert done.code == 1
    status = json.loads((tmp_path / "kin-batch" / "status.json").read_text())
    assert status["counts"] == {"no tissue": 2}
    assert not list(tmp_path.glob("*.tif"))


def test_an_exchanged_slide(cases: Path, tiny_generator: Path, tmp_path: Path) -> None:
    slide, output = tmp_path / "slide.tif", tmp_path / "out.tif"
    before, after = (cases / "images" / f"exchanged_{name}.tif" for name in ("before", "after"))
    shutil.copyfile(before, slide)
    command = ("translate", slide, "-m", tiny_generator, *SMALL, "--kernel", "constant:3", "-o")
    assert kin(*command, output, "--table", tmp_path / "table").code == 0
    assert kin(*command, tmp_path / "half.tif", "--pass", "measure").code == 0
    shutil.copyfile(after, slide)
    for options in ((output, "--skip-existing"), (tmp_path / "new.tif", "--table", tmp_path / "table")):
        assert_refused(kin(*command, *options), "another slide", "bytes differ", code=1)
    assert_refused(kin(*command, tmp_path / "half.tif"), "another slide", "bytes differ", code=1)
    assert kin(*command, tmp_path / "new.tif").code == 0
    assert kin(*command, output, "--overwrite").code == 0
    with tifffile.TiffFile(output) as found, tifffile.TiffFile(tmp_path / "new.tif") as wanted:
        np.testing.assert_array_equal(found.asarray(), wanted.asarray())


def flags(mask: Path, slide: Path) -> tuple[NDArray[np.bool_], str]:
    with open_slide(slide) as opened:
        found = load_mask(mask, open_view(opened))
        return found.mask, " ".join(found.notes)


def test_masks(cases: Path) -> None:
    masks, slide = cases / "masks", cases / "manifests" / "small.tif"
    left = np.zeros((256, 320), np.bool_)
    left[:, :128] = True
    for name, told in (
        ("polygon_and_point.geojson", "1"),
        ("polygon_and_null.geojson", "1"),
        ("ignored_class.geojson", ""),
        ("mask.tif", ""),
        ("mask.jpg", ""),
    ):
        mask, notes = flags(masks / name, slide)
        np.testing.assert_array_equal(mask, left, err_msg=name)
        assert told in notes
    mask, _ = flags(masks / "bounded.scn.geojson", cases / "images" / "bounded.scn")
    assert mask.sum() == pytest.approx(240 * 176, rel=0.02)
    rows, cols = np.nonzero(mask)
    corners = (cols.min(), cols.max() + 1, rows.min(), rows.max() + 1)
    assert np.abs(np.subtract(corners, (1408 + 40, 1408 + 280, 1024 + 40, 1024 + 216))).max() <= 1


@pytest.mark.parametrize("name", ["decimal_comma", "utf16_tabs", "twice"])
def test_manifests_that_are_read(cases: Path, tmp_path: Path, name: str) -> None:
    manifest = cases / "manifests" / f"{name}.csv"
    found = read_manifest(manifest, slides=None, outputs=tmp_path)
    [task] = found.tasks
    assert (task.slide, task.source_mpp) == (manifest.with_name("small.tif"), 0.5)
    assert len(found.notes) == (name == "twice")


def test_a_slide_that_stands_twice_in_a_manifest(cases: Path, tiny_generator: Path, tmp_path: Path) -> None:
    manifest = cases / "manifests" / "twice.csv"
    done = kin("batch", "--manifest", manifest, "-m", tiny_generator, "-o", tmp_path, *SMALL)
    assert done.code == 0, done.err
    assert f"{manifest}, line 3: the same as line 2, translated once" in done.err
    assert [path.name for path in tmp_path.glob("*.tif")] == ["small.kin.ome.tif"]
    assert json.loads((tmp_path / "small.kin.ome.tif.json").read_text())["settings"]["mpp"] == 0.5


@pytest.mark.parametrize("name", ["leaves_the_folder", "nul"])
def test_manifests_that_are_refused(cases: Path, tiny_generator: Path, tmp_path: Path, name: str) -> None:
    manifest, output = cases / "manifests" / f"{name}.csv", tmp_path / "deep" / "out"
    output.mkdir(parents=True)
    refused = kin("batch", "--manifest", manifest, "-m", tiny_generator, "-o", output, *SMALL)
    assert_refused(refused, f"{name}.csv, line 2", code=2)
    assert names_in(tmp_path) == {"deep", "out"}


def forward(case: Path, **options: Any) -> torch.Tensor:
    """What a generator of the cases makes of a picture that is always the same."""
    torch.manual_seed(3)
    with torch.no_grad():
        result: torch.Tensor = load_generator(case, **options).module(torch.rand(1, 3, 64, 64) * 2 - 1)
    return result


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("running_statistics.pth", "dropped running statistics of 17 norm layers"),
        ("tutorial.pth", "taken from the entry 'model_state_dict'"),
        ("lightning.ckpt", "taken from the entry 'state_dict.netG'"),
        ("numpy_beside.pth", "taken from the entry 'state_dict'"),
        ("with_ema.pth", "took the moving average 'params_ema' instead of 'params'"),
    ],
)
def test_bundles_load_the_one_generator_and_say_which(cases: Path, name: str, note: str) -> None:
    assert any(note in found for found in load_generator(cases / "models" / name).notes)
    if name != "running_statistics.pth":  # all others hold the weights of plain.pth
        torch.testing.assert_close(forward(cases / "models" / name), forward(cases / "models" / "plain.pth"))


@pytest.mark.parametrize("name", ["plain", "spectral_norm", "spectral_norm_parametrized", "zero_padding", "halvings_4"])
def test_generators_equal_their_own_forward(cases: Path, name: str) -> None:
    made = make_cases(str(cases))
    kinds: dict[str, dict[str, Any]] = {
        "spectral_norm": {"wrap": torch.nn.utils.spectral_norm},
        "spectral_norm_parametrized": {"wrap": torch.nn.utils.parametrizations.spectral_norm},
        "zero_padding": {"pad": "zero"},
        "halvings_4": {"width": 4, "halvings": 4},
    }
    path = cases / "models" / f"{name}.pth"
    network = made["generator"](**kinds.get(name, {}))
    network.load_state_dict(torch.load(path, weights_only=True))
    network.eval()
    torch.manual_seed(3)
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        for layer in network.model:
            inside = getattr(layer, "conv_block", None)
            x = layer(x) if inside is None else x + inside(x)
    torch.testing.assert_close(forward(path), x, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("models/norm_none.pth", ("--norm none", "--norm instance")),
        ("models/batchnorm_with_biases.pth", ("--norm batch", "--norm instance")),
        ("models/both_directions.pth", ("netG_A2B", "netG_B2A", "--entry")),
        ("models/g_ab.pth", ("G_AB", "G_BA", "--entry")),
        ("damaged/mpp_abc.safetensors", ("pixel size", "'abc'")),
        ("damaged/mpp_zero.safetensors", ("pixel size", "'0'")),
        ("damaged/mpp_negative.safetensors", ("pixel size", "'-1'")),
    ],
)
def test_generators_that_are_refused(cases: Path, tmp_path: Path, name: str, words: tuple[str, ...]) -> None:
    slide = cases / "manifests" / "small.tif"
    refused = kin("translate", slide, "-m", cases / name, "-o", tmp_path / "out.ome.tif", *SMALL)
    assert_refused(refused, Path(name).name, *words)
    assert names_in(tmp_path) == set()


def test_a_generator_that_overflows_makes_no_picture(cases: Path, tmp_path: Path) -> None:
    model, slide = cases / "damaged" / "overflows.safetensors", cases / "manifests" / "small.tif"
    refused = kin("translate", slide, "-m", model, "-o", tmp_path / "out.ome.tif", *SMALL)
    assert refused.code == 1
    assert "not finite" in refused.err
    assert names_in(tmp_path) == set()
