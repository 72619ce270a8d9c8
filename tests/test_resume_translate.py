"""An interrupted translation goes on where it stopped and ends in the same bytes; what else may be in the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from batch_slides import SMALL, Watcher, break_tile, digest, kin, write_slide
from PIL import Image

from kin_cli.commands.options import settings_from
from kin_cli.commands.translate import translate as command
from kin_cli.errors import OutputError
from kin_cli.settings import Settings
from kin_cli.translate import translate


class Killed(BaseException):
    """A death in the middle of the work."""


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slides") / "slide.tif")


@pytest.fixture(scope="module")
def wanted(slide: Path, tiny_generator: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nobody interrupted."""
    output = tmp_path_factory.mktemp("wanted") / "out.ome.tif"
    result = kin("translate", slide, "-m", tiny_generator, "-o", output, *SMALL)
    assert result.code == 0, result.err
    return output


def settings(slide: Path, model: Path, output: Path, *more: str) -> Settings:
    arguments = [str(slide), "-m", str(model), "-o", str(output), *SMALL, *more]
    options = command.make_context("translate", arguments).params
    return settings_from(options.pop("slide"), options)


def die_at(stage: str, done: int) -> Callable[[str, int], None]:
    def at(now: str, tiles: int) -> None:
        if now == stage and tiles >= done:
            raise Killed

    return at


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
    refused = kin("translate", *common, "--pass", "apply", "--rows", "1/2")
    assert refused.code == 1
    assert "45 of 45 patches are not measured yet" in refused.err
    for part in ("3/3", "1/3", "2/3"):
        assert kin("translate", *common, "--pass", "measure", "--rows", part).code == 0
    assert kin("translate", *common, "--pass", "apply", "--rows", "2/2").code == 0
    refused = kin("assemble", *common)
    assert refused.code == 1
    assert "tiles are not there yet" in refused.err
    assert kin("translate", *common, "--pass", "apply", "--rows", "1/2").code == 0
    result = kin("assemble", *common)
    assert result.code == 0, result.err
    assert digest(tmp_path / "out.ome.tif") == digest(wanted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "out.ome.tif"]
    assert kin("assemble", *common, "--skip-existing").code == 0


