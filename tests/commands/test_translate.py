"""``kin translate``: its outputs, its dry run, and one line for bad slides, checkpoints and outputs."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from tests.helpers.processes import assert_refused, kin


def test_a_translation_writes_the_output_its_record_and_nothing_else(picture: Path, tiny_generator: Path) -> None:
    result = kin(
        "translate",
        picture,
        "-m",
        tiny_generator,
        "--patch-size",
        32,
        "--kernel",
        "constant:3",
        "-o",
        picture.parent / "o.ome.tif",
    )
    assert result.code == 0, result.err
    record = json.loads((picture.parent / "o.ome.tif.json").read_text())
    assert record["plan"]["patches"] == 15
    assert record["settings"]["kernel"] == "constant:3"
    assert sorted(p.name for p in picture.parent.iterdir()) == ["o.ome.tif", "o.ome.tif.json", "slide.png"]
    assert kin("check", picture.parent / "o.ome.tif").code == 0


def test_the_default_output_stands_beside_the_slide(picture: Path, tiny_generator: Path) -> None:
    result = kin("translate", picture, "-m", tiny_generator, "--patch-size", 32, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["output"].endswith("slide.kin.ome.tif")
    assert (picture.parent / "slide.kin.ome.tif").exists()
    assert (picture.parent / "slide.kin.ome.tif.json").exists()
    assert_refused(kin("translate", picture, "-m", tiny_generator, "--patch-size", 32), "exists already", "--overwrite")


def test_a_dry_run_shows_the_plan_and_writes_nothing(picture: Path, tiny_generator: Path) -> None:
    result = kin("translate", picture, "-m", tiny_generator, "--patch-size", 32, "--dry-run", "--json")
    plan = json.loads(result.out)
    assert result.code == 0
    assert plan["grid"] == [3, 5]
    assert plan["memory_bound_bytes"] > 0
    assert plan["disk_bytes"] > 0
    assert kin("translate", picture, "-m", tiny_generator, "--patch-size", 32, "--dry-run").out.count("\n") > 8
    assert [p.name for p in picture.parent.iterdir()] == ["slide.png"]


BAD_SLIDES = {
    "text.svs": lambda path: path.write_text("not a slide\n" * 200),
    "empty.svs": lambda path: path.write_bytes(b""),
    "missing.svs": lambda path: None,
    "folder.svs": lambda path: path.mkdir(),
    "broken.png": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)),
}


@pytest.mark.parametrize("name", BAD_SLIDES)
def test_bad_slides_get_one_line(tmp_path: Path, tiny_generator: Path, name: str) -> None:
    BAD_SLIDES[name](tmp_path / name)
    assert_refused(kin("translate", tmp_path / name, "-m", tiny_generator), name, code=1)
    assert not [p for p in tmp_path.iterdir() if p.name != name]


def test_a_slide_cut_in_half_gets_one_line(tmp_path: Path, tiny_generator: Path, shared_data: Path) -> None:
    whole = (shared_data / "CMU-1-Small-Region.svs").read_bytes()
    (tmp_path / "half.svs").write_bytes(whole[: len(whole) // 2])
    result = kin("translate", tmp_path / "half.svs", "-m", tiny_generator)
    assert_refused(result, "half.svs", code=1)
    assert not list(tmp_path.glob("*.tif"))


def test_bad_checkpoints_get_one_line(tmp_path: Path, picture: Path, tiny_generator: Path) -> None:
    other, short, code, text = (tmp_path / f"{name}.pth" for name in ("other", "short", "code", "text"))
    torch.save({"features.0.weight": torch.zeros(8, 3, 3, 3), "classifier.bias": torch.zeros(8)}, other)
    weights = dict(torch.load(tiny_generator, weights_only=True))
    weights.pop("model.1.bias")
    torch.save(weights, short)
    shutil.copy(tiny_generator, code)
    with zipfile.ZipFile(code, "w") as archive:
        archive.writestr("archive/data.pkl", b"cos\nsystem\n(S'touch pwned'\ntR.")
        archive.writestr("archive/version", "3\n")
    text.write_text("hello")
    for file in (other, short, code, text, tmp_path / "missing.pth"):
        assert_refused(kin("translate", picture, "-m", file), file.name, code=1)
    assert not Path("pwned").exists()


def test_bad_outputs_get_one_line(picture: Path, tiny_generator: Path) -> None:
    assert_refused(
        kin("translate", picture, "-m", tiny_generator, "-o", picture.parent / "none" / "o.tif"),
        "no such folder",
        code=1,
    )
    assert_refused(kin("translate", picture, "-m", tiny_generator, "-o", picture.parent / "o.xyz"), "o.xyz", code=2)
    assert_refused(
        kin("translate", picture, "-m", tiny_generator, "-o", picture, "--overwrite"), "a file of the slide", code=2
    )


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here; it refuses files even from root")
def test_an_unwritable_folder_gets_one_line(picture: Path, tiny_generator: Path) -> None:
    assert_refused(kin("translate", picture, "-m", tiny_generator, "-o", "/proc/o.tif"), "/proc", code=1)


def test_what_is_for_kin_batch_is_told_so(tmp_path: Path, tiny_generator: Path) -> None:
    several = kin("translate", "a.svs", "b.svs", "-m", tiny_generator)
    assert_refused(several, "2 slides", "kin batch a.svs b.svs -o FOLDER", code=2)
    assert_refused(kin("translate", tmp_path), "a folder", f"kin batch {tmp_path} -o FOLDER", code=1)
    assert_refused(kin("translate", "a.svs", "--no-such-option"), "--no-such-option", code=2)


def test_addresses_are_told_to_be_no_files(picture: Path, tiny_generator: Path) -> None:
    for words in (("s3://bucket/slide.svs",), (picture, "-o", "gs://bucket/out.tif")):
        run = kin("translate", *words, "-m", tiny_generator)
        assert_refused(run, "copy it here, or mount", code=1)
