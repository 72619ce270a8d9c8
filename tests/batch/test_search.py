"""What a batch finds in folders, and that it tells what it leaves out."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from kin_cli.batch import search as batch_search
from kin_cli.batch.search import Search, find_tasks
from kin_cli.errors import InputError, UsageError

OUT = Path("out")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def write_dicom(path: Path, series: bytes) -> None:
    """The beginning of a DICOM file of a series, as far as it is looked at."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tag = b"\x20\x00\x0e\x00UI" + len(series).to_bytes(2, "little") + series
    path.write_bytes(bytes(128) + b"DICM" + tag + bytes(50))


def found(folder: Path, search: Search, output: Path = OUT) -> list[tuple[str, str]]:
    tasks = find_tasks([folder], output, search).tasks
    return [(str(task.slide.relative_to(folder)), str(task.output.relative_to(output))) for task in tasks]


def slides(folder: Path, search: Search, output: Path = OUT) -> list[str]:
    return [slide for slide, _ in found(folder, search, output)]


DEEP = Search(recursive=True)


def test_folders_are_searched_for_slides_and_nothing_else(tmp_path: Path) -> None:
    touch(tmp_path, "b.SVS", "a.ome.tif", "._a.svs", "notes.txt", "b.kin.ome.tif", "thumb.png", "sub/c.ndpi")
    touch(tmp_path, "a.kin.ome.tif.kin-work/x.tif", ".hidden/x.svs", "b.kin.ome.tif.json", "b.kin.ome.tif.report.html")
    assert found(tmp_path, Search()) == [("a.ome.tif", "a.kin.ome.tif"), ("b.SVS", "b.kin.ome.tif")]
    deep = found(tmp_path, Search.of((), recursive=True))
    assert deep[2:] == [("sub/c.ndpi", "sub/c.kin.ome.tif")]
    assert found(tmp_path, Search.of((".PNG",), recursive=False)) == [("thumb.png", "thumb.kin.ome.tif")]


@pytest.mark.parametrize("given", [("svs", "ndpi"), (".SVS", "*.ndpi"), ("svs,ndpi",), ("svs .ndpi",)])
def test_endings_as_people_write_them(given: tuple[str, ...]) -> None:
    assert Search.of(given, recursive=False).extensions == (".svs", ".ndpi")
    with pytest.raises(UsageError, match="names no ending"):
        Search.of(("*",), recursive=False)


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "b.qptiff", "c.QPTIFF", "x.png", "LICENSE", "old.kin.ome.tif", "sub/d.svs", ".DS_Store")
    assert find_tasks([tmp_path], OUT, Search()).notes == (
        "left out: 2 .qptiff, 1 without ending, 1 .png (see --ext)",
        "left out: 1 output of kin (.kin.ome.tif)",
        "not searched: 1 sub-folder (see --recursive)",
    )
    touch(tmp_path, *(f"x.{number}" for number in range(20)))
    assert find_tasks([tmp_path], OUT, DEEP).notes[0].endswith("and 11 more kinds (see --ext)")


def test_hidden_slides_and_work_folders_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", ".b.svs", "._a.svs", ".trash/c.svs", ".git/config", "x.kin.ome.tif.kin-work/begun.json")
    assert find_tasks([tmp_path], OUT, DEEP).notes == (
        "left out: 1 work folder of kin (*.kin-work)",
        "left out: 3 hidden slides or folders of slides (.*)",
    )


def test_outputs_of_a_batch_are_no_input_of_the_next(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "out/x.kin.ome.tif", "out/kin-batch/status.csv")
    assert find_tasks([tmp_path], tmp_path / "out", DEEP).notes == ()
    touch(tmp_path, "out/x.tif")
    assert found(tmp_path, DEEP, tmp_path / "out") == [("a.svs", "a.kin.ome.tif")]
    (note,) = find_tasks([tmp_path], tmp_path / "out", DEEP).notes
    assert note == f"{tmp_path / 'out'}: not searched, since the outputs go there"
    touch(tmp_path, "kin-batch/runs/x.tif")
    assert slides(tmp_path, DEEP, tmp_path) == ["a.svs", "out/x.tif"]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    store, top = tmp_path / "store", tmp_path / "top"
    touch(store, "s.svs", "deep/t.svs")
    touch(top, "real/r.svs")
    for link, target in (("a", store), ("b", store), ("real/up", top), ("z", top / "real"), ("a2", store / "deep")):
        (top / link).symlink_to(target)
    (store / "loop").symlink_to(store)
    assert sorted(slides(top, DEEP)) == ["a/deep/t.svs", "a/s.svs", "real/r.svs"]
    assert find_tasks([top], OUT, DEEP).notes == ()
    assert find_tasks([top / "real"], OUT, Search()).notes == ("not searched: 1 sub-folder (see --recursive)",)


