"""The files of a slide, before any reader touches them: what a file is, what belongs to the slide, whether it changed.

``check_file`` refuses what is certainly no slide, and says what it is; formats without a reader are named.

``slide_files`` lists the files that a slide consists of, and ``SlideIdentity`` tells whether they are those of earlier
work. It has two notions, one cheap and one exact:

* A *stamp* is what the file system tells of a file: name, size, times of modification and of the last change of its
  entry, inode number. Equal stamps mean the same bytes. The time of change cannot be set by a user, so a file that was
  replaced or edited has another stamp even if its size and its time of modification are the old ones.
  The reverse is not true, a touch, a chmod or a hard link changes the stamp, too: where stamps differ, the digest
  decides.
* The *digest* is SHA-256 over the bytes. It recognises a copy elsewhere or with other times as the same slide. Reading
  all bytes takes a while, so it runs in a thread beside the work, unless something earlier must be compared first.
"""

from __future__ import annotations

import hashlib
import re
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from kin_cli.errors import InputError
from kin_cli.store.files import file_sha256, head_of, remote_hint

HEAD_BYTES = 4096
_COMPANIONS_BYTES = 1 << 20  # of a file's beginning, in which the names of its companions or its series are looked for
NOTED_BYTES = 1 << 28
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
_DICOM_MARK = (128, b"DICM")
_SERIES_TAG = b"\x20\x00\x0e\x00"  # (0020,000E) SeriesInstanceUID, little-endian
_OME_FILE = re.compile(rb'FileName="([^"]+)"')
_VMS_VALUE = re.compile(r"=\s*([^\r\n]+?)\s*$", re.MULTILINE)


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
        return head_of(path, HEAD_BYTES)
    except FileNotFoundError:
        hint = remote_hint(path) or "check the path and its spelling"
        raise InputError(f"{path}: no such file", hint) from None
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
    beside = path.parent / f"{path.name}.mrxs"
    if beside.is_file():
        return f"a MIRAX slide is named by its .mrxs file: {beside}"
    inside = sorted(path.glob("*.dcm"))
    if inside:
        return f"a DICOM slide is named by one of its files, such as {inside[0]}"
    return (
        "name one file; of a DICOM slide, any .dcm file within the folder; of a MIRAX slide, the .mrxs file beside it"
    )


def slide_files(path: Path) -> list[Path]:
    """All files that the slide ``path`` consists of, ``path`` first, the others by name.

    MIRAX: the ``.mrxs`` file and everything in the folder of its name. DICOM: every file of the folder that belongs to
    the same series. VMS and VMU: the files that the index names. OME-TIFF: the files that its XML names. Else one file.

    Raises:
        InputError: a file or folder cannot be read.
    """
    path = Path(path)
    try:
        suffix, head = path.suffix.lower(), head_of(path, _COMPANIONS_BYTES)
        if suffix == ".mrxs":
            others = [file for file in path.with_suffix("").rglob("*") if file.is_file()]
        elif (series := _series(head)) is not None:
            others = [
                file
                for file in path.parent.iterdir()
                if file.is_file() and _series(head_of(file, _COMPANIONS_BYTES)) == series
            ]
        elif suffix in (".vms", ".vmu"):
            named = _VMS_VALUE.findall(head.decode("latin-1"))
            others = _beside(path, named)
        elif head[:2] in (b"II", b"MM") and b"OME" in head:
            others = _beside(path, (Path(name.decode("utf-8", "replace")).name for name in _OME_FILE.findall(head)))
        else:
            others = []
    except OSError as error:
        raise InputError(
            f"{path}: its files cannot be listed: {error.strerror}", "check the files and their permissions"
        ) from error
    return [path, *sorted(set(others) - {path})]


def dicom_series(path: Path) -> bytes | None:
    """SeriesInstanceUID of a DICOM file, empty if it has none; None for any other file. Raises ``OSError``."""
    return _series(head_of(path, _COMPANIONS_BYTES))


def _beside(path: Path, names: Iterable[str]) -> list[Path]:
    """The regular files of these names in the folder of ``path``; names that are none, or lead elsewhere, are left out.

    A file that names others can be hostile, and so can the names.
    """
    plain = {name for name in names if name not in ("", ".", "..") and "/" not in name and "\0" not in name}
    return [path.parent / name for name in plain if (path.parent / name).is_file()]


class _Closed(Exception):
    """``SlideIdentity.close`` was called while the digest was computed."""


