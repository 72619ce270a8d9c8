"""What finished files tell of how they were made, against the command line that made them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tifffile
from PIL import Image

from kin_cli.geometry import Box
from kin_cli.pyramid.provenance import provenance
from tests.helpers.processes import kin
from tests.helpers.slides import write_slide


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_generator: Path) -> Path:
    """A slide and its translations in every format: a region in patches of 64 px."""
    folder = tmp_path_factory.mktemp("made")
    slide = write_slide(folder / "slide.tif", width=300, height=300)
    for name in ("out.ome.tif", "out.tif", "out.png", "out.jpg"):
        options = ("--patch-size", 64, "--region", "20,10,256,192", "--tissue", "none", "-j", 1)
        done = kin("translate", slide, "-m", tiny_generator, "-o", folder / name, *options)
        assert done.code == 0, done.err
    return folder


@pytest.mark.parametrize("name", ["out.ome.tif", "out.tif", "out.png", "out.jpg"])
def test_every_output_tells_what_made_it(folder: Path, name: str) -> None:
    made = provenance(folder / name)
    assert made is not None
    assert (made.slide, made.patch_px, made.level, made.mpp) == ("slide.tif", 64, 0, None)
    assert made.region == Box(20, 10, 256, 192)
    assert made.value("kernel") == "gaussian:7"
    assert made.is_from(folder / "slide.tif")
    assert not made.is_from(folder / name)
    assert made.record == json.loads((folder / f"{name}.json").read_text())


def test_a_tiff_tells_it_without_its_record_and_a_png_does_not(folder: Path, tmp_path: Path) -> None:
    for name in ("out.ome.tif", "out.png"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    made = provenance(tmp_path / "out.ome.tif")
    assert made is not None
    assert (made.patch_px, made.record) == (64, None)
    assert provenance(tmp_path / "out.png") is None


def test_the_record_of_another_file_tells_nothing(folder: Path, tmp_path: Path) -> None:
    Image.open(folder / "out.png").rotate(90).save(tmp_path / "out.png")
    (tmp_path / "out.png.json").write_text((folder / "out.png.json").read_text())
    assert provenance(tmp_path / "out.png") is None
    record = json.loads((folder / "out.ome.tif.json").read_text())
    record["settings"]["kernel"] = "global"
    (tmp_path / "out.ome.tif").write_bytes((folder / "out.ome.tif").read_bytes())
    (tmp_path / "out.ome.tif.json").write_text(json.dumps(record))
    made = provenance(tmp_path / "out.ome.tif")
    assert made is not None
    assert (made.value("kernel"), made.record) == ("gaussian:7", None)


def test_what_others_made_tells_nothing(folder: Path, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "other.tif", tifffile.imread(folder / "slide.tif"), photometric="rgb")
    (tmp_path / "empty.tif").write_bytes(b"")
    (tmp_path / "words.tif").write_bytes(b"II*\0")
    for name in ("other.tif", "empty.tif", "words.tif", "nothing.tif"):
        assert provenance(tmp_path / name) is None


@pytest.mark.parametrize(
    "told", ['"1,2,3,4"', "[1, 2, 3]", "[1, 2, 0, 4]", "[-1, 2, 3, 4]", "[1, true, 3, 4]", "nonsense"]
)
def test_a_region_that_is_none_is_not_believed(folder: Path, tmp_path: Path, told: str) -> None:
    with tifffile.TiffFile(folder / "out.ome.tif") as tiff:
        whole = tiff.pages.first.description
    text = whole.replace("[20, 10, 256, 192]", told)
    assert text != whole
    pixels = tifffile.imread(folder / "out.ome.tif")
    tifffile.imwrite(tmp_path / "a.tif", pixels, description=text.encode(), metadata=None, photometric="rgb")
    made = provenance(tmp_path / "a.tif")
    assert made is not None
    assert made.region is None
