"""Crash-safe file writing, the names of work folders, and system errors as ``OutputError`` with a hint."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from kin_cli.errors import OutputError, UsageError

WORK_ENDING = ".kin-work"
_BLOCK_BYTES = 1 << 20
_NAME_BYTES = 255  # longest file name on nearly every file system
_BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_AGAIN = "run the same command again: it continues where it stopped"
_CAUSES: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("no space left on the disk", f"free some space and {_AGAIN}"),
    errno.EDQUOT: ("the disk quota is used up", f"free some space and {_AGAIN}"),
    errno.EFBIG: (
        "the file would be larger than this disk or `ulimit -f` allows",
        f"raise the limit or choose another disk, then {_AGAIN}",
    ),
    errno.EACCES: ("no permission", "choose an output folder that you may write to"),
    errno.EPERM: ("no permission", "choose an output folder that you may write to"),
    errno.EROFS: ("the disk is read-only", "choose an output folder that you may write to"),
    errno.EEXIST: ("was made by another program meanwhile", "move that file, or say --overwrite"),
    errno.ENOENT: ("no such file or folder", "create the folder or choose another output"),
    errno.ENOTDIR: ("a part of the path is not a folder", "choose another output"),
    errno.ELOOP: ("a loop of symbolic links", "remove the link, or choose another output"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
    errno.EIO: ("the disk reports an input/output error", f"check the disk, then {_AGAIN}"),
}


def real(path: Path) -> Path:
    """The path that all names of a file or folder share, without links; a loop of links is left as it is."""
    return Path(os.path.realpath(path))  # Path.resolve raises for loops


def work_folder(output: Path) -> Path:
    """The folder beside ``output`` that holds its unfinished work, whether it exists or not."""
    return named_beside(output, WORK_ENDING)


def named_beside(path: Path, ending: str) -> Path:
    """The path with ``ending`` added to its name; a name too long for a file is cut, and a digest of it added."""
    whole = os.fsencode(path.name)
    if len(whole) + len(ending) <= _NAME_BYTES:
        return path.with_name(path.name + ending)
    rest = f"~{hashlib.sha256(whole).hexdigest()[:16]}{ending}"
    return path.with_name(whole[: _NAME_BYTES - len(rest)].decode(errors="ignore") + rest)


def remote_hint(path: Path) -> str | None:
    """What to do about a path that is an address such as ``s3://bucket/slide.svs``; None for any other path."""
    address = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+[^/]", str(path))
    if address is None or path.exists():
        return None
    return f"kin reads and writes files: copy it here, or mount {address[1]} as a folder (rclone mount, gcsfuse …)"


def output_error(path: Path, error: OSError) -> OutputError:
    """An ``OutputError`` for a failed operation on ``path``: its name, the cause, and what to do."""
    cause, hint = _CAUSES.get(error.errno or 0, (error.strerror or str(error), _AGAIN))
    return OutputError(f"{path}: {cause}", hint)


@contextmanager
def os_errors_as_output_errors(path: Path) -> Iterator[None]:
    """Raise every ``OSError`` of the block as an ``OutputError`` that names ``path``."""
    try:
        yield
    except OSError as error:
        raise output_error(path, error) from error


@contextmanager
def working_folder(folder: Path) -> Iterator[Path]:
    """Create ``folder`` if it does not exist; remove it again if the block fails and has left it empty."""
    with os_errors_as_output_errors(folder):
        folder.mkdir(exist_ok=True)
    try:
        yield folder
    except BaseException:
        with suppress(OSError):  # not empty: it holds unfinished work
            folder.rmdir()
        raise


