"""What a file is before any reader touches it: kind, size and first bytes. Standard library only, so it costs nothing.

Files that are certainly no slide are refused here with what they are; formats without a reader are named.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from kin_cli.errors import InputError

HEAD_BYTES = 4096
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
READABLE = "kin reads what OpenSlide reads (SVS, NDPI, MRXS, SCN, DICOM, tiled TIFF, …), OME-TIFF, TIFF, PNG and JPEG"
EXPORT_HINT = "export it as OME-TIFF, for example with QuPath or with bfconvert of Bio-Formats"
_AGAIN_HINT = "get the file itself again from its source"
_UNPACK_HINT = "unpack it, and give the slide inside"
_NO_FILES = {
    stat.S_ISFIFO: "a pipe (FIFO)",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}
_ARCHIVES = {
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
    b"Rar!": "a RAR archive",
}
_OTHER_FORMATS = {
    b"ZISRAWFILE": "a Zeiss CZI file of a kind that OpenSlide does not open",
    b"\xda\xce\xbe\x0a": "a Nikon ND2 file",
    b"\x89HDF": "an HDF5 file",
    b"p\0\0\0": "a Leica LIF file",
    b"<DataObject": "a Philips iSyntax file",
    b"%PDF": "a PDF file",
    b"BM": "a BMP image",
    b"GIF8": "a GIF image",
    b"\0\0\0\x0cjP": "a JPEG 2000 image",
    b"\xff\x4f\xff\x51": "a JPEG 2000 image",
    b"\0\0\0\x0cJXL": "a JPEG XL image",
    b"SIMPLE  =": "a FITS image",
}
_OTHER_ENDINGS = {
    ".vsi": "an Olympus VSI file, whose pictures are in the folder beside it",
    ".ets": "a part of an Olympus VSI slide",
    ".isyntax": "a Philips iSyntax file",
    ".kfb": "a KFB file",
    ".sdpc": "an SDPC file",
    ".tmap": "a TMAP file",
    ".mds": "an MDS file",
    ".ndpis": "a list of fluorescence channels (NDPIS)",
    ".afi": "a list of fluorescence channels (AFI)",
}


def check_file(path: Path) -> bytes:
    """The first 4096 bytes of a file that may be a slide.

    Raises:
        InputError: the file is missing, a folder, a pipe, a device, unreadable, empty, or certainly something else: a
            pointer of Git LFS, an error page, an archive, zeros.
    """
    head = _head(path)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        raise InputError(f"{path}: the file is empty", "copy it again from its source")
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        raise InputError(f"{path}: a pointer of Git LFS, not the slide itself", "fetch the slide with git lfs pull")
    if not head.strip(b"\0") and len(head) >= 8:
        what = "holds only zeros where a slide begins, as after a download or copy that did not finish"
        raise InputError(f"{path}: {what}", _AGAIN_HINT)
    if text.startswith((b"<!doctype", b"<html", b"<head")):
        raise InputError(f"{path}: a web page, not a slide: the server sent an error or a login page", _AGAIN_HINT)
    if text.startswith(b"<?xml") and b"<error" in text:
        raise InputError(f"{path}: an error message of a server, not a slide", _AGAIN_HINT)
    for signature, what in _ARCHIVES.items():
        if head.startswith(signature):
            raise InputError(f"{path}: {what}, not a slide", _UNPACK_HINT)
    if head[257:262] == b"ustar":
        raise InputError(f"{path}: a tar archive, not a slide", _UNPACK_HINT)
    return head


def unknown_format(path: Path, head: bytes) -> InputError | None:
    """The refusal of a file that OpenSlide does not recognise and that is of another known format; otherwise None."""
    ending, text = path.suffix.lower(), head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if ending == ".mrxs":
        return _mirax(path)
    if ending in _OTHER_ENDINGS:
        return InputError(f"{path}: {_OTHER_ENDINGS[ending]}, which kin does not read", EXPORT_HINT)
    if head.startswith(TIFF_SIGNATURES):
        return None
    if b"<ome" in text or b":ome " in text:
        hint = "name the OME-TIFF file beside it"
        return InputError(f"{path}: the description (OME-XML) of an image, without its pixels", hint)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return InputError(f"{path}: a WebP image, which kin does not read", "convert it to PNG")
    for signature, what in _OTHER_FORMATS.items():
        if head.startswith(signature):
            return InputError(f"{path}: {what}, which kin does not read", EXPORT_HINT)
    return None


def _head(path: Path) -> bytes:
    """The first bytes of a regular file; never waits, whatever ``path`` names."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise InputError(f"{path}: a folder, not a slide", _folder_hint(path))
        for kind, what in _NO_FILES.items():
            if kind(mode):
                raise InputError(f"{path}: {what}, not a file", "kin reads slides from regular files")
        # should a pipe take the file's place at this very moment, it must not block, either
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            return file.read(HEAD_BYTES)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file", "check the path and its spelling") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be opened: {error.strerror}", "check the file and its permissions") from error
    except ValueError as error:  # a NUL in the name
        raise InputError(f"{str(path)!r}: no possible name of a file: {error}", "check the path") from error


def _mirax(path: Path) -> InputError:
    folder = path.with_suffix("")
    if not folder.is_dir():
        hint = "copy the folder, too: it stands beside the file and has its name"
        return InputError(f"{path}: a MIRAX slide without its folder {folder.name}", hint)
    hint = f"copy the folder {folder.name} again, with all its files"
    return InputError(f"{path}: a MIRAX slide whose folder {folder.name} is not complete", hint)


def _folder_hint(path: Path) -> str:
    beside = path.with_name(path.name + ".mrxs")
    if beside.is_file():
        return f"a MIRAX slide is named by its .mrxs file: {beside}"
    inside = sorted(path.glob("*.dcm"))
    if inside:
        return f"a DICOM slide is named by one of its files, such as {inside[0]}"
    return (
        "name one file; of a DICOM slide, any .dcm file within the folder; of a MIRAX slide, the .mrxs file beside it"
    )
