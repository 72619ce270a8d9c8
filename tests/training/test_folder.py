"""The folder of a run: what is not a run's own is never replaced or deleted, and no link is followed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers.processes import assert_refused, kin
from tests.helpers.training_runs import command_line, draw_images


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps; nobody may write to it."""
    output = tmp_path_factory.mktemp("runs") / "run"
    assert kin(*command_line(images, output, steps=2)).code == 0
    return output


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
@pytest.mark.parametrize("name", ["generator.pth", "log.csv", "samples/0000002.png", "thesis.doc"])
def test_a_folder_without_a_state_is_left_alone(
    images: Path, tmp_path: Path, name: str, overwrite: tuple[str, ...]
) -> None:
    run = tmp_path / "run"
    (run / name).parent.mkdir(parents=True)
    (run / name).write_text("mine")
    refused = kin(*command_line(images, run, *overwrite, steps=2))
    assert_refused(refused, str(run), name.partition("/")[0], "no state of a run", code=1)
    assert contents(run) == {name: b"mine"}


def test_overwrite_deletes_what_a_run_writes_and_nothing_else(images: Path, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    mine = ("notes.txt", "samples/best.png", "evaluation/he-0-in.ome.tif.txt", "generator.pth.bak")
    old = ("samples/0000099.png", "evaluation/he-0-in.ome.tif", "evaluation.csv")
    for name in (*mine, *old):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("mine")
    (run / "state.pt").write_bytes(b"damaged")
    assert kin(*command_line(images, run, "--overwrite", steps=2)).code == 0
    found = contents(run)
    assert {name: found.pop(name) for name in mine} == dict.fromkeys(mine, b"mine")
    assert found.keys() == contents(finished).keys()
    assert found["generator.safetensors"] == contents(finished)["generator.safetensors"]


def test_foreign_files_in_a_left_over_table_stop_overwrite(images: Path, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    table = run / "evaluation" / "table-0"
    table.mkdir(parents=True)
    (table / "thesis.doc").write_text("mine")
    refused = kin(*command_line(images, run, "--overwrite", steps=2))
    assert_refused(refused, str(table), "thesis.doc", "kin did not make", code=1)
    assert (table / "thesis.doc").read_text() == "mine"


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
@pytest.mark.parametrize("name", ["", "samples", "evaluation", "log.csv", "generator.pth", "state.pt"])
def test_no_link_is_followed(
    images: Path, finished: Path, tmp_path: Path, name: str, overwrite: tuple[str, ...]
) -> None:
    precious, run = tmp_path / "precious", tmp_path / "run"
    if name:
        shutil.copytree(finished, run)
        planted = run / name
        if planted.is_dir():
            shutil.rmtree(planted)
        else:
            planted.unlink(missing_ok=True)
        if "." in name:
            shutil.copy(finished / name, precious)
        else:
            precious.mkdir()
            (precious / "0000099.png").write_text("mine")
    else:
        shutil.copytree(finished, precious)
        planted = run
    planted.symlink_to(precious)
    before = precious.read_bytes() if precious.is_file() else contents(precious)
    refused = kin(*command_line(images, run, *overwrite, steps=4))
    assert_refused(refused, str(planted), code=1)
    assert (precious.read_bytes() if precious.is_file() else contents(precious)) == before
    assert planted.is_symlink()


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_no_input_is_replaced(images: Path, finished: Path, tmp_path: Path, overwrite: tuple[str, ...]) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = contents(run)
    linked = tmp_path / "start.pth"
    linked.symlink_to(run / "generator.pth")
    for options in (
        ("--start", run / "generator.safetensors"),
        ("--start", linked),
        ("--evaluation", run / "samples"),
        ("--inception", run / "state.pt"),
    ):
        refused = kin(*command_line(images, run, *options, *overwrite, steps=4))
        assert_refused(refused, str(options[0]), code=2)
        assert contents(run) == before


def test_a_file_in_place_of_the_folder_is_refused(images: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    for extra in ((), ("--overwrite",)):
        assert_refused(kin(*command_line(images, tmp_path / "run", *extra)), "is a file", code=1)
    assert_refused(kin(*command_line(images, tmp_path / "no" / "run")), "no such folder", code=1)