class SlideIdentity:
    """The files of one slide with their stamps, and their digest as soon as it is known.

    ``close`` ends the thread that computes the digest, if it still runs.

    Raises:
        InputError: a file of the slide cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._files = slide_files(self.path)
        self.stamps = _stamps(self._files)
        self._sha256: str | None = None
        self._error: InputError | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._listeners: list[Callable[[str], None]] = []

    @property
    def begun(self) -> bool:
        """Whether the thread that computes the digest was started."""
        return self._thread is not None

    def begin(self) -> None:
        """Compute the digest in a thread of its own, if it is not known."""
        if not self.begun and self._sha256 is None:
            self._thread = threading.Thread(target=self._compute, name="kin-digest", daemon=True)
            self._thread.start()

    def when_known(self, listener: Callable[[str], None]) -> None:
        """Call ``listener`` once with the digest, now or as soon as it is known, perhaps from another thread."""
        with self._lock:
            if self._sha256 is None:
                self._listeners.append(listener)
                return
        listener(self._sha256)

    def sha256(self) -> str:
        """The digest, hexadecimal; waits for the thread, or computes it now. ``InputError`` if a file cannot be read.

        One file: SHA-256 of its bytes, as ``sha256sum`` prints it. Several: SHA-256 of a line "name, size, SHA-256" for
        each, the main file without its name, the others by their names within the slide's folder.
        """
        if self._thread is not None:
            self._thread.join()
        elif self._sha256 is None:
            self._compute()
        if self._error is not None:
            raise self._error
        if self._sha256 is None:
            raise InputError(f"{self.path}: its checksum was not finished", "run the same command again")
        return self._sha256

    def as_dict(self) -> dict[str, Any]:
        """Stamps and digest for JSON; ``sha256`` is None while it is not known."""
        return {"files": self.stamps, "sha256": self._sha256}

    @property
    def bytes(self) -> int:
        """Size of all files of the slide."""
        return sum(int(stamp[1]) for stamp in self.stamps)

    def adopt(self, sha256: str | None) -> None:
        """Take over a digest that was computed of files with these very stamps."""
        if sha256 is not None and self._sha256 is None and not self.begun:
            self._sha256 = sha256

    def check_unchanged(self) -> None:
        """Raise ``InputError`` if a file of the slide was changed, added or removed since this object was made.

        If only stamps changed, and the digest was known before, all bytes are read and compared.
        """
        files = slide_files(self.path)
        now = _stamps(files)
        if now == self.stamps:
            return
        hint = "run the command again when nobody writes to it"
        if self._sha256 is None:
            what = "was changed, or got other time stamps, while it was read and before its checksum was known"
            raise InputError(f"{self.path}: the slide {what}", hint)
        try:
            same = self._digest(files) == self._sha256 and _stamps(slide_files(self.path)) == now
        except OSError as error:
            raise _unreadable(error, self.path) from error
        if not same:
            raise InputError(f"{self.path}: the slide was changed while it was read", hint)
        self._files, self.stamps = files, now

    def is_recorded(self, recorded: Mapping[str, Any], *, note: Callable[[str], None]) -> bool | None:
        """Whether ``recorded`` (an earlier ``as_dict``) tells of the same bytes; None where that cannot be known.

        Equal stamps are enough. Otherwise the digest is computed and compared; ``note`` is told where that takes a
        while. None: the stamps differ and the digest was not known when it was recorded.
        """
        if recorded.get("files") == self.stamps:
            self.adopt(sha256 if isinstance(sha256 := recorded.get("sha256"), str) else None)
            return True
        wanted = recorded.get("sha256")
        if wanted is None:
            return None
        if self._sha256 is None and self.bytes > NOTED_BYTES:
            note(f"{self.path}: comparing its checksum with that of earlier work")
        return self.sha256() == str(wanted)

    def close(self) -> None:
        """Stop computing the digest."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> SlideIdentity:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _compute(self) -> None:
        try:
            sha256 = self._digest(self._files)
            self.check_unchanged()  # otherwise the digest may not be that of the pixels that were read
        except _Closed:
            return
        except InputError as error:
            self._error = error
            return
        except OSError as error:
            self._error = _unreadable(error, self.path)
            return
        with self._lock:
            self._sha256 = sha256
            listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener(sha256)

    def _digest(self, files: list[Path]) -> str:
        if len(files) == 1:
            return file_sha256(self.path, before_block=self._raise_if_closed)
        total = hashlib.sha256()
        for file, name in zip(files, _names(files), strict=True):
            found = file_sha256(file, before_block=self._raise_if_closed)
            total.update(f"{name}\t{file.stat().st_size}\t{found}\n".encode(errors="surrogateescape"))
        return total.hexdigest()

    def _raise_if_closed(self) -> None:
        if self._stop.is_set():
            raise _Closed


def _unreadable(error: OSError, path: Path) -> InputError:
    return InputError(
        f"{error.filename or path}: cannot be read: {error.strerror}", "check the file and its permissions"
    )


def _stamps(files: list[Path]) -> list[list[Any]]:
    """[name, size, mtime_ns, ctime_ns, inode] of each file, as JSON keeps it."""
    found = []
    for file, name in zip(files, _names(files), strict=True):
        try:
            status = file.stat()
        except OSError as error:
            raise InputError(f"{file}: cannot be read: {error.strerror}", "check the slide's files") from error
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{file}: is not a regular file", "copy the slide into a file of its own")
        found.append([name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino])
    return found


def _names(files: list[Path]) -> Iterator[str]:
    """Names that do not change if the slide is renamed: "" for the main file, else the path within its folder."""
    main = files[0]
    for file in files:
        inside = main.with_suffix("")
        if file == main:
            yield ""
        else:
            relative = file.relative_to(inside) if inside in file.parents else file.relative_to(main.parent)
            yield str(relative).encode("utf-8", "backslashreplace").decode()


def _series(head: bytes) -> bytes | None:
    """SeriesInstanceUID of a DICOM file, None for any other file."""
    at, mark = _DICOM_MARK
    if head[at : at + 4] != mark:
        return None
    place = head.find(_SERIES_TAG)
    if place < 0:
        return b""
    explicit = head[place + 4 : place + 6] == b"UI"
    length = int.from_bytes(head[place + 6 : place + 8] if explicit else head[place + 4 : place + 8], "little")
    return head[place + 8 : place + 8 + min(length, 64)].rstrip(b"\0 ")
