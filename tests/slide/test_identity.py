"""The identity of a slide: every byte of every file counts, copies are recognised; against hashlib."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from kin_cli.errors import InputError
from kin_cli.slide.identity import SlideIdentity, slide_files


def ignore(_message: str) -> None:
    """Do without the note."""


@pytest.fixture
def svs(tmp_path: Path) -> Path:
    """One file of 3 MiB and a bit."""
    file = tmp_path / "slide.svs"
    file.write_bytes(bytes(range(256)) * 12_300)
    return file


@pytest.fixture
def mirax(tmp_path: Path) -> Path:
    """An index and a folder of data files, as MIRAX slides have."""
    index, folder = tmp_path / "case.mrxs", tmp_path / "case"
    index.write_bytes(b"\xff\xd8\xff index")
    folder.mkdir()
    (folder / "Slidedat.ini").write_text("[GENERAL]\n")
    (folder / "Data0000.dat").write_bytes(os.urandom(5000))
    return index


def dicom(uid: str, body: bytes) -> bytes:
    """The first bytes of a DICOM file with a SeriesInstanceUID, explicit little-endian."""
    value = uid.encode() + b"\0" * (len(uid) % 2)
    return b"\0" * 128 + b"DICM" + b"\x20\x00\x0e\x00UI" + len(value).to_bytes(2, "little") + value + body


def flip(file: Path, at: int) -> None:
    """Change one bit and put size and time of modification back."""
    status = file.stat()
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_the_digest_of_one_file_is_that_of_sha256sum(svs: Path) -> None:
    assert SlideIdentity(svs).sha256() == hashlib.sha256(svs.read_bytes()).hexdigest()


def test_the_thread_finds_the_same_and_tells_it_once(svs: Path) -> None:
    told: list[str] = []
    with SlideIdentity(svs) as identity:
        identity.when_known(told.append)
        identity.begin()
        found = identity.sha256()
        identity.when_known(told.append)
    assert told == [found, found]


@pytest.mark.parametrize("at", [0, 1_500_000, -1])
def test_any_changed_byte_is_noticed_even_with_the_old_time(svs: Path, at: int) -> None:
    before = SlideIdentity(svs)
    before.sha256()
    recorded = before.as_dict()
    flip(svs, at)
    assert SlideIdentity(svs).is_recorded(recorded, note=ignore) is False
    with pytest.raises(InputError, match="was changed while it was read"):
        before.check_unchanged()


def test_an_untouched_slide_needs_no_digest(svs: Path) -> None:
    recorded = SlideIdentity(svs).as_dict()
    assert recorded["sha256"] is None
    assert SlideIdentity(svs).is_recorded(recorded, note=ignore) is True


def test_a_copy_elsewhere_with_another_time_is_the_same_slide(
    svs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kin_cli.slide.identity._NOTED_BYTES", 1000)
    original = SlideIdentity(svs)
    original.sha256()
    copy = tmp_path / "elsewhere" / "other name.svs"
    copy.parent.mkdir()
    shutil.copyfile(svs, copy)
    os.utime(copy, (1, 1))
    notes: list[str] = []
    assert SlideIdentity(copy).is_recorded(original.as_dict(), note=notes.append) is True
    assert len(notes) == 1
    assert "checksum" in notes[0]


def test_a_copy_of_a_slide_whose_digest_was_not_known_is_not_taken_for_it(svs: Path, tmp_path: Path) -> None:
    recorded = SlideIdentity(svs).as_dict()
    copy = tmp_path / "copy.svs"
    shutil.copyfile(svs, copy)
    assert SlideIdentity(copy).is_recorded(recorded, note=ignore) is None


def test_every_file_of_a_mirax_slide_counts(mirax: Path, tmp_path: Path) -> None:
    whole = SlideIdentity(mirax)
    whole.sha256()
    assert {file.name for file in slide_files(mirax)} == {"case.mrxs", "Slidedat.ini", "Data0000.dat"}
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    shutil.copyfile(mirax, renamed / "b.mrxs")
    shutil.copytree(mirax.with_suffix(""), renamed / "b")
    assert SlideIdentity(renamed / "b.mrxs").is_recorded(whole.as_dict(), note=ignore) is True
    flip(mirax.with_suffix("") / "Data0000.dat", 2500)
    assert SlideIdentity(mirax).is_recorded(whole.as_dict(), note=ignore) is False
    with pytest.raises(InputError, match="was changed"):
        whole.check_unchanged()


def test_a_file_that_is_added_or_removed_is_noticed(mirax: Path) -> None:
    whole = SlideIdentity(mirax)
    whole.sha256()
    extra = mirax.with_suffix("") / "Data0001.dat"
    extra.write_bytes(b"more")
    assert SlideIdentity(mirax).is_recorded(whole.as_dict(), note=ignore) is False
    extra.unlink()
    assert SlideIdentity(mirax).is_recorded(whole.as_dict(), note=ignore) is True


def test_a_dicom_slide_is_the_files_of_its_series(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(dicom("1.2.3", b"level 0"))
    (tmp_path / "b.dcm").write_bytes(dicom("1.2.3", b"level 1"))
    (tmp_path / "c.dcm").write_bytes(dicom("1.2.34", b"another slide"))
    (tmp_path / "notes.txt").write_text("DICM")
    assert [file.name for file in slide_files(tmp_path / "a.dcm")] == ["a.dcm", "b.dcm"]
    recorded = SlideIdentity(tmp_path / "a.dcm")
    recorded.sha256()
    flip(tmp_path / "c.dcm", -1)
    assert SlideIdentity(tmp_path / "a.dcm").is_recorded(recorded.as_dict(), note=ignore) is True
    flip(tmp_path / "b.dcm", -1)
    assert SlideIdentity(tmp_path / "a.dcm").is_recorded(recorded.as_dict(), note=ignore) is False


def test_a_vms_index_names_its_files(tmp_path: Path) -> None:
    (tmp_path / "s.vms").write_text("[Virtual Microscope Specimen]\nImageFile=s.jpg\nMapFile=s_map2.jpg\nNoLayers=1\n")
    for name in ("s.jpg", "s_map2.jpg", "other.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    assert [file.name for file in slide_files(tmp_path / "s.vms")] == ["s.vms", "s.jpg", "s_map2.jpg"]


def test_a_change_while_the_digest_is_made_gives_no_digest(svs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = SlideIdentity(svs)
    whole = SlideIdentity._file_digest

    def change_first(self: SlideIdentity, file: Path) -> str | None:
        flip(svs, 10)
        return whole(self, file)

    monkeypatch.setattr(SlideIdentity, "_file_digest", change_first)
    with pytest.raises(InputError, match="was changed"):
        identity.sha256()
    assert identity.as_dict()["sha256"] is None


def test_a_pipe_is_refused_and_not_waited_on(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    (tmp_path / "s.mrxs").write_bytes(b"x")
    os.mkfifo(folder / "pipe.dat")
    assert [file.name for file in slide_files(tmp_path / "s.mrxs")] == ["s.mrxs"]
