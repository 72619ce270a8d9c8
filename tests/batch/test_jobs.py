"""What a batch finds and refuses before any work: slides, manifests, collisions, parts, the plan that parts share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kin_cli.batch.jobs import Search, SlideTask, find_tasks, read_manifest, refuse_collisions
from kin_cli.batch.run import SlideStatus, Status, agree_on_slides
from kin_cli.batch.shard import ARRAY_VARIABLES, Shard
from kin_cli.errors import OutputError, UsageError

OUT = Path("out")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def found(folder: Path, search: Search, output: Path = OUT) -> list[tuple[str, str]]:
    jobs = find_tasks([folder], output, search)
    return [(str(job.slide.relative_to(folder)), str(job.output.relative_to(output))) for job in jobs]


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
    assert read.jobs == (first, SlideTask(Path("/abs/b c.svs"), OUT / "b c.kin.ome.tif"))
    assert read.ignored == ("label",)


def test_slides_of_a_manifest_may_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    read = read_manifest(manifest(tmp_path, "wsi;mpp\r\na.svs;0.5\r\n"), slides=Path("slides"), outputs=OUT)
    assert read.jobs == (SlideTask(Path("slides/a.svs"), OUT / "a.kin.ome.tif", 0.5),)


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


@given(st.integers(1, 9), st.lists(st.integers(0, 5), max_size=40))
def test_shares_divide_items_and_rows(total: int, work: list[int]) -> None:
    fractions = [Shard(index, total) for index in range(1, total + 1)]
    assert sorted(item for shard in fractions for item in shard.of(range(len(work)))) == list(range(len(work)))
    rows = [shard.rows(work) for shard in fractions]
    assert [row for part in rows for row in part] == list(range(len(work)))
    fair = sum(work) / total
    assert all(sum(work[row] for row in part) <= fair + max(work) for part in rows if part)


@pytest.mark.parametrize("name", ARRAY_VARIABLES)
def test_auto_takes_the_index_from_the_scheduler_and_never_the_total(name: str) -> None:
    environment = {"SLURM_ARRAY_TASK_COUNT": "1", name: "3"}
    assert Shard.parse("auto/16", environment) == Shard(3, 16)
    assert Shard.parse("5/16", environment) == Shard(5, 16)


@pytest.mark.parametrize("text", ["3", "0/4", "5/4", "3/0", "-1/4", "a/4", "auto", "auto/4", "1/4/2", ""])
def test_parts_that_do_not_exist_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Shard.parse(text, {"SGE_TASK_ID": "undefined", "LSB_JOBINDEX": "0"})
    with pytest.raises(UsageError, match="--array=1-4"):
        Shard.parse("auto/4", {"SLURM_ARRAY_TASK_ID": "0"})


def test_parts_of_one_batch_agree(tmp_path: Path) -> None:
    jobs = [SlideTask(Path(f"{name}.svs"), OUT / f"{name}.tif") for name in "abc"]
    for index in (1, 2, 1):
        agree_on_slides(tmp_path, jobs, Shard(index, 2))
    with pytest.raises(UsageError, match="begun in 2 parts, not 1") as caught:
        agree_on_slides(tmp_path, jobs, Shard(1, 1))
    assert "plan.json" in str(caught.value.hint)
    with pytest.raises(UsageError, match=r"not those that this batch was begun with, such as c\.svs"):
        agree_on_slides(tmp_path, jobs[:2], Shard(1, 2))
    with pytest.raises(UsageError, match="their order is another"):
        agree_on_slides(tmp_path, jobs[::-1], Shard(1, 2))
    (tmp_path / "plan.json").write_text('{"parts": 2')
    with pytest.raises(OutputError, match="is damaged"):
        agree_on_slides(tmp_path, jobs, Shard(1, 2))


def test_the_status_is_whole_in_both_files(tmp_path: Path) -> None:
    status = Status(
        tmp_path, "status", [SlideTask(Path("a, \udcff.svs"), OUT / "a.tif"), SlideTask(Path("b.svs"), OUT / "b.tif")]
    )
    status.rows[0].status, status.rows[0].reason = "failed", 'it said "no",\nand died'
    status.save()
    csv, summary = ((tmp_path / f"status.{kind}").read_bytes() for kind in ("csv", "json"))
    assert csv.startswith(b"slide,output,status,reason,seconds,width,height,mpp,patches,tiles,unreadable_tiles")
    assert b'"a, \xff.svs"' in csv
    assert json.loads(summary.decode(errors="surrogateescape"))["counts"] == {"failed": 1, "pending": 1}


def test_a_record_makes_a_row() -> None:
    plan = {"size": [10, 20], "mpp": 0.5, "patches_with_tissue": 3, "tiles": 4}
    record = {"plan": plan, "unreadable": {"tiles": 0, "patches": 0}, "output_bytes": 5, "peak_rss_bytes": 6}
    row = SlideStatus("a.svs", "a.tif")
    row.take(record)
    assert (row.status, row.width, row.height, row.patches) == ("done", 10, 20, 3)
    row.take({**record, "skipped": True})
    assert row.status == "skipped"
    row.take({**record, "unreadable": {"tiles": 1, "patches": 0}})
    assert (row.status, row.unreadable_tiles) == ("filled", 1)
