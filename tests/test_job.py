"""An interrupted translation goes on where it stopped and ends in the same bytes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from kin_cli.errors import OutputError
from kin_cli.translate import translate
from tests.helpers.batch_slides import SMALL, Watcher, digest, kin, write_slide
from tests.helpers.resume_runs import Killed, die_at, settings, uninterrupted


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slides") / "slide.tif")


@pytest.fixture(scope="module")
def wanted(slide: Path, tiny_generator: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return uninterrupted(slide, tiny_generator, tmp_path_factory.mktemp("wanted"))


STAGES = ["measure", "apply", "background", "pyramid", "write"]


@pytest.mark.parametrize("stage", STAGES)
def test_death_in_any_stage_leaves_no_trace(
    slide: Path, tiny_generator: Path, wanted: Path, tmp_path: Path, stage: str
) -> None:
    output = tmp_path / "out.ome.tif"
    with pytest.raises(Killed):
        translate(settings(slide, tiny_generator, output), Watcher(die_at(stage, 3 if stage in STAGES[:2] else 0)))
    assert not output.exists()
    again = Watcher()
    translate(settings(slide, tiny_generator, output), again)
    assert digest(output) == digest(wanted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "out.ome.tif"]


def test_a_second_process_is_refused(slide: Path, tiny_generator: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.ome.tif"

    def meanwhile(stage: str, tiles: int) -> None:
        if (stage, tiles) == ("measure", 0):
            second = kin("translate", slide, "-m", tiny_generator, "-o", output, *SMALL)
            assert second.code == 1
            assert f"is being written by pid {os.getpid()}" in second.err

    translate(settings(slide, tiny_generator, output), Watcher(meanwhile))
    assert output.exists()


def test_finished_tiles_are_not_made_again(slide: Path, tiny_generator: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.ome.tif"
    with pytest.raises(Killed):
        translate(settings(slide, tiny_generator, output), Watcher(die_at("pyramid", 0)))
    again = Watcher()
    translate(settings(slide, tiny_generator, output), again)
    assert any("45 of 45 patches" in note for note in again.notes)
    assert any("6 of 6 tiles" in note for note in again.notes)


def test_other_settings_are_refused_by_name(slide: Path, tiny_generator: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.ome.tif"
    with pytest.raises(Killed):
        translate(settings(slide, tiny_generator, output), Watcher(die_at("apply", 1)))
    with pytest.raises(OutputError, match=r'kernel: "gaussian:7" → "constant:3"; quality: 85 → 90'):
        translate(settings(slide, tiny_generator, output, "--kernel", "constant:3", "--quality", "90"), Watcher())
    translate(settings(slide, tiny_generator, output, "--quality", "90", "--overwrite"), Watcher())
    assert json.loads((tmp_path / "out.json").read_text())["settings"]["quality"] == 90


def test_an_interrupted_overwrite_goes_on_too(slide: Path, tiny_generator: Path, wanted: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.ome.tif"
    translate(settings(slide, tiny_generator, output, "--quality", "50"), Watcher())
    before = digest(output)
    with pytest.raises(Killed):
        translate(settings(slide, tiny_generator, output, "--overwrite"), Watcher(die_at("apply", 2)))
    assert digest(output) == before  # the old one stays until the new one is whole
    with pytest.raises(OutputError, match="was made with other settings"):
        translate(settings(slide, tiny_generator, output), Watcher())
    again = Watcher()
    translate(settings(slide, tiny_generator, output, "--overwrite"), again)
    assert any("45 of 45 patches" in note for note in again.notes)
    assert digest(output) == digest(wanted)


@pytest.mark.parametrize("place", ["before the record", "before the clean-up", "in the clean-up"])
def test_death_after_the_file_has_its_name(
    slide: Path, tiny_generator: Path, wanted: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.ome.tif"

    def die(*_: object, **__: object) -> None:
        raise Killed

    where = {
        "before the record": "kin_cli.translate._record",
        "before the clean-up": "kin_cli.store.work.WorkFolder.remove",
        "in the clean-up": "kin_cli.store.claim.Claim.remove_dead",
    }
    with monkeypatch.context() as patch:
        patch.setattr(where[place], die)
        with pytest.raises(Killed):
            translate(settings(slide, tiny_generator, output), Watcher())
    assert output.exists()
    record = translate(settings(slide, tiny_generator, output), Watcher())
    assert record["output_bytes"] == output.stat().st_size
    assert digest(output) == digest(wanted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "out.ome.tif"]
    with pytest.raises(OutputError, match="exists already"):
        translate(settings(slide, tiny_generator, output), Watcher())


def test_skipping_means_verified(slide: Path, tiny_generator: Path, wanted: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.ome.tif"
    shutil.copy(wanted, output)
    skip = settings(slide, tiny_generator, output, "--skip-existing")
    with pytest.raises(OutputError, match=r"its record out\.json does not"):
        translate(skip, Watcher())
    shutil.copy(wanted.with_name("out.json"), tmp_path)
    watcher = Watcher()
    assert translate(skip, watcher)["skipped"]
    assert watcher.stages == []
    with pytest.raises(OutputError, match=r"other settings .*quality: 85 → 70"):
        translate(settings(slide, tiny_generator, output, "--skip-existing", "--quality", "70"), Watcher())
    with output.open("r+b") as file:
        file.seek(-5000, os.SEEK_END)
        file.write(b"damage")
    with pytest.raises(OutputError, match=r"is not sound: .*checksum"):
        translate(skip, Watcher())
    assert "skipped" not in translate(
        settings(slide, tiny_generator, output, "--skip-existing", "--overwrite"), watcher
    )
    assert watcher.notes
    assert digest(output) == digest(wanted)


def test_rows_in_many_jobs_make_the_same_file(slide: Path, tiny_generator: Path, wanted: Path, tmp_path: Path) -> None:
    common = (slide, "-m", tiny_generator, "-o", tmp_path / "out.ome.tif", *SMALL)
    refused = kin("translate", *common, "--pass", "apply", "--shard", "1/2")
    assert refused.code == 1
    assert "45 of 45 patches are not measured yet" in refused.err
    for part in ("3/3", "1/3", "2/3"):
        assert kin("translate", *common, "--pass", "measure", "--shard", part).code == 0
    assert kin("translate", *common, "--pass", "apply", "--shard", "2/2").code == 0
    refused = kin("assemble", *common)
    assert refused.code == 1
    assert "tiles are not there yet" in refused.err
    assert kin("translate", *common, "--pass", "apply", "--shard", "1/2").code == 0
    result = kin("assemble", *common)
    assert result.code == 0, result.err
    assert digest(tmp_path / "out.ome.tif") == digest(wanted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "out.ome.tif"]
    assert kin("assemble", *common, "--skip-existing").code == 0


def test_senseless_rows_are_refused(slide: Path, tiny_generator: Path, tmp_path: Path) -> None:
    common = (slide, "-m", tiny_generator, "-o", tmp_path / "out.ome.tif")
    assert kin("translate", *common, "--shard", "1/2").code == 2
    assert kin("translate", *common, "--shard", "3/2", "--pass", "apply").code == 2
    assert kin("translate", *common, "--shard", "1/2", "--pass", "apply", "--overwrite").code == 2
    assert kin("assemble", *common, "--overwrite").code == 2
    assert list(tmp_path.iterdir()) == []
