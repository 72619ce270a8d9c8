"""Nothing that is an input, and nothing that kin did not make, is ever replaced or deleted without being told to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from kin_cli.errors import OutputError, UsageError
from kin_cli.outputs import check_files, write_outputs
from tests.helpers.processes import assert_refused, kin
from tests.helpers.translations import SMALL


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A photograph of 200 × 136 px in an otherwise empty folder."""
    pixels = np.random.default_rng(3).integers(60, 220, (136, 200, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "case1.png")
    return tmp_path / "case1.png"


def test_a_file_of_the_records_name_is_kept(picture: Path, tiny_generator: Path) -> None:
    output = picture.with_name("x.ome.tif")
    mine = picture.with_name("x.ome.tif.json")
    mine.write_text('{"kin": "of my own", "note": 1}')
    assert_refused(kin("translate", picture, "-m", tiny_generator, "-o", output, *SMALL), str(mine), "did not write it")
    assert mine.read_text() == '{"kin": "of my own", "note": 1}'
    assert not output.exists()
    assert kin("translate", picture, "-m", tiny_generator, "-o", output, *SMALL, "--overwrite").code == 0
    assert json.loads(mine.read_text())["schema"] == 1


@pytest.mark.parametrize("left_out", ["schema", "settings", "output_sha256", "slide_files", "output"])
def test_what_only_resembles_a_record_is_kept(picture: Path, tiny_generator: Path, left_out: str) -> None:
    output = picture.with_name("x.ome.tif")
    common = ("translate", picture, "-m", tiny_generator, "-o", output, *SMALL)
    assert kin(*common).code == 0
    mine = picture.with_name("x.ome.tif.json")
    record = json.loads(mine.read_text())
    output.unlink()
    mine.write_text(json.dumps({name: value for name, value in record.items() if name != left_out}))
    before = mine.read_text()
    assert_refused(kin(*common), str(mine), "did not write it")
    assert mine.read_text() == before
    mine.write_text(json.dumps(record))
    assert kin(*common).code == 0


def test_a_record_that_is_nested_too_deeply_is_named(picture: Path, tiny_generator: Path) -> None:
    output, record = picture.with_name("x.png"), picture.with_name("x.png.json")
    common = ("translate", picture, "-m", tiny_generator, "-o", output, *SMALL)
    assert kin(*common).code == 0
    record.write_text("[" * 100_000)
    for options, named in ((("--report",), output), (("--skip-existing",), output), ((), output)):
        assert_refused(kin(*common, *options), str(named), code=1)
    assert "x.png.json is something else" in kin("check", output).out


def test_no_output_goes_into_a_work_folder(picture: Path, tiny_generator: Path) -> None:
    work = picture.with_name("a.tif.kin-work")
    work.mkdir()
    picture.with_name("link").symlink_to(work)
    for place in (work, picture.with_name("link")):
        for options in (("-o", place / "x.tif"), ("-o", picture.with_name("x.tif"), "--table", place / "t")):
            refused = kin("translate", picture, "-m", tiny_generator, *SMALL, *options)
            assert_refused(refused, str(place), "whose content kin removes", code=2)
        assert_refused(kin("batch", picture, "-m", tiny_generator, *SMALL, "-o", place), "kin removes", code=2)
    assert list(work.iterdir()) == []


def test_kin_check_tells_what_it_knows_of_the_record(picture: Path, tiny_generator: Path, tmp_path: Path) -> None:
    output, record = picture.with_name("x.png"), picture.with_name("x.png.json")
    assert kin("translate", picture, "-m", tiny_generator, "-o", output, *SMALL).code == 0
    whole = record.read_bytes()

    def checked(file: Path = output) -> tuple[int, str]:
        done = kin("check", file)
        return done.code, done.out

    assert checked() == (0, f"{output}: sound: identical to its record\n")
    for content in (whole[:-200], whole.replace(b'"schema": 1', b'"schema": null'), whole.replace(b"{", b"", 1)):
        record.write_bytes(content)
        code, said = checked()
        assert (code, "its record x.png.json is damaged" in said) == (1, True)
    record.write_text('{"patient": 7}')
    code, said = checked()
    assert (code, "without its record (x.png.json is something else)" in said) == (0, True)
    record.unlink()
    code, said = checked()
    assert (code, "without its record (there is no x.png.json beside it)" in said) == (0, True)
    renamed = output.rename(tmp_path / "y.png")
    (tmp_path / "y.png.json").write_bytes(whole)
    assert checked(renamed) == (
        0,
        f"{renamed}: sound: identical to its record, of the time when it was named x.png\n",
    )
    shutil.copy(picture, renamed)
    code, said = checked(renamed)
    assert (code, "differs from its record" in said, "is that of x.png" in said) == (1, True, True)
    (tmp_path / "y.png.json").unlink()
    (tmp_path / "y.png.json").mkdir()
    assert checked(renamed)[0] == 1


def test_a_file_of_the_reports_name_is_kept(picture: Path, tiny_generator: Path) -> None:
    output, mine = picture.with_name("x.png"), picture.with_name("x.png.report.html")
    mine.write_text("<html>mine</html>")
    refused = kin("translate", picture, "-m", tiny_generator, "-o", output, *SMALL, "--report")
    assert_refused(refused, str(mine))
    assert mine.read_text() == "<html>mine</html>"


def test_the_names_beside_two_outputs_are_two(picture: Path, tiny_generator: Path) -> None:
    for ending in (".tif", ".ome.tif", ".png"):
        output = picture.with_name(f"t{ending}")
        assert kin("translate", picture, "-m", tiny_generator, "-o", output, *SMALL).code == 0
    names = {path.name for path in picture.parent.iterdir()}
    assert {"t.tif.json", "t.ome.tif.json", "t.png.json"} <= names


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_no_input_is_ever_replaced(picture: Path, tiny_generator: Path, overwrite: tuple[str, ...]) -> None:
    model = picture.with_name("t.png.json")
    shutil.copy(tiny_generator, model)
    before = model.read_bytes()
    refused = kin("translate", picture, "-m", model, "-o", picture.with_name("t.png"), *SMALL, *overwrite)
    assert_refused(refused, str(model), "the generator", code=2)
    mask = picture.with_name("u.png.json")
    mask.write_text('{"type": "Polygon", "coordinates": [[[0, 0], [200, 0], [200, 136], [0, 136]]]}')
    refused = kin(
        "translate",
        picture,
        "-m",
        tiny_generator,
        *SMALL,
        "--tissue",
        mask,
        "-o",
        picture.with_name("u.png"),
        *overwrite,
    )
    assert_refused(refused, str(mask), "the tissue mask", code=2)
    config = picture.with_name("v.png.json")
    config.write_text('patch-size = 64\nkernel = "constant:3"\n')
    refused = kin(
        *("translate", picture, "-m", tiny_generator, "--config", config, "-o", picture.with_name("v.png")), *overwrite
    )
    assert_refused(refused, str(config), "the configuration", code=2)
    linked = picture.with_name("linked.png")
    linked.symlink_to(picture)
    refused = kin("translate", picture, "-m", tiny_generator, "-o", linked, *SMALL, *overwrite)
    assert_refused(refused, "a file of the slide", code=2)
    assert model.read_bytes() == before
    assert Image.open(picture).size == (200, 136)


def test_a_planted_link_as_work_folder_is_not_followed(picture: Path, tiny_generator: Path) -> None:
    precious = picture.parent / "precious"
    precious.mkdir()
    (precious / "data.txt").write_text("years of work")
    (precious / "fingerprint.json").write_text("{}")
    link = picture.with_name("x.ome.tif.kin-work")
    link.symlink_to(precious)
    for extra in ((), ("--overwrite",)):
        refused = kin("translate", picture, "-m", tiny_generator, "-o", picture.with_name("x.ome.tif"), *SMALL, *extra)
        assert_refused(refused, "symbolic link")
    assert sorted(path.name for path in precious.iterdir()) == ["data.txt", "fingerprint.json"]


def test_foreign_files_in_a_work_folder_stop_overwrite(picture: Path, tiny_generator: Path) -> None:
    folder = picture.with_name("x.ome.tif.kin-work")
    (folder / "deeper").mkdir(parents=True)
    (folder / "deeper" / "thesis.doc").write_text("mine")
    (folder / "fingerprint.json").write_text("{}")
    output = picture.with_name("x.ome.tif")
    refused = kin("translate", picture, "-m", tiny_generator, "-o", output, *SMALL, "--overwrite")
    assert_refused(refused, str(folder), "deeper", "kin did not make")
    assert (folder / "deeper" / "thesis.doc").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_work_folder_of_another_user_is_refused(picture: Path, tiny_generator: Path) -> None:
    folder = picture.with_name("x.ome.tif.kin-work")
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    refused = kin("translate", picture, "-m", tiny_generator, "-o", picture.with_name("x.ome.tif"), *SMALL)
    assert_refused(refused, "another user")


def test_a_users_part_file_is_left_alone(picture: Path, tiny_generator: Path) -> None:
    mine = picture.with_name("x.ome.tif.part")
    mine.write_text("a download of mine")
    assert kin("translate", picture, "-m", tiny_generator, "-o", picture.with_name("x.ome.tif"), *SMALL).code == 0
    assert mine.read_text() == "a download of mine"


def exchanged(folder: Path) -> tuple[Path, Path]:
    """Two slides of one size in bytes with other pixels."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(40, 200, (256, 320, 3), np.uint8)
    for name, content in (("before.tif", pixels), ("after.tif", pixels[:, ::-1])):
        tifffile.imwrite(
            folder / name, np.ascontiguousarray(content), photometric="rgb", tile=(128, 128), metadata=None
        )
    before, after = folder / "before.tif", folder / "after.tif"
    assert before.stat().st_size == after.stat().st_size
    return before, after


def test_an_exchanged_slide_is_never_mixed_nor_verified(tmp_path: Path, tiny_generator: Path) -> None:
    before, after = exchanged(tmp_path)
    slide, output, table = tmp_path / "slide.tif", tmp_path / "o.ome.tif", tmp_path / "table"
    shutil.copyfile(before, slide)
    common = ("translate", slide, "-m", tiny_generator, "-o", output, "--tissue", "none", *SMALL)
    assert kin(*common, "--table", table).code == 0
    kept = output.read_bytes()
    shutil.copyfile(after, slide)
    assert_refused(kin(*common, "--skip-existing"), str(output), "another slide")
    assert output.read_bytes() == kept
    other = ("translate", slide, "-m", tiny_generator, "-o", tmp_path / "p.ome.tif", "--tissue", "none", *SMALL)
    assert_refused(kin(*other, "--table", table), str(table), "another slide")
    shutil.copyfile(before, slide)
    os.utime(slide, (1, 1))
    assert kin(*common, "--skip-existing").code == 0


def test_unfinished_work_is_not_continued_on_another_slide(tmp_path: Path, tiny_generator: Path) -> None:
    before, after = exchanged(tmp_path)
    slide, output = tmp_path / "slide.tif", tmp_path / "o.ome.tif"
    shutil.copyfile(before, slide)
    common = ("translate", slide, "-m", tiny_generator, "-o", output, "--tissue", "none", *SMALL)
    assert kin(*common, "--pass", "measure").code == 0
    shutil.copyfile(after, slide)
    assert_refused(kin(*common), "o.ome.tif.kin-work")
    assert not output.exists()
    assert kin(*common, "--overwrite").code == 0
    wanted = tmp_path / "wanted.ome.tif"
    assert kin("translate", slide, "-m", tiny_generator, "-o", wanted, "--tissue", "none", *SMALL).code == 0
    with tifffile.TiffFile(output) as found, tifffile.TiffFile(wanted) as right:
        np.testing.assert_array_equal(found.asarray(), right.asarray())


def test_files_that_cannot_be_written_are_refused_before_any_work(tmp_path: Path) -> None:
    slide, there, folder = tmp_path / "slide.tif", tmp_path / "there.csv", tmp_path / "folder"
    for file in (slide, there):
        file.write_text("mine")
    folder.mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link.csv").symlink_to(slide)
    (tmp_path / "same.csv").hardlink_to(slide)
    (tmp_path / "other").symlink_to(tmp_path)
    inputs = [(slide, "the slide")]
    new = tmp_path / "new.csv"
    check_files([("-o", new), ("--csv", None), ("--json", tmp_path / "more.csv")], inputs, overwrite=False)
    for written, error, match in (
        ([new, new], UsageError, "by --0 and by --1"),
        ([new, tmp_path / "other" / "new.csv"], UsageError, "by --0 and by --1"),
        ([tmp_path / "other" / "slide.tif"], UsageError, "is the slide"),
        ([tmp_path / "link.csv"], UsageError, "is the slide"),
        ([tmp_path / "same.csv"], UsageError, "is the slide"),
        ([tmp_path / "nowhere" / "a.csv"], OutputError, "no such folder"),
        ([folder], OutputError, "is a folder"),
        ([tmp_path / "pipe"], OutputError, "a device or a pipe"),
        ([Path("/dev/null")], OutputError, "a device or a pipe"),
        ([Path("/dev/stdout")], OutputError, "a device or a pipe"),
        ([Path("/proc/self/fd/1")], OutputError, "a device or a pipe"),
    ):
        given = [(f"--{number}", path) for number, path in enumerate(written)]
        for overwrite in (False, True):
            with pytest.raises(error, match=match):
                check_files(given, inputs, overwrite=overwrite)
    with pytest.raises(OutputError, match="exists already"):
        check_files([("-o", there)], inputs, overwrite=False)
    check_files([("-o", there)], inputs, overwrite=True)


def test_all_files_are_written_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    with pytest.raises(OutputError, match="nowhere"):
        write_outputs({one: b"1", tmp_path / "nowhere" / "two.csv": b"2"}, overwrite=False)
    assert list(tmp_path.iterdir()) == []
    write_outputs({one: b"1", two: b"2"}, overwrite=False)
    two.write_text("made meanwhile")
    one.unlink()
    with pytest.raises(OutputError, match="made by another program meanwhile"):
        write_outputs({two: b"2", one: b"1"}, overwrite=False)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("two.csv", "made meanwhile")]
    link = tmp_path / "link.csv"
    link.symlink_to(two)
    write_outputs({link: b"3"}, overwrite=True)
    assert (link.read_bytes(), two.read_text()) == (b"3", "made meanwhile")

    def no_links(*_: object) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    write_outputs({one: b"1"}, overwrite=False)
    with pytest.raises(OutputError, match="meanwhile"):
        write_outputs({two: b"1"}, overwrite=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.csv", "one.csv", "two.csv"]


def test_a_refused_table_leaves_no_work_folder(picture: Path, tiny_generator: Path) -> None:
    table, output = picture.parent / "table", picture.with_name("x.ome.tif")
    common = ("translate", picture, "-m", tiny_generator, *SMALL, "--kernel", "gaussian:3", "--table", table)
    assert kin(*common, "-o", picture.with_name("first.tif")).code == 0
    refused = kin(*common, "-o", output, "--patch-size", "64")
    assert_refused(refused, str(table), "patch size")
    assert not output.with_name("x.ome.tif.kin-work").exists()
    assert kin(*common, "-o", output).code == 0


def test_a_file_that_appears_at_the_last_moment_is_kept(
    picture: Path, tiny_generator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last look and the naming somebody makes a file of the output's name."""
    output, real = picture.with_name("x.ome.tif"), os.fsync

    def meanwhile(fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").resolve().name == "output.part":
            output.write_text("made by another program")
        real(fd)

    monkeypatch.setattr(os, "fsync", meanwhile)
    refused = kin("translate", picture, "-m", tiny_generator, "-o", output, *SMALL)
    monkeypatch.undo()
    assert refused.code == 1
    assert f"{output}: was made by another program" in refused.err.splitlines()[-1]
    assert output.read_text() == "made by another program"


@pytest.mark.parametrize("option", [(), ("--skip-existing",)])
def test_a_link_to_nowhere_is_kept(picture: Path, tiny_generator: Path, option: tuple[str, ...]) -> None:
    """The archive that it leads to may not be mounted just now."""
    link = picture.with_name("x.ome.tif")
    link.symlink_to("/nonexistent/archive.ome.tif")
    assert_refused(kin("translate", picture, "-m", tiny_generator, "-o", link, *SMALL, *option), str(link))
    assert link.is_symlink()


def test_loops_of_links_are_told(picture: Path, tiny_generator: Path) -> None:
    for name in ("loop", "loop.tif"):
        picture.with_name(name).symlink_to(name)
    common = ("-m", tiny_generator, *SMALL)
    loop, new = picture.with_name("loop"), picture.with_name("new.tif")
    assert_refused(kin("translate", loop, "-o", new, *common), "loop: cannot be opened: Too many levels")
    assert_refused(kin("translate", picture, "-o", new, *common, "--table", loop), "loop: is a link to nowhere")
    assert_refused(kin("translate", picture, "-o", picture.with_name("loop.tif"), *common), "exists already")
    assert_refused(kin("batch", picture, "-o", loop, *common), "a loop of symbolic links")
    assert_refused(kin("translate", "", "-o", "", *common), "a folder, not a slide")
    assert {path.name for path in picture.parent.iterdir()} == {"case1.png", "loop", "loop.tif"}


def test_a_folder_that_is_gone_is_told_before_torch_ends_the_process(picture: Path) -> None:
    gone = picture.with_name("gone")
    gone.mkdir()
    script = f"cd {gone} && rmdir {gone} && {sys.executable} -m kin_cli translate {picture}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "the current folder does not exist any more" in done.stderr


def test_a_table_in_the_place_of_an_output_is_refused_before_any_work(picture: Path, tiny_generator: Path) -> None:
    output = picture.with_name("x.ome.tif")
    common = ("translate", picture, "-m", tiny_generator, "-o", output, *SMALL, "--kernel", "constant:3", "--table")
    for name in ("x.ome.tif", "x.ome.tif.json", "x.ome.tif.report.html", "x.ome.tif.kin-work"):
        assert_refused(kin(*common, picture.with_name(name)), name, "table", code=2)
    assert sorted(path.name for path in picture.parent.iterdir()) == ["case1.png"]


def test_a_manifest_is_never_replaced(picture: Path, tiny_generator: Path) -> None:
    folder = picture.parent / "out"
    (folder / "kin-batch").mkdir(parents=True)
    status, record = folder / "kin-batch" / "status.csv", folder / "b.tif.json"
    status.write_text(f"slide,output,status,wsi\nmy note,,,{picture}\n")
    record.write_text(f"wsi,output\n{picture},b.tif\n")
    for manifest in (status, record):
        before = manifest.read_text()
        refused = kin("batch", "--manifest", manifest, "-o", folder, "-m", tiny_generator, *SMALL, "--overwrite")
        assert refused.code == 2, refused.err
        assert "manifest" in refused.err or str(manifest) in refused.err
        assert manifest.read_text() == before
