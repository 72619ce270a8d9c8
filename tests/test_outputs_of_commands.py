"""Commands that write files: nothing is replaced without being told, and an input never."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from kin_cli.geometry import Pixels
from tests.helpers.comparisons import COMMON, write_graded_photo
from tests.helpers.processes import assert_refused, kin

COMMANDS = ("compare", "sweep", "analyse", "evaluate", "seams", "sample")


@pytest.fixture
def place(tmp_path: Path, tiny_generator: Path) -> Path:
    """A folder with a slide, its source, a model and a file of the user."""
    write_graded_photo(tmp_path / "slide.png")
    shutil.copy(tmp_path / "slide.png", tmp_path / "source.png")
    shutil.copy(tiny_generator, tmp_path / "model.png")
    (tmp_path / "mine.png").write_text("years of work")
    return tmp_path


def command_line(place: Path, command: str, output: Path, *options: object) -> tuple[object, ...]:
    """A command that writes ``output``, as quickly as it can."""
    slide, model = place / "slide.png", ("-m", place / "model.png", *COMMON)
    given: dict[str, tuple[object, ...]] = {
        "compare": ("compare", slide, *model, "-o", output, "--reference", place / "source.png", "--metrics", "ssim"),
        "sweep": ("sweep", slide, *model, "-o", output, "--sizes", 1, "--kinds", "constant", "--metrics", "ssim"),
        "analyse": ("analyse", slide, *model, "-o", output),
        "evaluate": ("evaluate", slide, "--source", place / "source.png", "--metrics", "ssim", "--csv", output),
        "seams": ("seams", slide, "--source", place / "source.png", "--patch-size", 64, "--heatmap", output),
        "sample": ("sample", output, "--size", 300),
    }
    return (*given[command], *(("--tile-size", 128) if command == "evaluate" else ()), *options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_existing_file_is_replaced_with_overwrite_only(place: Path, command: str) -> None:
    before = contents(place)
    refused = kin(*command_line(place, command, place / "mine.png"))
    assert_refused(refused, f"{place / 'mine.png'}: exists already (--overwrite replaces it)", code=1)
    assert contents(place) == before
    done = kin(*command_line(place, command, place / "mine.png", "--overwrite"))
    assert done.code == 0, done.err
    after = contents(place)
    assert after.pop("mine.png") != before.pop("mine.png")
    assert after == before


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "sample"])
def test_an_input_is_never_replaced(place: Path, command: str, overwrite: tuple[str, ...]) -> None:
    names = ["slide.png", *(["model.png"] if command in ("compare", "sweep", "analyse") else [])]
    names += ["source.png"] if command in ("compare", "evaluate", "seams") else []
    (place / "link.png").symlink_to(place / "slide.png")
    before = contents(place)
    for name in (*names, "link.png"):
        refused = kin(*command_line(place, command, place / name, *overwrite))
        assert_refused(refused, str(place / name), "which is never replaced", code=2)
    assert contents(place) == before


OTHER_INPUTS = {
    "--tissue": ("compare", "sweep", "analyse", "evaluate", "seams"),
    "--inception": ("compare", "evaluate"),
    "--niqe-model": ("evaluate",),
    "--thumbnail": ("compare",),
}


@pytest.mark.parametrize(
    ("option", "command"), [(option, command) for option in OTHER_INPUTS for command in OTHER_INPUTS[option]]
)
def test_other_inputs_are_never_replaced_either(place: Path, option: str, command: str) -> None:
    refused = kin(*command_line(place, command, place / "mine.png", option, place / "mine.png", "--overwrite"))
    assert_refused(refused, str(place / "mine.png"), "never replaced", code=2)
    assert (place / "mine.png").read_text() == "years of work"


@pytest.mark.parametrize("command", ["compare", "sweep", "analyse"])
def test_two_outputs_of_one_name_are_refused(place: Path, command: str) -> None:
    (place / "here").symlink_to(place)
    before = contents(place)
    for option, name in (("--csv", "new.png"), ("--csv", "here/new.png"), ("--table", "new.png")):
        refused = kin(*command_line(place, command, place / "new.png", option, place / name))
        assert_refused(refused, "-o", option, "give each a name of its own", code=2)
    inside = place / "new.png.compare.kin-work"
    for option in ("--csv", "--table"):
        refused = kin(*command_line(place, command, place / "new.png", option, inside / "table"))
        assert refused.code != 0
    assert contents(place) == before


def test_an_analysis_into_a_folder_replaces_nothing(place: Path) -> None:
    folder = place / "results"
    folder.mkdir()
    (folder / "statistics.json").write_text("mine")
    (folder / "notes.txt").write_text("mine")
    assert_refused(kin(*command_line(place, "analyse", folder)), "statistics.json: exists already", code=1)
    clash = kin(*command_line(place, "analyse", folder, "--csv", folder / "statistics.csv"))
    assert_refused(clash, "statistics.csv", "-o", "--csv", code=2)
    assert kin(*command_line(place, "analyse", folder, "--overwrite")).code == 0
    names = ["notes.txt", "statistics.csv", "statistics.json", "statistics.png"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert (folder / "notes.txt").read_text() == "mine"
    assert_refused(kin(*command_line(place, "analyse", place / "no" / "deeper")), "no", code=1)
    (place / "file").write_text("mine")
    assert_refused(kin(*command_line(place, "analyse", place / "file")), "is no folder", code=1)


def test_kept_folders_are_never_emptied(place: Path) -> None:
    keep = place / "kept"
    keep.mkdir()
    (keep / "thesis.doc").write_text("mine")
    (keep / "in.tif.json").write_text("mine")
    common = command_line(place, "compare", place / "new.png", "--keep", keep)
    assert_refused(kin(*common), "in.tif.json", "kin did not write it", code=1)
    (keep / "in.tif.json").unlink()
    (keep / "tin.tif").write_text("mine")
    assert kin(*common).code == 1
    assert (keep / "tin.tif").read_text() == "mine"
    (keep / "tin.tif").unlink()
    done = kin(*common)
    assert done.code == 0, done.err
    assert (keep / "thesis.doc").read_text() == "mine"
    assert {path.name for path in keep.glob("*.tif")} == {"in.tif", "tin.tif", "kin-gaussian-7.tif", "seamless.tif"}
    for option in ("--keep", "--table"):
        refused = kin(*command_line(place, "compare", place / "more.png", option, place / "mine.png"))
        assert refused.code == 1
    refused = kin(*command_line(place, "compare", place / "more.png", "--table", place))
    assert_refused(refused, str(place), "holds files but no table", code=1)


def test_a_slide_in_the_kept_folder_is_never_replaced(place: Path, slide: Path) -> None:
    keep = place / "kept"
    keep.mkdir()
    shutil.copy(slide, keep / "in.tif")
    line = ("compare", keep / "in.tif", "-m", place / "model.png", *COMMON, "-o", place / "new.png", "--keep", keep)
    for extra in ((), ("--overwrite",)):
        assert_refused(kin(*line, *extra), str(keep / "in.tif"), "never replaced", code=2)
    assert (keep / "in.tif").read_bytes() == slide.read_bytes()


def test_a_map_has_the_ending_of_a_png(place: Path, spoiled: Pixels) -> None:
    Image.fromarray(spoiled).save(place / "slide.png")
    refused = kin("seams", place / "slide.png", "--heatmap", place / "map.jpg")
    assert_refused(refused, "map.jpg", ".png", code=2)


@pytest.mark.parametrize("command", ["compare", "sweep", "analyse", "sample"])
def test_a_planted_link_as_work_folder_is_not_followed(place: Path, command: str) -> None:
    precious, output = place / "precious", place / "new.png"
    precious.mkdir()
    (precious / "in.tif").write_text("mine")
    ending = ".kin-work" if command == "sample" else ".compare.kin-work"
    (place / f"new.png{ending}").symlink_to(precious)
    for extra in ((), ("--overwrite",)):
        assert_refused(kin(*command_line(place, command, output, *extra)), "symbolic link", code=1)
    assert [path.name for path in precious.iterdir()] == ["in.tif"]


def test_compare_takes_a_thumbnail(place: Path) -> None:
    Image.new("RGB", (64, 64), (90, 60, 140)).save(place / "thumbnail.png")
    shown = []
    for number, options in enumerate(((), ("--thumbnail", place / "thumbnail.png"))):
        line = command_line(place, "compare", place / f"new{number}.png", "--json", *options)
        done = kin(*line)
        assert done.code == 0, done.err
        columns = {column["name"]: column["values"] for column in json.loads(done.out)["columns"]}
        shown.append((columns["tin"], columns["seamless"]))
    assert shown[0][0] != shown[1][0]
    assert shown[0][1] == shown[1][1]