def bytes_text(count: float) -> str:
    """An amount of bytes in a binary unit, to three significant figures: "512 MiB", "1.50 GiB"."""
    unit = 0
    while count >= 1023.5 and unit < len(_BINARY_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    number = f"{count:.0f}" if unit == 0 or count >= 100 else f"{count:#.3g}".rstrip(".")
    return f"{number} {_BINARY_UNITS[unit]}"


def write_all(fd: int, payload: bytes) -> None:
    """Write all of ``payload`` at the file's position (a single ``os.write`` may write only a part of it)."""
    view = memoryview(payload)
    while view:
        view = view[os.write(fd, view) :]


def write_at(fd: int, offset: int, payload: bytes) -> None:
    """Write ``payload`` at ``offset``, the end of the file; on any failure cut the file to that length again."""
    os.lseek(fd, offset, os.SEEK_SET)
    try:
        write_all(fd, payload)
    except BaseException:
        with suppress(OSError):
            os.ftruncate(fd, offset)
        raise


def read_at(fd: int, offset: int, size: int) -> bytes:
    """Up to ``size`` bytes from ``offset``, fewer only where the file ends; safe from several threads."""
    parts: list[bytes] = []
    while size > 0 and (part := os.pread(fd, size, offset)):
        parts.append(part)
        offset += len(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


# macOS has no fdatasync
sync_data: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)


def sync_folder(folder: Path) -> None:
    """Make changes to the names in ``folder`` (created, renamed, removed files) durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        # some network file systems refuse to sync a folder; they are durable without it
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(fd)


def write_atomic(path: Path, content: bytes) -> None:
    """Replace ``path`` by a file with ``content``; after a crash either the old or the new file is there, complete.

    Raises ``OSError``.
    """
    temporary = written_beside(path, content)
    temporary.replace(path)
    sync_folder(path.parent)


def create_atomic(path: Path, content: bytes) -> bool:
    """Create ``path`` with ``content``; False if the file exists already.

    Of several processes one succeeds, and no reader sees a part of the content. Raises ``OSError``.
    """
    temporary = written_beside(path, content)
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return False
    except OSError:
        # a file system without hard links: O_EXCL is exclusive, too, but others see an empty file for a moment
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def written_beside(path: Path, content: bytes) -> Path:
    """Write ``content`` to a temporary file in the folder of ``path``, sync it, and return its path."""
    hidden = path.with_name(f".{path.name}"[:-1] if len(os.fsencode(path.name)) == _NAME_BYTES else f".{path.name}")
    temporary = named_beside(hidden, f".{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # left by a process of the same number; O_EXCL follows no link that replaces it
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        write_all(fd, content)
        os.fsync(fd)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    finally:
        os.close(fd)
    return temporary


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises ``OSError`` for anything else: one would wait on a pipe for ever."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(fd, "rb")
    os.close(fd)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    raise OSError(errno.EINVAL, "is a pipe or a device, not a file", str(path))


def read_regular(path: Path) -> bytes:
    """All bytes of a regular file; see ``open_regular``."""
    with open_regular(path) as file:
        return file.read()


def head_of(path: Path, size: int) -> bytes:
    """The first bytes of a regular file, at most ``size``; see ``open_regular``."""
    with open_regular(path) as file:
        return file.read(size)


def file_sha256(path: Path, *, before_block: Callable[[], None] | None = None) -> str:
    """SHA-256 of a file's bytes, hexadecimal, as ``sha256sum`` prints it. Raises ``OSError``, see ``open_regular``.

    ``before_block`` is called before each MiB; what it raises ends the reading.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(_BLOCK_BYTES):
            if before_block is not None:
                before_block()
            digest.update(block)
    return digest.hexdigest()


def read_toml(file: Path, *, hint: str) -> dict[str, Any]:
    """The keys and values of a TOML file. Raises ``UsageError`` with ``hint`` if it cannot be read or is none."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        text = read_regular(file).decode("utf-8-sig")
        values: dict[str, Any] = tomllib.loads(text)
        return values
    except FileNotFoundError:
        raise UsageError(f"{file}: no such file", hint) from None
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror or error}", hint) from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: not UTF-8 (byte {error.start})", "save it as UTF-8") from None
    except RecursionError:
        raise UsageError(f"{file}: nested too deeply", hint) from None
    except ValueError as error:  # tomllib's own, and of numbers that Python does not read
        keys = re.findall(r"^[ \t]*([\w-]+)[ \t]*=", text, re.MULTILINE)
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise UsageError(f"{file}: the key '{twice[0]}' stands in it more than once", "keep one of them") from None
        raise UsageError(f"{file}: not a readable TOML file: {error}", hint) from None


@contextmanager
def utf8_name(path: Path, *, write: bool = False) -> Iterator[str]:
    """A name of the file that libraries which take only UTF-8 can open, until the block ends."""
    try:
        path_text = str(path)
        path_text.encode()
    except UnicodeEncodeError:
        fd = os.open(path, os.O_RDWR | os.O_CREAT if write else os.O_RDONLY, 0o666)
        try:
            yield f"/dev/fd/{fd}"
        finally:
            os.close(fd)
    else:
        yield path_text


def publish(finished: Path, destination: Path, *, replace: bool = True) -> None:
    """Give a complete file its final name; after a crash it is there whole or not.

    A file of that name is replaced, or with ``replace`` False kept: then ``FileExistsError`` is raised, also if it
    appeared this very moment. Both names must be on the same file system. Raises ``OSError``.
    """
    fd = os.open(finished, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    if replace:
        finished.replace(destination)
    else:
        _name_exclusively(finished, destination)
    sync_folder(destination.parent)


def _name_exclusively(finished: Path, destination: Path) -> None:
    """Rename a file unless the new name is taken; a hard link is what tells without a gap between."""
    try:
        destination.hardlink_to(finished)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(destination):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(destination)) from None
        finished.replace(destination)
    else:
        finished.unlink()
