"""Manifests as people and spreadsheets write them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kin_cli.batch.manifest import read_manifest
from kin_cli.batch.tasks import SlideTask, Worklist
from kin_cli.errors import UsageError

OUT = Path("out")


def manifest(tmp_path: Path, text: str | bytes) -> Path:
    file = tmp_path / "slides.csv"
    file.write_bytes(text.encode("utf-8-sig") if isinstance(text, str) else text)
    return file


def read(tmp_path: Path, text: str | bytes, outputs: Path = OUT) -> Worklist:
    return read_manifest(manifest(tmp_path, text), slides=None, outputs=outputs)


def test_a_manifest_says_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for name in ("m.pth", "masks/a.png"):
        (tmp_path / name).touch()
    text = (
        'WSI, mpp,output,model,mask,label\na.svs,0.25,x.ome.tif,m.pth,masks/a.png,1\n,,,,,\n"/abs/b c.svs",,,,none,\n'
    )
    found = read(tmp_path, text)
    first = SlideTask(tmp_path / "a.svs", OUT / "x.ome.tif", 0.25, tmp_path / "m.pth", tmp_path / "masks/a.png")
    assert found.tasks == (first, SlideTask(Path("/abs/b c.svs"), OUT / "b c.kin.ome.tif", mask="none"))
    assert found.notes == (f"{tmp_path / 'slides.csv'}: columns that kin does not know: label",)


def test_slides_of_a_manifest_may_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    found = read_manifest(manifest(tmp_path, "wsi;mpp\r\na.svs;0.5\r\n"), slides=Path("slides"), outputs=OUT)
    assert found.tasks == (SlideTask(Path("slides/a.svs"), OUT / "a.kin.ome.tif", 0.5),)


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfwsi;mpp\r\nsmall.tif;0,5\r\n",
        "wsi\tmpp\nsmall.tif\t0.5\n".encode("utf-16"),
        "wsi\tmpp\nsmall.tif\t0,5\n".encode("utf-16-be"),
        "\ufeffwsi,mpp\nsmall.tif,0.5\n".encode("utf-32"),
        b"sep=;\r\nwsi;mpp\r\nsmall.tif;0,5\r\n",
        b"sep=\t\nwsi\tmpp\nsmall.tif\t.5\n",
        b'"sep=|"\nwsi|mpp\nsmall.tif|5e-1\n',
        b'wsi,mpp\nsmall.tif,"0,5"\n',
        b"wsi,mpp\rsmall.tif,0.50\r",
        b"mpp;WSI;;\n0,5;small.tif;;\n;;;\n",
        b'\n# made by hand, "so it says\n\nwsi , mpp\n\n#old.tif,1\n"small.tif" , +0.5\n  \n',
        b'wsi,label,mpp\n"small.tif","two\n# lines",0.5\n',
        b"wsi,mpp\nsmall.tif,0.5\nsmall.tif,0.5\n./small.tif,0.5\n",
    ],
)
def test_dialects_of_csv(tmp_path: Path, text: bytes) -> None:
    (task,) = read(tmp_path, text).tasks
    assert (task.slide, task.source_mpp) == (tmp_path / "small.tif", 0.5)


def test_rows_that_stand_twice_are_noted_and_two_outputs_of_a_slide_are_fine(tmp_path: Path) -> None:
    rows = "wsi,output\na.svs,1.tif\na.svs,2.tif\n\n# comment\n./a.svs,1.tif\n"
    found = read(tmp_path, rows)
    assert [task.output.name for task in found.tasks] == ["1.tif", "2.tif"]
    file = tmp_path / "slides.csv"
    assert found.notes == (
        f"{file}, line 6: the same as line 2, translated once",
        f"{file}: lines that begin with # are comments: 1",
    )


def test_umlauts_of_windows_and_names_that_are_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "Drüse.svs").touch()
    raw = tmp_path / os.fsdecode(b"Gef\xe4\xdf.svs")
    raw.touch()
    found = read(tmp_path, "wsi\nDrüse.svs\nGefäß.svs\n".encode("cp1252"))
    assert [task.slide for task in found.tasks] == [tmp_path / "Drüse.svs", raw]
    assert found.notes == (f"{tmp_path / 'slides.csv'}: not UTF-8 text, taken as Windows-1252",)


def test_names_of_other_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sub").mkdir()
    for name in ("sub/a.svs", "Dru\u0308se.svs", "odd\\name.svs"):
        (tmp_path / name).touch()
    found = read(tmp_path, "wsi\nsub\\a.svs\nDr\u00fcse.svs\nodd\\name.svs\n~/sub/b.svs\n")
    assert [str(task.slide.relative_to(tmp_path)) for task in found.tasks] == [
        "sub/a.svs",
        "Dru\u0308se.svs",
        "odd\\name.svs",
        "sub/b.svs",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'wsi'"),
        ("slide,mpp\na.svs,1\n", "columns: slide, mpp"),
        ("wsi,mpp\n", "lists no slide"),
        ("wsi,mpp\na.svs,0.5\nb.svs,fine\n", "line 3: 'fine' is not a pixel size"),
        ("wsi,mpp\na.svs,-1\n", "line 2: '-1'"),
        ("wsi,mpp\na.svs,1_0\n", "line 2: '1_0'"),
        ("wsi,mpp\na.svs,nan\n", "line 2: 'nan'"),
        ("wsi,mpp\na.svs,1e-9\n", "line 2: --source-mpp 1e-09 is not within"),
        ("wsi,mpp\n,0.5\n", "line 2: names no slide"),
        ("wsi,mpp\n\n# x\na.svs,0,5\n", "line 4: has 3 fields, but there are 2 columns"),
        ("wsi,mpp,mpp\na.svs,1,2\n", "the column 'mpp' stands twice"),
        ('wsi,mpp\n"a.svs,0.5\nb.svs,0.5\n', "line 2: a quotation mark is never closed"),
        (b"wsi,mpp\nsm\0all.tif,0.5\n", "line 2: holds a NUL byte"),
        ("wsi,output\na.svs,../outside.ome.tif\n", "line 2: the output .* would leave out"),
        ("wsi,output\na.svs,/elsewhere/x.ome.tif\n", "line 2: the output .* would leave out"),
        ("wsi,output\na.svs,sub\\..\\..\\x.ome.tif\n", "line 2: the output .* would leave out"),
        ("wsi,output\na.svs,b.tif.kin-work/x.tif\n", "line 2: the output .* lies in a work folder"),
        ("wsi,output\na.svs,.\n", "line 2: the output .* would leave out"),
        ("wsi,output\na.svs,x.svs\n", "line 2: .*no known ending"),
        ("wsi\ns3://bucket/a.svs\n", "line 2: s3://bucket/a.svs is an address"),
        ("wsi\nC:\\slides\\a.svs\n", "line 2: C:.* is a path of Windows"),
        ("wsi\n\\\\server\\share\\a.svs\n", "line 2: .*a path of Windows"),
        ("wsi,mask\na.svs,\nb.svs,no.png\n", "line 3: .*no.png: no such file"),
        ("wsi,model\na.svs,no.pth\n", "line 2: .*no.pth: no such file"),
        ("wsi,model\na.svs,.\n", "line 2: .*not a regular file"),
        ("wsi\n" + "x" * 200_000 + "\n", "line 2: not a row of a CSV file"),
        (b"PK\x03\x04 and more", "an Excel workbook"),
        (b"\xff\xfew\0s\0i", "damaged UTF-16 text"),
        (b"wsi\n\x81\x8d.svs\n", "neither UTF-8 nor Windows-1252"),
    ],
)
def test_a_bad_manifest_is_told_by_its_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read(tmp_path, text)
    assert "slides.csv" in caught.value.message
    assert "\n" not in str(caught.value)


def test_an_output_leaves_the_folder_by_no_link(tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (out / "sub").symlink_to(elsewhere)
    (out / "file.tif").symlink_to(elsewhere / "file.tif")
    for output in ("sub/x.ome.tif", "file.tif"):
        with pytest.raises(UsageError, match=r"line 2: the output .* would leave"):
            read(tmp_path, f"wsi,output\na.svs,{output}\n", out)
    (tmp_path / "link").symlink_to(out)
    inside = read(tmp_path, f"wsi,output\na.svs,{out / 'x.tif'}\nb.svs,a/../y.tif\n", tmp_path / "link")
    assert [task.output.name for task in inside.tasks] == ["x.tif", "y.tif"]


def test_a_manifest_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.csv: cannot be read"):
        read_manifest(tmp_path / "absent.csv", slides=None, outputs=OUT)
    os.mkfifo(tmp_path / "pipe.csv")
    for path in (tmp_path, tmp_path / "pipe.csv"):
        with pytest.raises(UsageError, match="cannot be read: not a regular file"):
            read_manifest(path, slides=None, outputs=OUT)
