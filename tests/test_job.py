"""One output made by several processes: interrupted and continued, in shards, from a table that is kept."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kin_cli.errors import OutputError
from kin_cli.passes.engine import Engine
from kin_cli.translation import translate
from tests.helpers.processes import kin
from tests.helpers.progress import Killed, Watcher, die_at
from tests.helpers.translations import SMALL, command_settings, digest, made

STAGES = ["measure", "apply", "background", "pyramid", "write"]


@pytest.mark.parametrize("stage", STAGES)
def test_death_in_any_stage_leaves_no_trace(
    slide: Path, tiny_generator: Path, wanted: Path, tmp_path: Path, stage: str
) -> None:
    output = tmp_path / "out.ome.tif"
    with pytest.raises(Killed):
        translate(
            command_settings(slide, tiny_generator, output), Watcher(die_at(stage, 3 if stage in STAGES[:2] else 0))
        )
    assert not output.exists()
    again = Watcher()
    translate(command_settings(slide, tiny_generator, output), again)
    assert digest(output) == digest(wanted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.ome.tif", "out.ome.tif.json"]


def test_a_second_process_is_refused(slide: Path, tiny_generator: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.ome.tif"

    def meanwhile(stage: str, tiles: int) -> None:
        if (stage, tiles) == ("measure", 0):
            second = kin("translate", slide, "-m", tiny_generator, "-o", output, *SMALL)
            assert second.code == 1
            assert f"is being written by pid {os.getpid()}" in second.err

    translate(command_settings(slide, tiny_generator, output), Watcher(meanwhile))
    assert output.exists()


def test_finished_tiles_are_not_made_again(slide: Path, tiny_generator: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.ome.tif"
    with pytest.raises(Killed):
        translate(command_settings(slide, tiny_generator, output), Watcher(die_at("pyramid", 0)))
    again = Watcher()
    translate(command_settings(slide, tiny_generator, output), again)
    assert any("45 of 45 patches" in note for note in again.notes)
    assert any("6 of 6 tiles" in note for note in again.notes)


def test_other_settings_are_refused_by_name(slide: Path, tiny_generator: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.ome.tif"
    with pytest.raises(Killed):
        translate(command_settings(slide, tiny_generator, output), Watcher(die_at("apply", 1)))
    with pytest.raises(OutputError, match=r'kernel: "gaussian:7" → "constant:3"; quality: 85 → 90'):
        translate(
            command_settings(slide, tiny_generator, output, "--kernel", "constant:3", "--quality", "90"), Watcher()
        )
    translate(command_settings(slide, tiny_generator, output, "--quality", "90", "--overwrite"), Watcher())
    assert json.loads((tmp_path / "out.ome.tif.json").read_text())["settings"]["quality"] == 90


def test_an_interrupted_overwrite_goes_on_too(slide: Path, tiny_generator: Path, wanted: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.ome.tif"
    translate(command_settings(slide, tiny_generator, output, "--quality", "50"), Watcher())
    before = digest(output)
    with pytest.raises(Killed):
        translate(command_settings(slide, tiny_generator, output, "--overwrite"), Watcher(die_at("apply", 2)))
    assert digest(output) == before  # the old one stays until the new one is whole
    with pytest.raises(OutputError, match="was made with other settings"):
        translate(command_settings(slide, tiny_generator, output), Watcher())
    again = Watcher()
    translate(command_settings(slide, tiny_generator, output, "--overwrite"), again)
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
        "before the record": "kin_cli.job._record",
        "before the clean-up": "kin_cli.store.work.WorkFolder.remove",
        "in the clean-up": "kin_cli.store.claim.Claim.remove_dead",
    }
    with monkeypatch.context() as patch:
        patch.setattr(where[place], die)
        with pytest.raises(Killed):
            translate(command_settings(slide, tiny_generator, output), Watcher())
    assert output.exists()
    record = translate(command_settings(slide, tiny_generator, output), Watcher())
    assert record["output_bytes"] == output.stat().st_size
    assert digest(output) == digest(wanted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.ome.tif", "out.ome.tif.json"]
    with pytest.raises(OutputError, match="exists already"):
        translate(command_settings(slide, tiny_generator, output), Watcher())


def test_skipping_means_verified(slide: Path, tiny_generator: Path, wanted: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.ome.tif"
    shutil.copy(wanted, output)
    skip = command_settings(slide, tiny_generator, output, "--skip-existing")
    with pytest.raises(OutputError, match=r"its record out\.ome\.tif\.json does not"):
        translate(skip, Watcher())
    shutil.copy(wanted.with_name("out.ome.tif.json"), tmp_path)
    watcher = Watcher()
    assert translate(skip, watcher)["skipped"]
    assert watcher.stages == []
    with pytest.raises(OutputError, match=r"other settings .*quality: 85 → 70"):
        translate(command_settings(slide, tiny_generator, output, "--skip-existing", "--quality", "70"), Watcher())
    with output.open("r+b") as file:
        file.seek(-5000, os.SEEK_END)
        file.write(b"damage")
    with pytest.raises(OutputError, match=r"is not sound: .*checksum"):
        translate(skip, Watcher())
    assert "skipped" not in translate(
        command_settings(slide, tiny_generator, output, "--skip-existing", "--overwrite"), watcher
    )
    assert watcher.notes
    assert digest(output) == digest(wanted)


@pytest.fixture(scope="module")
def complete(slide: Path, tiny_generator: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("complete")
    made(slide, tiny_generator, folder / "first", "--table", folder / "table")
    return folder / "table"


@pytest.fixture
def table(complete: Path, tmp_path: Path) -> Path:
    """A complete table, to do with as one likes."""
    return Path(shutil.copytree(complete, tmp_path / "table"))


def refuse_to_measure(*_: object) -> None:
    raise AssertionError("pass 1 ran again")


def test_other_kernels_reuse_it_and_the_bytes_are_those_without(
    slide: Path, tiny_generator: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = [("--kernel", "constant:3"), ("--method", "in"), ("--seamless", "--quality", 70)]
    wanted = [made(slide, tiny_generator, tmp_path / f"w{n}", *choice) for n, choice in enumerate(choices)]
    before = sorted((path.name, path.stat().st_mtime_ns) for path in table.iterdir())
    monkeypatch.setattr(Engine, "measure", refuse_to_measure)
    for number, choice in enumerate(choices):
        assert made(slide, tiny_generator, tmp_path / f"f{number}", *choice, "--table", table) == wanted[number]
    assert sorted((path.name, path.stat().st_mtime_ns) for path in table.iterdir()) == before


def test_a_complete_table_can_be_read_from_where_nothing_may_be_written(
    slide: Path, tiny_generator: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def read_only(path: object, flags: int, *mode: int) -> int:
        assert not (Path(str(path)).parent == table and flags & (os.O_WRONLY | os.O_RDWR)), path
        return opened(path, flags, *mode)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", read_only)
    made(slide, tiny_generator, tmp_path / "again", "--table", table)


def test_a_killed_measurement_is_continued_by_any_translation(
    slide: Path, tiny_generator: Path, tmp_path: Path
) -> None:
    def die(stage: str, done: int) -> None:
        if stage == "measure" and done >= 20:
            raise Killed

    with pytest.raises(Killed):
        translate(
            command_settings(slide, tiny_generator, tmp_path / "a.ome.tif", "--table", tmp_path / "t"), Watcher(die)
        )
    again = Watcher()
    (tmp_path / "kept").mkdir()
    output = tmp_path / "kept" / "out.ome.tif"
    translate(command_settings(slide, tiny_generator, output, "--table", tmp_path / "t", "--method", "in"), again)
    assert any("20 of 45 patches are measured" in note for note in again.notes)
    assert digest(output) == made(slide, tiny_generator, tmp_path / "plain", "--method", "in")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (("--patch-size", "64"), "patch size: 128 → 64"),
        (("--measure-size", "64"), "measured size: 128 → 64"),
        (("--region", "0,0,512,512"), r"region: \[0, 0, 520, 1040\] → \[0, 0, 512, 512\]"),
        (("--mpp", "0.6"), "mpp: 0.5 → 0.6"),
        (("--correction", "1"), "correction: 0 → 1"),
        (("--eps", "0"), "eps: null → 0.0"),
        (("--precision", "bf16"), 'precision: "fp32" → "bf16"'),
    ],
)
def test_a_table_of_other_settings_is_refused_by_name(
    slide: Path, tiny_generator: Path, table: Path, tmp_path: Path, changed: tuple[str, ...], named: str
) -> None:
    with pytest.raises(OutputError, match=named):
        made(slide, tiny_generator, tmp_path / "other", *changed, "--table", table)


def test_another_slide_of_the_same_size_is_refused(
    slide: Path, tiny_generator: Path, table: Path, tmp_path: Path
) -> None:
    other = tmp_path / slide.name
    shutil.copy(slide, other)
    assert made(other, tiny_generator, tmp_path / "copy", "--table", table)  # the same slide in another place
    content = bytearray(other.read_bytes())
    content[len(content) // 2 + 10] ^= 1
    other.write_bytes(content)
    with pytest.raises(OutputError, match=r"another slide of this name \(its bytes differ\)"):
        made(other, tiny_generator, tmp_path / "other", "--table", table)


def test_a_larger_mask_only_adds_patches(slide: Path, tiny_generator: Path, tmp_path: Path) -> None:
    half = np.zeros((104, 52), np.uint8)
    half[:52] = 255
    Image.fromarray(half).save(tmp_path / "half.png")
    made(slide, tiny_generator, tmp_path / "a", "--tissue", tmp_path / "half.png", "--table", tmp_path / "t")
    watcher = Watcher()
    translate(command_settings(slide, tiny_generator, tmp_path / "out.ome.tif", "--table", tmp_path / "t"), watcher)
    assert any("25 of 45 patches are measured" in note for note in watcher.notes)
    assert digest(tmp_path / "out.ome.tif") == made(slide, tiny_generator, tmp_path / "plain")


def test_a_second_process_is_refused_while_a_table_is_measured(
    slide: Path, tiny_generator: Path, tmp_path: Path
) -> None:
    refused = []

    def meanwhile(stage: str, tiles: int) -> None:
        if (stage, tiles) == ("measure", 1):
            other = ("-o", tmp_path / "b.ome.tif", "--table", tmp_path / "t", *SMALL)
            refused.append(kin("translate", slide, "-m", tiny_generator, *other))

    translate(
        command_settings(slide, tiny_generator, tmp_path / "a.ome.tif", "--table", tmp_path / "t"), Watcher(meanwhile)
    )
    assert refused[0].code == 1
    assert f"is being written by pid {os.getpid()}" in refused[0].err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "tin"), "--method tin has no table"),
        (("--on-read-error", "fill"), "--table and --on-read-error fill exclude each other"),
    ],
)
def test_what_makes_no_sense_is_refused(
    slide: Path, tiny_generator: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    result = kin("translate", slide, "-m", tiny_generator, "--table", tmp_path / "t", *SMALL, *options)
    assert result.code == 2
    assert message in result.err


def test_other_peoples_folders_are_left_alone(slide: Path, tiny_generator: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"meow")
    (tmp_path / "file").write_bytes(b"")
    for name, why in (("photos", "holds files but no table"), ("file", "is not a folder"), ("a/b", "no such file")):
        with pytest.raises(OutputError, match=why):
            made(slide, tiny_generator, tmp_path / f"out-{Path(name).name}", "--table", tmp_path / name)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_damage_is_told_with_what_to_do(slide: Path, tiny_generator: Path, table: Path, tmp_path: Path) -> None:
    data = table / "table-0.dat"
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.write_bytes(content)
    with pytest.raises(OutputError, match=r"damaged .*remove .*table"):
        made(slide, tiny_generator, tmp_path / "out", "--table", table)


def test_two_deaths_around_the_naming_of_the_output(
    slide: Path, tiny_generator: Path, wanted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the output has its name, and the next time just before it is replaced: it is still known as ours."""
    output = tmp_path / "out.ome.tif"

    def die(*_: object, **__: object) -> None:
        raise Killed

    for place in ("kin_cli.job._record", "kin_cli.pyramid.writer.publish"):
        with monkeypatch.context() as patch:
            patch.setattr(place, die)
            with pytest.raises(Killed):
                translate(command_settings(slide, tiny_generator, output), Watcher())
        assert output.exists()
    translate(command_settings(slide, tiny_generator, output), Watcher())
    assert digest(output) == digest(wanted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.ome.tif", "out.ome.tif.json"]
