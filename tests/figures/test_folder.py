"""The work folder of a figure: only kin's own files are deleted, links and folders of others are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kin_cli.errors import OutputError
from kin_cli.figures.folder import clear, figure_work, work_folder_of
from kin_cli.settings import Settings
from tests.helpers.comparisons import base_settings


@pytest.fixture
def base(photo: Path, tiny_generator: Path, tmp_path: Path) -> Settings:
    return base_settings(photo, tiny_generator, tmp_path / "base.tif")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return work_folder_of(tmp_path / "figure.png")


def test_the_folder_stands_beside_the_figure_whatever_the_length_of_its_name(tmp_path: Path) -> None:
    assert work_folder_of(tmp_path / "a.png").name == "a.png.compare.kin-work"
    work_folder_of(tmp_path / f"{'a' * 251}.png").mkdir()


def test_work_goes_on_with_the_same_command_and_is_discarded_by_overwrite_otherwise(
    base: Settings, folder: Path
) -> None:
    with figure_work(folder, base, overwrite=False):
        (folder / "in.tif").write_text("a translation")
    with figure_work(folder, base, overwrite=False):
        assert (folder / "in.tif").exists()
    with figure_work(folder, base, overwrite=True):
        assert not (folder / "in.tif").exists()
        (folder / "kin-gaussian-7-1.5.tif.json").write_text("a record")
    with figure_work(folder, base, overwrite=True):
        assert (folder / "kin-gaussian-7-1.5.tif.json").exists()
    base.source.slide.touch()
    with figure_work(folder, base, overwrite=True):
        assert [path.name for path in folder.iterdir()] == ["begun.json"]
    clear(folder, note=pytest.fail)
    assert not folder.exists()


def test_a_failure_before_any_work_leaves_no_folder(base: Settings, folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt), figure_work(folder, base, overwrite=False):
        raise KeyboardInterrupt
    assert not folder.exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_no_link_is_followed(base: Settings, folder: Path, tmp_path: Path, overwrite: bool) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "in.tif").write_text("mine")
    folder.symlink_to(precious)
    with pytest.raises(OutputError, match="symbolic link"), figure_work(folder, base, overwrite=overwrite):
        pass
    folder.unlink()
    folder.mkdir()
    for name in ("table", "in.tif", "begun.json"):
        (folder / name).symlink_to(precious)
        with pytest.raises(OutputError, match="is not a regular file"), figure_work(folder, base, overwrite=overwrite):
            pass
        (folder / name).unlink()
    assert (precious / "in.tif").read_text() == "mine"


def test_foreign_files_are_named_and_left(base: Settings, folder: Path) -> None:
    names = ("thesis.doc", "in.tiff", "table/thesis.doc", "in.tif.kin-work/thesis.doc")
    for name in names:
        with figure_work(folder, base, overwrite=False):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("mine")
        base.source.slide.touch()
        match = "thesis.doc|in.tiff"
        with pytest.raises(OutputError, match=match), figure_work(folder, base, overwrite=True):
            pass
        told: list[str] = []
        clear(folder, note=told.append)
        assert told
        assert (folder / name).read_text() == "mine"
        (folder / name).unlink()
        clear(folder, note=told.append)
        assert not folder.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_of_another_user_is_refused(base: Settings, folder: Path) -> None:
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    with pytest.raises(OutputError, match="another user"), figure_work(folder, base, overwrite=False):
        pass
