"""What a file is before it is opened as a slide; which files belong to a slide, and whether they changed."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kin_cli.errors import InputError
from kin_cli.slide.files import SlideIdentity, check_file, slide_files
from kin_cli.slide.open import open_slide
from kin_cli.store.files import file_sha256
from tests.helpers.cases_slides import write_label_first


@pytest.mark.parametrize(
    ("name", "content", "message", "hint"),
    [
        ("a.svs", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "Git LFS", "git lfs pull"),
        ("a.svs", b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "a web page", "again"),
        ("a.ndpi", b"<HTML><head><title>404</title>", "a web page", "again"),
        ("a.svs", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "error message", "again"),
        ("a.svs", bytes(100_000), "only zeros", "again"),
        ("a.svs", b"", "is empty", "copy it again"),
        ("a.svs", gzip.compress(b"II*\0"), "a gzip archive", "unpack"),
        ("a.svs", b"PK\x03\x04" + bytes(99), "a ZIP archive", "unpack"),
        ("a.tar", bytes(1) + b"x" * 256 + b"ustar" + bytes(99), "a tar archive", "unpack"),
        ("a.nd2", b"\xda\xce\xbe\x0a" + bytes(99), "Nikon ND2", "OME-TIFF"),
        ("a.vsi", b"II*\0" + bytes(99), "Olympus VSI", "OME-TIFF"),
        ("a.webp", b"RIFF\0\0\0\0WEBPVP8 ", "WebP", "PNG"),
        ("a.companion.ome", b'<?xml version="1.0"?><OME xmlns="x"><Image/></OME>', "without its pixels", "OME-TIFF"),
        ("a.mrxs", b"\xff\xd8\xff\xe0" + bytes(99), "without its folder a", "copy the folder"),
        ("a.svs", b"no slide at all" * 9, "known format", "kin reads"),
    ],
)
def test_what_is_no_slide_is_named(tmp_path: Path, name: str, content: bytes, message: str, hint: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        open_slide(path)
    assert str(path) in caught.value.message
    assert hint in (caught.value.hint or "")
    assert "damaged" not in str(caught.value)


def test_a_mirax_slide_with_an_incomplete_folder(tmp_path: Path) -> None:
    (tmp_path / "a.mrxs").write_bytes(b"\xff\xd8\xff\xe0" + bytes(99))
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="not complete"):
        open_slide(tmp_path / "a.mrxs")


def test_pipes_sockets_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.svs")
    began = time.monotonic()
    with pytest.raises(InputError, match=r"a pipe \(FIFO\)"):
        open_slide(tmp_path / "pipe.svs")
    for device in ("/dev/null", "/dev/zero"):
        with pytest.raises(InputError, match="a device"):
            open_slide(Path(device))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        with pytest.raises(InputError, match="a socket"):
            open_slide(tmp_path / "s")
    assert time.monotonic() - began < 5


def test_the_head_of_a_slide(tmp_path: Path) -> None:
    path = write_label_first(tmp_path / "a.tif", ome=False)
    assert check_file(path) == path.read_bytes()[:4096]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    from PIL import Image

    folder = os.fsencode(tmp_path)
    tiff = Path(os.fsdecode(folder + b"/sch\xe4del.tif"))
    write_label_first(tiff, ome=False)
    with open_slide(tiff) as slide:
        assert slide.levels[0].width == 320
    photo = Path(os.fsdecode(folder + b"/sch\xe4del.png"))
    Image.new("RGB", (20, 10), (1, 2, 3)).save(photo)
    with open_slide(photo) as slide:
        assert slide.levels[0].width == 20


def test_a_missing_slide_is_told_before_torch_is_loaded(tmp_path: Path) -> None:
    code = (
        "import sys; from kin_cli.commands.main import run\n"
        f"code = run(['translate', {str(tmp_path / 'nothing.svs')!r}])\n"
        "print(code, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False", "False"]
    assert "nothing.svs: no such file" in done.stderr


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
    monkeypatch.setattr("kin_cli.slide.files.NOTED_BYTES", 1000)
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

    def changed_first(path: Path, **options: Any) -> str:
        flip(svs, 10)
        return file_sha256(path, **options)

    monkeypatch.setattr("kin_cli.slide.files.file_sha256", changed_first)
    with pytest.raises(InputError, match="was changed"):
        identity.sha256()
    assert identity.as_dict()["sha256"] is None


def test_a_pipe_is_refused_and_not_waited_on(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    (tmp_path / "s.mrxs").write_bytes(b"x")
    os.mkfifo(folder / "pipe.dat")
    assert [file.name for file in slide_files(tmp_path / "s.mrxs")] == ["s.mrxs"]
