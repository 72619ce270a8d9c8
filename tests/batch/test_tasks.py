"""What a batch finds and refuses before any work: slides, manifests and collisions."""

from __future__ import annotations

from pathlib import Path

import pytest

from kin_cli.batch.tasks import Search, SlideTask, find_tasks, read_manifest, refuse_collisions
from kin_cli.errors import UsageError

OUT = Path("out")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def found(folder: Path, search: Search, output: Path = OUT) -> list[tuple[str, str]]:
    tasks = find_tasks([folder], output, search)
    return [(str(task.slide.relative_to(folder)), str(task.output.relative_to(output))) for task in tasks]


def test_folders_are_searched_for_slides_and_nothing_else(tmp_path: Path) -> None:
    touch(tmp_path, "b.SVS", "a.ome.tif", "._a.svs", "notes.txt", "b.kin.ome.tif", "thumb.png", "sub/c.ndpi")
    touch(tmp_path, "a.kin.ome.tif.kin-work/x.tif", ".hidden/x.svs")
    assert found(tmp_path, Search()) == [("a.ome.tif", "a.kin.ome.tif"), ("b.SVS", "b.kin.ome.tif")]
    deep = found(tmp_path, Search.of((), recursive=True))
    assert deep[2:] == [("sub/c.ndpi", "sub/c.kin.ome.tif")]
    assert found(tmp_path, Search.of((".PNG",), recursive=False)) == [("thumb.png", "thumb.kin.ome.tif")]


def test_outputs_of_a_batch_are_no_input_of_the_next(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "out/x.tif")
    assert found(tmp_path, Search(recursive=True), tmp_path / "out") == [("a.svs", "a.kin.ome.tif")]


def test_the_dicom_files_of_a_folder_are_one_slide(tmp_path: Path) -> None:
    touch(tmp_path, "one/2.dcm", "one/1.dcm", "one/x.svs", "two/1.dcm")
    assert [slide for slide, _ in found(tmp_path, Search(recursive=True))] == ["one/1.dcm", "one/x.svs", "two/1.dcm"]


def test_finding_nothing_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt")
    with pytest.raises(UsageError, match="no slide found"):
        find_tasks([tmp_path], OUT, Search())
    with pytest.raises(UsageError, match="absent: no such file"):
        find_tasks([tmp_path / "absent"], OUT, Search())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (SlideTask(Path("a.svs"), OUT / "a.tif"), SlideTask(Path("b/a.svs"), OUT / "a.tif")),
        (SlideTask(Path("a.svs"), OUT / "A.tif"), SlideTask(Path("b.svs"), OUT / "a.tif")),
        (SlideTask(Path("a.svs"), OUT / "a.tif"), SlideTask(Path("b.svs"), OUT / "a.png")),  # both records are a.json
        (SlideTask(Path("a.svs"), OUT / "x.tif"), SlideTask(Path("b.svs"), OUT / "sub" / ".." / "x.tif")),
    ],
)
def test_two_slides_never_write_one_file(first: SlideTask, second: SlideTask) -> None:
    refuse_collisions([first, first])
    with pytest.raises(UsageError, match="would both be written to"):
        refuse_collisions([first, second])


def test_a_slide_is_never_replaced() -> None:
    with pytest.raises(UsageError, match="is a slide of this batch"):
        refuse_collisions([SlideTask(Path("a.tif"), OUT / "a.tif"), SlideTask(Path("b.tif"), Path("a.tif"))])


def manifest(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "slides.csv"
    file.write_bytes(text.encode("utf-8-sig"))
    return file


def test_a_manifest_says_what_it_says(tmp_path: Path) -> None:
    text = 'WSI, mpp,output,model,mask,label\na.svs,0.25,x.ome.tif,m.pth,masks/a.png,1\n,,,,,\n"/abs/b c.svs",,,,,\n'
    read = read_manifest(manifest(tmp_path, text), slides=None, outputs=OUT)
    first = SlideTask(tmp_path / "a.svs", OUT / "x.ome.tif", 0.25, tmp_path / "m.pth", tmp_path / "masks/a.png")
    assert read.tasks == (first, SlideTask(Path("/abs/b c.svs"), OUT / "b c.kin.ome.tif"))
    assert read.ignored == ("label",)


def test_slides_of_a_manifest_may_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    read = read_manifest(manifest(tmp_path, "wsi;mpp\r\na.svs;0.5\r\n"), slides=Path("slides"), outputs=OUT)
    assert read.tasks == (SlideTask(Path("slides/a.svs"), OUT / "a.kin.ome.tif", 0.5),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'wsi'"),
        ("slide,mpp\na.svs,1\n", "columns: slide, mpp"),
        ("wsi,mpp\n", "lists no slide"),
        ("wsi,mpp\na.svs,0.5\nb.svs,fine\n", "line 3: 'fine' is not a pixel size"),
        ("wsi,mpp\na.svs,-1\n", "line 2: '-1'"),
        ("wsi,mpp\n,0.5\n", "line 2: names no slide"),
    ],
)
def test_a_bad_manifest_is_told_by_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_manifest(manifest(tmp_path, text), slides=None, outputs=OUT)


def test_a_manifest_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.csv: cannot be read"):
        read_manifest(tmp_path / "absent.csv", slides=None, outputs=OUT)
    (tmp_path / "binary.csv").write_bytes(b"wsi\n\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8 text"):
        read_manifest(tmp_path / "binary.csv", slides=None, outputs=OUT)
