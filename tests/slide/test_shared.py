"""Processes that fill one folder agree on the slide: copies and touched files take part, other bytes never do."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kin_cli.errors import InputError, OutputError
from kin_cli.slide.files import SlideIdentity
from kin_cli.slide.shared import SharedIdentity
from kin_cli.translation import translate
from tests.helpers.processes import assert_refused, kin
from tests.helpers.progress import Killed, Watcher, die_at
from tests.helpers.translations import SMALL, command_settings, digest, made


def shared(folder: Path, identity: SlideIdentity, *, live: bool = False) -> SharedIdentity:
    return SharedIdentity(
        folder, identity, contents="work", hint="remove it", note=lambda _: None, others_live=lambda: live
    )


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    """A file that stands for a slide."""
    path = tmp_path / "slide.tif"
    path.write_bytes(os.urandom(100_000))
    return path


def copy_of(slide: Path, name: str, *, change: bool = False) -> Path:
    copy = slide.parent / name / slide.name
    copy.parent.mkdir()
    content = bytearray(slide.read_bytes())
    content[-1] ^= change
    copy.write_bytes(content)
    return copy


def test_a_digest_that_is_still_being_computed_elsewhere_is_awaited_until_the_end(slide: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    first, same, other = (
        SlideIdentity(path) for path in (slide, copy_of(slide, "a"), copy_of(slide, "b", change=True))
    )
    begun = first.begin
    first.begin = lambda: None  # type: ignore[method-assign]  # its thread is slow
    shared(folder, first).join()
    for identity in (same, other):
        shared(folder, identity, live=True).join()
        assert identity.begun
    with pytest.raises(OutputError, match="bytes differ"):
        shared(folder, other, live=True).settle(whole=False)  # the digest of the copy is known by now
    next(
        file for file in folder.glob("slide-*.json") if json.loads(file.read_bytes())["files"] == other.stamps
    ).unlink()
    with pytest.raises(OutputError, match="before its checksum was known"):
        shared(folder, same).settle(whole=True)
    begun()
    first.sha256()
    shared(folder, same).settle(whole=True)
    for identity in (first, same, other):
        identity.close()


def test_another_slide_is_refused_at_once_where_the_digest_is_known(slide: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    with SlideIdentity(slide) as first:
        shared(folder, first).join()
        first.sha256()
    for live in (False, True):
        with pytest.raises(OutputError, match="another slide") as caught:
            shared(folder, SlideIdentity(copy_of(slide, f"b{live}", change=True)), live=live).join()
        assert caught.value.hint == "remove it"
        with SlideIdentity(copy_of(slide, f"a{live}")) as copy:
            shared(folder, copy, live=live).join()
            assert copy.sha256() == first.sha256()


def test_one_process_reads_all_bytes_and_the_others_take_its_digest(slide: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    with SlideIdentity(slide) as first, SlideIdentity(slide) as second, SlideIdentity(slide) as third:
        shared(folder, first).join()
        shared(folder, second, live=True).join()
        assert (first.begun, second.begun) == (True, False)
        wanted = first.sha256()
        shared(folder, second, live=True).settle(whole=False)
        shared(folder, third).join()
        assert (second.as_dict()["sha256"], third.as_dict()["sha256"], third.begun) == (wanted, wanted, False)


def touched(slide: Path) -> None:
    os.utime(slide, (1, 1))
    slide.chmod(0o600)
    slide.with_name("hard link").hardlink_to(slide)


def changed(slide: Path) -> None:
    status = slide.stat()
    with slide.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x07")
    os.utime(slide, ns=(status.st_atime_ns, status.st_mtime_ns))


def meanwhile(slide: Path, output: Path, do: Callable[[Path], None]) -> Watcher:
    """Does something to the slide in the middle of pass 2, after the digest is known."""

    def at(stage: str, done: int) -> None:
        if (stage, done) == ("apply", 1):
            [state] = output.with_name(f"{output.name}.kin-work").glob("slide-*.json")
            while json.loads(state.read_bytes())["sha256"] is None:
                time.sleep(0.01)
            do(slide)

    return Watcher(at)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A photograph of six patches."""
    pixels = np.random.default_rng(5).integers(30, 220, (250, 380, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_a_touch_during_the_work_does_no_harm(photo: Path, tiny_generator: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.ome.tif"
    record = translate(command_settings(photo, tiny_generator, output), meanwhile(photo, output, touched))
    assert record["slide_files"] == SlideIdentity(photo).as_dict() | {"sha256": digest(photo)}
    assert digest(output) == made(photo, tiny_generator, tmp_path / "plain")


@pytest.mark.parametrize("killed", [False, True])
def test_work_from_changed_bytes_is_never_continued(
    photo: Path, tiny_generator: Path, tmp_path: Path, killed: bool
) -> None:
    """Not even when the slide is as it was before: nobody knows which tiles were made meanwhile."""
    output, before = tmp_path / "out.ome.tif", photo.read_bytes()

    def change(slide: Path) -> None:
        changed(slide)
        if killed:
            raise Killed

    with pytest.raises(Killed if killed else InputError, match=None if killed else "was changed while it was read"):
        translate(command_settings(photo, tiny_generator, output), meanwhile(photo, output, change))
    with pytest.raises(OutputError, match="another slide") as caught:
        translate(command_settings(photo, tiny_generator, output), Watcher())
    assert "--overwrite" in (caught.value.hint or "")
    photo.write_bytes(before)
    with pytest.raises(OutputError, match=r"another slide|before its checksum"):
        translate(command_settings(photo, tiny_generator, output), Watcher())
    translate(command_settings(photo, tiny_generator, output, "--overwrite"), Watcher())
    assert digest(output) == made(photo, tiny_generator, tmp_path / "plain")


def test_work_that_was_stopped_after_a_touch_goes_on(photo: Path, tiny_generator: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.ome.tif"

    def touch_and_die(slide: Path) -> None:
        touched(slide)
        raise Killed

    with pytest.raises(Killed):
        translate(command_settings(photo, tiny_generator, output), meanwhile(photo, output, touch_and_die))
    again = Watcher()
    translate(command_settings(photo, tiny_generator, output), again)
    assert any("patches are measured" in note for note in again.notes)
    assert digest(output) == made(photo, tiny_generator, tmp_path / "plain")


def test_a_change_is_noticed_before_the_work_goes_on(slide: Path, tmp_path: Path) -> None:
    """The stamps of the changed slide are known, but not yet its bytes."""
    folder = tmp_path / "work"
    folder.mkdir()
    with SlideIdentity(slide) as first:
        work = shared(folder, first)
        work.join()
        first.sha256()
        changed(slide)
        work.spoil_if_changed()
    with pytest.raises(OutputError, match="another slide"):
        shared(folder, SlideIdentity(slide)).join()
    assert len(list(folder.iterdir())) == 2


def test_shards_on_nodes_with_copies_of_the_slide(photo: Path, tiny_generator: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.ome.tif"
    one, two, other = copy_of(photo, "one"), copy_of(photo, "two"), copy_of(photo, "other", change=True)
    common = ("-m", tiny_generator, "-o", output, *SMALL)
    assert kin("translate", photo, *common, "--pass", "measure", "--shard", "1/2").code == 0
    refused = kin("translate", other, *common, "--pass", "measure", "--shard", "2/2")
    assert_refused(refused, "another slide of this name", f"remove {output}.kin-work")
    assert "--overwrite" not in refused.err
    assert kin("translate", one, *common, "--pass", "measure", "--shard", "2/2").code == 0
    assert kin("translate", two, *common, "--pass", "apply").code == 0
    touched(photo)
    result = kin("assemble", photo, *common)
    assert result.code == 0, result.err
    assert digest(output) == made(photo, tiny_generator, tmp_path / "plain")


def test_the_hint_for_a_table_of_another_slide_works(photo: Path, tiny_generator: Path, tmp_path: Path) -> None:
    table = tmp_path / "table"
    with pytest.raises(Killed):
        translate(
            command_settings(photo, tiny_generator, tmp_path / "a.tif", "--table", table), Watcher(die_at("apply", 1))
        )
    other = copy_of(photo, "other", change=True)
    refused = kin("translate", other, "-m", tiny_generator, "-o", tmp_path / "b.tif", *SMALL, "--table", table)
    assert_refused(refused, str(table), "another slide", "another folder with --table", "remove")
    assert "--overwrite" not in refused.err
    more = ("--table", tmp_path / "table2")
    assert kin("translate", other, "-m", tiny_generator, "-o", tmp_path / "b.tif", *SMALL, *more).code == 0


def test_a_digest_that_becomes_known_while_the_slide_is_recorded_is_recorded_too(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, identity = tmp_path / "table", SlideIdentity(slide)
    folder.mkdir()
    record = SharedIdentity._record

    def then_it_is_known(self: SharedIdentity, mine: str, *, may_fail: bool) -> None:
        record(self, mine, may_fail=may_fail)
        monkeypatch.setattr(SharedIdentity, "_record", record)
        identity.sha256()  # as the thread of the work folder does at this very moment

    monkeypatch.setattr(SharedIdentity, "_record", then_it_is_known)
    shared(folder, identity).join()
    (file,) = folder.iterdir()
    assert json.loads(file.read_bytes())["sha256"] == digest(slide)