def test_a_slide_is_taken_once_and_that_is_noted(tmp_path: Path) -> None:
    touch(tmp_path, "b.svs", "sub/c.svs")
    (tmp_path / "a.svs").symlink_to(tmp_path / "b.svs")
    assert slides(tmp_path, Search()) == ["b.svs"]
    assert find_tasks([tmp_path], OUT, Search()).notes[0] == (
        f"{tmp_path / 'a.svs'}: the same slide as {tmp_path / 'b.svs'}, translated once"
    )
    many = find_tasks([tmp_path, tmp_path / "b.svs", tmp_path / "sub"], OUT, DEEP)
    assert [task.slide.name for task in many.tasks] == ["b.svs", "c.svs"]
    assert many.notes[1] == f"{tmp_path / 'b.svs'}: given more than once, translated once"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "case.svs").symlink_to(tmp_path / "b.svs")
    assert slides(elsewhere, Search()) == ["case.svs"]


def test_one_slide_for_each_dicom_series_of_a_folder(tmp_path: Path) -> None:
    for name, series in (
        ("one/1.dcm", b"1.2.3"),
        ("one/2.dcm", b"1.2.4"),
        ("one/3.DCM", b"1.2.3"),
        ("two/1.dcm", b"1.2.3"),
    ):
        write_dicom(tmp_path / name, series)
    touch(tmp_path, "one/x.svs", "one/broken.dcm")
    assert slides(tmp_path, DEEP) == ["one/1.dcm", "one/2.dcm", "one/broken.dcm", "one/x.svs", "two/1.dcm"]
    files = [tmp_path / "one" / name for name in ("3.DCM", "1.dcm", "2.dcm")]
    named = find_tasks(files, OUT, Search())
    assert [task.slide.name for task in named.tasks] == ["3.DCM", "2.dcm"]
    assert named.notes == (f"{files[1]}: the same slide as {files[0]}, translated once",)


def test_data_of_mirax_and_pictures_of_hamamatsu_are_parts_of_a_slide(tmp_path: Path) -> None:
    touch(tmp_path, "a.mrxs", "a/Data0001.dat", "a/label.tif", "one.jpg", "two.jpg", "other.jpg")
    (tmp_path / "b.vms").write_text("[Virtual Microscope Specimen]\nImageFile=one.jpg\nMapFile=two.jpg\n")
    assert slides(tmp_path, DEEP) == ["a.mrxs", "b.vms"]
    assert find_tasks([tmp_path], OUT, DEEP).notes == (
        f"{tmp_path / 'a'}: not searched, since it holds the data of a.mrxs",
        "left out: 1 .jpg (see --ext)",
    )
    (tmp_path / "a" / "label.tif").unlink()
    touch(tmp_path, "c.mrxs", "c/d.svs")
    assert slides(tmp_path, DEEP) == ["a.mrxs", "b.vms", "c.mrxs", "c/d.svs"]
    assert find_tasks([tmp_path], OUT, DEEP).notes == ("left out: 1 .jpg (see --ext)",)
    assert slides(tmp_path, Search.of(("jpg",), recursive=True)) == ["other.jpg"]


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.svs", "closed/b.svs")
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(batch_search.os, "scandir", refusing)
    read = find_tasks([tmp_path], OUT, DEEP)
    assert [task.slide.name for task in read.tasks] == ["a.svs"]
    assert read.unreadable == (f"{tmp_path / 'closed'}: cannot be searched: Permission denied",)
    with pytest.raises(InputError, match="closed: cannot be searched"):
        find_tasks([tmp_path / "closed"], OUT, DEEP)


def test_a_broken_link_and_a_fifo_are_slides_that_will_fail(tmp_path: Path) -> None:
    (tmp_path / "gone.svs").symlink_to(tmp_path / "absent.svs")
    os.mkfifo(tmp_path / "pipe.dcm")
    os.mkfifo(tmp_path / "pipe.vms")
    assert slides(tmp_path, Search()) == ["gone.svs", "pipe.dcm", "pipe.vms"]


def test_finding_nothing_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt")
    with pytest.raises(UsageError, match="no slide found") as caught:
        find_tasks([tmp_path], OUT, Search())
    assert "left out: 1 .txt" in str(caught.value.hint)
    with pytest.raises(UsageError, match="absent: no such file"):
        find_tasks([tmp_path / "absent"], OUT, Search())
