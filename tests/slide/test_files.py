"""Files that are no slides are told as what they are, before any reader and without waiting."""

from __future__ import annotations

import gzip
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kin_cli.errors import InputError
from kin_cli.slide.files import check_file
from kin_cli.slide.open import open_slide
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