def test_senseless_rows_are_refused(slide: Path, tiny_generator: Path, tmp_path: Path) -> None:
    common = (slide, "-m", tiny_generator, "-o", tmp_path / "out.ome.tif")
    assert kin("translate", *common, "--rows", "1/2").code == 2
    assert kin("translate", *common, "--rows", "3/2", "--pass", "apply").code == 2
    assert kin("translate", *common, "--rows", "1/2", "--pass", "apply", "--overwrite").code == 2
    assert kin("assemble", *common, "--overwrite").code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide whose tile (row 2, col 1) of 128 px is no JPEG: half a block of those that are filled."""
    file = write_slide(tmp_path_factory.mktemp("faulty") / "faulty.tif")
    break_tile(file, 11)
    return file


def test_an_unreadable_tile_fails_the_slide_by_default(faulty: Path, tiny_generator: Path, tmp_path: Path) -> None:
    result = kin("translate", faulty, "-m", tiny_generator, "-o", tmp_path / "out.ome.tif", *SMALL)
    assert result.code == 1
    assert "faulty.tif: level 0 cannot be read" in result.err
    assert not (tmp_path / "out.ome.tif").exists()


def test_unreadable_tiles_are_filled_counted_and_left_out(
    faulty: Path, slide: Path, tiny_generator: Path, tmp_path: Path
) -> None:
    fill = ("--on-read-error", "fill", "--kernel", "global")
    output = tmp_path / "out.ome.tif"
    result = kin("translate", faulty, "-m", tiny_generator, "-o", output, *SMALL, *fill)
    assert result.code == 1
    assert "parts of 1 tiles could not be read and were filled; 1 patches were left out" in result.err
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["unreadable"] == {"tiles": 1, "patches": 1, "where": [[0, 0]]}
    assert kin("check", output).code == 0
    # The same pixels, white where the tile is missing, but with that part measured: other statistics.
    pixels = tifffile.imread(slide).copy()
    pixels[128:256, 256:384] = 255
    tifffile.imwrite(tmp_path / "white.tif", pixels, photometric="rgb", tile=(128, 128), metadata=None)
    kin("translate", tmp_path / "white.tif", "-m", tiny_generator, "-o", tmp_path / "white.ome.tif", *SMALL, *fill[2:])
    filled, white = (tifffile.imread(path).astype(int) for path in (output, tmp_path / "white.ome.tif"))
    assert np.abs(filled - white).mean() > 0.5


def test_a_slide_without_faults_is_the_same_either_way(
    slide: Path, tiny_generator: Path, wanted: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.ome.tif"
    result = kin("translate", slide, "-m", tiny_generator, "-o", output, *SMALL, "--on-read-error", "fill")
    assert result.code == 0
    assert digest(output) == digest(wanted)


@pytest.mark.parametrize("stage", ["measure", "apply", "pyramid"])
def test_death_does_not_forget_what_was_filled(faulty: Path, tiny_generator: Path, tmp_path: Path, stage: str) -> None:
    fill = settings(faulty, tiny_generator, tmp_path / "out.ome.tif", "--on-read-error", "fill")
    whole = translate(
        settings(faulty, tiny_generator, tmp_path / "whole.ome.tif", "--on-read-error", "fill"), Watcher()
    )
    with pytest.raises(Killed):
        translate(fill, Watcher(die_at(stage, 4 if stage != "pyramid" else 0)))
    assert translate(fill, Watcher())["unreadable"] == whole["unreadable"]
    # the name of the output is part of the file
    first, second = (tifffile.imread(tmp_path / name) for name in ("out.ome.tif", "whole.ome.tif"))
    assert np.array_equal(first, second)


def odd_slides(folder: Path) -> Iterator[Path]:
    def tiff(name: str, pixels: np.ndarray, **options: object) -> Path:
        tifffile.imwrite(folder / name, pixels, photometric="rgb", tile=(256, 256), compression="deflate", **options)
        return folder / name

    noise = np.random.default_rng(0).integers(0, 255, (100, 100, 3), np.uint8)
    yield tiff("black.tif", np.zeros((300, 300, 3), np.uint8))
    yield tiff("constant.tif", np.full((300, 300, 3), 200, np.uint8))
    yield tiff("transparent.tif", np.zeros((300, 300, 4), np.uint8), extrasamples=["unassalpha"])
    Image.fromarray(np.zeros((90, 90, 4), np.uint8)).save(folder / "transparent.png")
    yield folder / "transparent.png"
    yield tiff("pixel.tif", noise[:1, :1])
    yield tiff("wide.tif", np.tile(noise[:1], (1, 20, 1)))
    yield tiff("tall.tif", np.tile(noise[:, :1], (20, 1, 1)))
    for name, per_cm in (("huge", 10), ("tiny", 1e8)):
        yield tiff(f"{name}_mpp.tif", noise, resolution=(per_cm, per_cm), resolutionunit="CENTIMETER")


def test_odd_slides_are_translated_whole(tmp_path: Path, tiny_generator: Path) -> None:
    for slide in odd_slides(tmp_path):
        output = tmp_path / f"{slide.name}.ome.tif"
        result = kin("translate", slide, "-m", tiny_generator, "-o", output, "--patch-size", "128")
        assert result.code == 0, f"{slide.name}: {result.err}"
        assert kin("check", output).code == 0
        assert tifffile.imread(output).shape[:2] == tifffile.imread(slide).shape[:2] if slide.suffix == ".tif" else True


@pytest.mark.parametrize("mpp", ["1000", "0.002"])
def test_a_wrong_pixel_size_is_kept_if_the_user_insists(
    slide: Path, tiny_generator: Path, tmp_path: Path, mpp: str
) -> None:
    output = tmp_path / "out.ome.tif"
    assert kin("translate", slide, "-m", tiny_generator, "-o", output, *SMALL, "--source-mpp", mpp).code == 0
    assert kin("check", output).code == 0
    assert json.loads(kin("info", output, "--json").out)["size"] == [520, 1040]


@pytest.mark.parametrize("options", ["--source-mpp 1e30", "--source-mpp 1e-12", "--mpp nan", "--mpp 1e-300"])
def test_absurd_pixel_sizes_are_refused(slide: Path, tiny_generator: Path, tmp_path: Path, options: str) -> None:
    result = kin("translate", slide, "-m", tiny_generator, "-o", tmp_path / "o.tif", *options.split())
    assert result.code == 2
    assert "is not within" in result.err
    result = kin("translate", slide, "-m", tiny_generator, "--mpp", "0.001", "--source-mpp", "10000", "--dry-run")
    assert result.code == 2
    assert "too many" in result.err


def test_too_small_a_disk_is_told_before_the_work(
    slide: Path, tiny_generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=50_000))
    result = kin("translate", slide, "-m", tiny_generator, "-o", tmp_path / "out.ome.tif", *SMALL)
    assert result.code == 1
    assert "out.ome.tif: needs up to 0.00 GB more, but 0.00 GB are free" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounting a small disk needs root on Linux")
@pytest.mark.parametrize("stage", ["measure", "apply", "write"])
def test_a_full_disk_is_told_and_resumed(
    slide: Path, tiny_generator: Path, wanted: Path, tmp_path: Path, stage: str
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:

        def fill(now: str, _tiles: int) -> None:
            if now == stage and not (disk / "ballast").exists():
                with (disk / "ballast").open("wb", buffering=0) as ballast:
                    while True:
                        try:
                            ballast.write(bytes(4096))
                        except OSError:
                            break

        with pytest.raises(OutputError, match=r"no space left|are free"):
            translate(settings(slide, tiny_generator, disk / "out.ome.tif"), Watcher(fill))
        assert not (disk / "out.ome.tif").exists()
        (disk / "ballast").unlink()
        translate(settings(slide, tiny_generator, disk / "out.ome.tif"), Watcher())
        assert digest(disk / "out.ome.tif") == digest(wanted)
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_signals_end_it_within_seconds(
    slide: Path, tiny_generator: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    output = tmp_path / "out.ome.tif"
    command = [sys.executable, "-m", "kin_cli", "translate", slide, "-m", tiny_generator, "-o", output, *SMALL]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    table = tmp_path / "out.ome.tif.kin-work" / "table-0.dat"
    while not (table.exists() and table.stat().st_size) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    if code > 0:
        assert "the same command continues where it stopped" in err
    result = kin("translate", slide, "-m", tiny_generator, "-o", output, *SMALL)
    assert result.code == 0, result.err
    assert not (tmp_path / "out.ome.tif.kin-work").exists()


@pytest.mark.slow
@pytest.mark.parametrize("script", ["torture.py --kills 8", "fuzz_slides.py {data} --slides 25 --checkpoints 25"])
def test_the_scripts_that_torment_find_nothing(shared_data: Path, script: str) -> None:
    name, *arguments = script.format(data=shared_data).split()
    command = [sys.executable, Path(__file__).resolve().parents[1] / "scripts" / name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 wrong" in done.stdout
