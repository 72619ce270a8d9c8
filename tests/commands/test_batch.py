"""``kin batch``: requests that are refused before any work."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.processes import kin
from tests.helpers.slides import write_slide


def test_bad_requests_are_refused_before_any_work(tmp_path: Path, tiny_generator: Path) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    write_slide(slides / "a.tif", width=130, height=130)
    out = ("-o", tmp_path / "out", "-m", tiny_generator)
    write_slide(slides / "a.tiff", width=130, height=130)
    listed = tmp_path / "slides.csv"
    listed.write_text("wsi,model\nslides/a.tif,absent.pth\n")
    for command, words in {
        ("batch", *out): "no slide was given",
        ("batch", slides, *out): "would both be written to",
        ("batch", slides, *out, "--ext", "ndpi"): "no slide found",
        ("batch", slides / "a.tif", *out, "--patch-size", "30"): "patch size 30",
        ("batch", slides / "a.tif", "-o", tmp_path / "out", "-m", "absent.pth"): "absent.pth: no such file",
        ("batch", "--manifest", listed, *out): "absent.pth: no such file",
        ("batch", slides / "a.tif", "--manifest", listed, *out): "at most one folder",
    }.items():
        result = kin(*command)
        assert (result.code, len(result.err.strip().splitlines())) == (2, 1), result.err
        assert words in result.err
    assert not (tmp_path / "out").exists()
    shown = kin("batch", slides / "a.tif", *out, "--dry-run")
    assert shown.out.strip() == f"{slides / 'a.tif'} → {tmp_path / 'out' / 'a.kin.ome.tif'}"
    assert not (tmp_path / "out").exists()
