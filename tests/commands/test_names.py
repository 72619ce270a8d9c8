"""File names of any bytes and any length, and pipes and devices in the place of files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.helpers.processes import assert_refused, kin
from tests.helpers.translations import SMALL, digest

ODD = [os.fsdecode(b"x\xff y"), "new\nline \"q' \U0001f600", "-dash", "a[1]*?", "é" * 100]


def have_names(folder: Path, name: str) -> bool:
    try:
        (folder / name).touch()
    except OSError:
        return False
    (folder / name).unlink()
    return True


@pytest.mark.parametrize("name", ODD)
def test_any_name_will_do(
    slide: Path, tiny_generator: Path, wanted: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not have_names(tmp_path, name):
        pytest.skip("the file system has no such names")
    monkeypatch.chdir(tmp_path)
    shutil.copy(slide, f"{name}.tif")
    shutil.copy(tiny_generator, f"{name}.pth")
    Path(f"{name}.toml").write_text('paper = true\npatch-size = 128\ntissue = "none"\nworkers = 2\n')
    Image.fromarray(np.full((20, 10), 255, np.uint8)).save(f"{name}.m.png")
    common = ("translate", "-m", f"{name}.pth", "--config", f"{name}.toml", "--table", f"{name}.table", "--json")
    for ending in ("ome.tif", "png"):
        made = kin(*common, "-o", f"{name}.{ending}", "--report", "--", f"{name}.tif")
        assert made.code == 0, made.err
        record = json.loads(made.out)
        assert (record["slide"], record["output"]) == (f"{name}.tif", f"{name}.{ending}")
        assert json.loads(Path(f"{name}.{ending}.json").read_bytes())["output"] == f"{name}.{ending}"
        assert Path(f"{name}.{ending}.report.html").exists()
        assert kin("check", "--", f"{name}.{ending}").code == 0
    with tifffile.TiffFile(f"{name}.ome.tif") as found, tifffile.TiffFile(wanted) as expected:
        np.testing.assert_array_equal(found.asarray(), expected.asarray())
    masked = kin(*common[:-1], "-o", f"{name}.3.tif", "--tissue", f"{name}.m.png", "--", f"{name}.tif")
    assert masked.code == 0, masked.err
    assert json.loads(kin("info", "--json", "--", f"{name}.m.png").out)["size"] == [10, 20]
    again = kin(*common, "-o", f"{name}.ome.tif", "--skip-existing", "--", f"{name}.tif")
    assert (again.code, json.loads(again.out)["skipped"]) == (0, True)


def test_a_safetensors_file_of_any_name(tmp_path: Path) -> None:
    source = Path(__file__).parents[1] / "data" / "generator.safetensors"
    named = tmp_path / os.fsdecode(b"\xff.safetensors")
    try:
        shutil.copy(source, named)
    except OSError:
        pytest.skip("the file system has no such names")
    found, expected = (json.loads(kin("info", "--json", path).out) for path in (named, source))
    assert found == {**expected, "file": str(named)}


@pytest.mark.parametrize("length", [243, 244, 250, 255])
def test_names_up_to_the_longest(slide: Path, tiny_generator: Path, tmp_path: Path, length: int) -> None:
    long = tmp_path / ("s" * (length - 4) + ".tif")
    shutil.copy(slide, long)
    output = tmp_path / ("o" * (length - 8) + ".ome.tif")
    command = ("translate", long, "-m", tiny_generator, "-o", output, *SMALL, "--report")
    assert kin(*command).code == 0
    made = digest(output)
    names = {path.name for path in tmp_path.iterdir()}
    assert len(names) == 4  # slide, output, record, report
    assert max(len(os.fsencode(name)) for name in names) <= 255
    checked = kin("check", output)
    assert (checked.code, "identical to its record" in checked.out) == (0, True)
    with output.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        byte = file.read(1)
        file.seek(-100, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    assert kin("check", output).code == 1  # so the record was found
    assert kin(*command, "--overwrite").code == 0
    assert digest(output) == made


def test_the_default_output_of_a_long_name_is_cut(slide: Path, tiny_generator: Path, tmp_path: Path) -> None:
    for last in "ab":
        long = tmp_path / ("é" * 125 + last + ".tif")
        shutil.copy(slide, long)
        done = kin("translate", long, "-m", tiny_generator, *SMALL, "--report")
        assert done.code == 0, done.err
    made = [path.name for path in tmp_path.iterdir() if path.name.endswith(".kin.ome.tif")]
    assert len(made) == 2
    assert len(list(tmp_path.iterdir())) == 8
    assert max(len(os.fsencode(path.name)) for path in tmp_path.iterdir()) <= 255


def test_a_name_that_no_file_can_have_is_refused(slide: Path, tiny_generator: Path, tmp_path: Path) -> None:
    for name in ("o" * 248 + ".ome.tif", "\0.tif"):
        result = kin("translate", slide, "-m", tiny_generator, "-o", tmp_path / name, *SMALL)
        assert_refused(result)
        assert "internal" not in result.err
    assert list(tmp_path.iterdir()) == []


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [_pipe, _device, Path.mkdir])
@pytest.mark.parametrize("place", ["slide", "model", "--tissue", "--thumbnail", "--config", "--table"])
def test_no_pipe_device_or_folder_is_waited_for(
    slide: Path, tiny_generator: Path, tmp_path: Path, place: str, make: Callable[[Path], None]
) -> None:
    if place == "--table" and make is Path.mkdir:
        pytest.skip("a table is a folder")
    special = tmp_path / "special.pth"
    make(special)
    options = [*SMALL, "--method", "tin"] if place == "--thumbnail" else list(SMALL)
    if place.startswith("-"):
        options += [place, str(special)]
    files = {"slide": slide, "model": tiny_generator, place: special}
    result = kin("translate", files["slide"], "-m", files["model"], "-o", tmp_path / "out.ome.tif", *options)
    assert result.code in (1, 2)
    last = result.err.strip().splitlines()[-1]
    assert "special.pth" in last
    assert "internal" not in last
    assert {path.name for path in tmp_path.iterdir()} == {"special.pth"}


@pytest.mark.parametrize("make", [_pipe, _device])
@pytest.mark.parametrize(
    "name", ["claim-0", "claim.lock", "fingerprint.json", "begun.json", "table-0.dat", "table-0.journal"]
)
def test_nothing_special_in_a_work_folder_is_waited_for(
    slide: Path, tiny_generator: Path, tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    output = tmp_path / "out.ome.tif"
    work = tmp_path / "out.ome.tif.kin-work"
    work.mkdir()
    make(work / name)
    for options in ((), ("--overwrite",)):
        result = kin("translate", slide, "-m", tiny_generator, "-o", output, *SMALL, *options)
        assert_refused(result, str(work / name), "is not a regular file", code=1)
    assert [path.name for path in work.iterdir()] == [name]
