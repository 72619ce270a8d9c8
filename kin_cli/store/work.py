"""The folder ``<output>.kin-work/``: unfinished work, kept so that the same command continues where it stopped.

What lies in the folder:

- ``fingerprint.json``: every setting that changes a pixel of the output. A command with another fingerprint is refused;
  the error names the settings that differ.
- ``begun.json`` and other small JSON files: see ``WorkFolder.write_state``.
- ``<store>-<shard>.dat`` and ``.journal``: finished tiles, statistics and the like, see ``store.blobs``.
- ``claim-<shard>`` and ``claim.lock``: which processes are writing here, see ``store.claim``. Each process claims its
  shard before it touches anything else in the folder, and gives the claim up when it ends.

A table that the user keeps (``kept_store``) lies in a folder of the same kind, with two differences: the user names the
folder, which outlives the output; and as soon as the table is complete it is opened read-only and without a claim, so
that any number of processes use it at once.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from kin_cli.errors import OutputError
from kin_cli.store.blobs import BlobStore
from kin_cli.store.claim import Claim
from kin_cli.store.files import (
    bytes_text,
    create_atomic,
    os_errors_as_output_errors,
    read_regular,
    sync_folder,
    work_folder,
    write_atomic,
)

ALONE = "0"  # the shard of a process that does all the work
_FINGERPRINT = "fingerprint.json"
_BEGUN, _FINISHED = "begun", "finished"
# what kin writes into a work folder: states, stores, the output before it gets its name, temporary files of these
_OWN_FILE = re.compile(
    r"\.?(?:(?:fingerprint|begun|finished|record|slide-[0-9a-f]{16})\.json|trust\.(?:png|geojson)"
    r"|[a-z]+-[A-Za-z0-9_.-]+\.(?:dat|journal)|output\.(?:part|tif))"
    r"(?:\.[0-9]+\.tmp)?"
)
_OVERWRITE_HINT = "--overwrite starts afresh"


class WorkFolder:
    """The claimed work folder of one output.

    A context manager: leaving the block gives up the claim and keeps the folder, unless ``remove`` was called.
    """

    def __init__(self, folder: Path, claim: Claim) -> None:
        self.folder = folder
        self._claim = claim

    @classmethod
    def open(
        cls, output: Path, fingerprint: Mapping[str, object], *, overwrite: bool = False, shard: str = ALONE
    ) -> WorkFolder:
        """Create the work folder of ``output``, or continue an existing one with the same fingerprint.

        ``fingerprint`` must be JSON; ``overwrite`` removes existing work first. Jobs that fill the folder together
        each claim it under their own ``shard``. Raises ``OutputError`` if the fingerprints differ (naming the settings
        that do), if a live process holds the claim, or if the folder cannot be written.
        """
        parent = output.parent
        if not parent.is_dir():
            raise OutputError(f"{parent}: no such folder", f"create it before writing {output.name} there")
        if output.is_dir():
            raise OutputError(f"{output}: is a folder, not a file to write", "give a file name for the output")
        folder = work_folder(output)
        with os_errors_as_output_errors(folder):
            with suppress(FileExistsError):
                folder.mkdir()
            refuse_unless_ours(folder)
            _refuse_special_files(folder)
            sync_folder(parent)
        claim = Claim.take(folder, shard, of=output)
        work = cls(folder, claim)
        try:
            if shard == ALONE:  # or it would finish the output, and only then find that it may not remove the folder
                claim.refuse_others()
            if overwrite:
                with os_errors_as_output_errors(folder):
                    work._clear()
            if _holds_foreign_files(folder):
                raise OutputError(f"{folder}: holds files but no {_FINGERPRINT}", _OVERWRITE_HINT)
            _agree(folder, fingerprint, contents="unfinished work", hint=_OVERWRITE_HINT)
        except BaseException:
            claim.release()
            raise
        return work

    def path(self, name: str) -> Path:
        """Path of the file ``name`` in the folder."""
        return self.folder / name

    def read_state(self, name: str) -> dict[str, Any] | None:
        """The JSON object last stored under ``name``; None if there is none."""
        path = self.path(f"{name}.json")
        with os_errors_as_output_errors(path):
            try:
                content = read_regular(path)
            except FileNotFoundError:
                return None
        return parsed(path, content, hint=_OVERWRITE_HINT)

    def write_state(self, name: str, state: Mapping[str, object]) -> None:
        """Store a small JSON object under ``name`` (not ``fingerprint``); a crash leaves the old or the new one."""
        path = self.path(f"{name}.json")
        with os_errors_as_output_errors(path):
            write_atomic(path, as_text(state))

    def touch(self) -> None:
        """Renew the claim, as a thread does every minute; ``OutputError`` if another process has taken it over."""
        self._claim.touch()

    def others_live(self) -> bool:
        """Whether a live process holds another shard of the folder."""
        try:
            self._claim.refuse_others()
        except OutputError:
            return True
        return False

    def remove(self) -> list[str]:
        """Delete the folder and give up the claim: only when the output is complete.

        Returns the names of files in it that are none of kin's; these, and the folder with them, are left.
        """
        with os_errors_as_output_errors(self.folder):
            self._claim.refuse_others()
            foreign = _foreign_names(self.folder)
            self._delete_work()
            self._claim.release()
            Claim.remove_dead(self.folder)
            with suppress(OSError):  # another process may have claimed the folder at this very moment
                self.folder.rmdir()
            sync_folder(self.folder.parent)
        return foreign

    def close(self) -> None:
        """Give up the claim and keep the work."""
        self._claim.release()

    def __enter__(self) -> WorkFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _clear(self) -> None:
        """Delete the work of an earlier run; ``OutputError`` if another shard lives or a file is none of kin's."""
        self._claim.refuse_others()
        refuse_foreign(self.folder, _foreign_names(self.folder))
        self._delete_work()

    def _delete_work(self) -> None:
        """Delete kin's own files but the claims; the fingerprint last, so that a crash leaves no tiles without it."""
        for path in sorted(self.folder.iterdir()):
            if path.name != _FINGERPRINT and _OWN_FILE.fullmatch(path.name) and not path.is_dir():
                path.unlink(missing_ok=True)
        self.path(_FINGERPRINT).unlink(missing_ok=True)
        sync_folder(self.folder)


# Beginning work on an output


def open_work(
    output: Path, fingerprint: Mapping[str, object], *, overwrite: bool = False, shard: str = ALONE
) -> WorkFolder:
    """The claimed work folder of ``output``: as an interrupted run with the same fingerprint left it, or a fresh one.

    ``overwrite`` deletes the work of a run without ``overwrite``, but continues an interrupted run with it. Raises what
    ``WorkFolder.open`` raises.
    """
    try:
        work = WorkFolder.open(output, fingerprint, shard=shard)
    except OutputError:
        # other settings, which overwrite clears; or another job of an array has created the folder at this very moment
        work = WorkFolder.open(output, fingerprint, overwrite=overwrite, shard=shard)
    try:
        begun = work.read_state(_BEGUN)
        if overwrite and not (begun and begun["overwrite"]):
            work.close()
            work = WorkFolder.open(output, fingerprint, overwrite=True, shard=shard)
            begun = None
        if begun is None:
            work.write_state(_BEGUN, {"overwrite": overwrite})
    except BaseException:
        work.close()
        raise
    return work


def about_to_name(work: WorkFolder, finished: Path, output: Path) -> None:
    """Note in the work folder that ``finished`` is about to get the name ``output``: see ``made_by``.

    If the output is there already, from a run that was killed before it wrote its record, it stays noted, too: this run
    may be killed before it replaces it.
    """
    earlier = [_identity(output)] if made_by(work, output) else []
    work.write_state(_FINISHED, {"files": [_identity(finished), *earlier]})


def made_by(work: WorkFolder, output: Path) -> bool:
    """Whether ``output`` is the file that an earlier run of this work finished; see ``about_to_name``."""
    finished, found = work.read_state(_FINISHED), _identity(output)
    return finished is not None and found is not None and found in finished["files"]


def check_disk(output: Path, bytes_needed: int) -> None:
    """Raise ``OutputError`` unless the disk has room for ``bytes_needed``, less what the work folder holds already."""
    with os_errors_as_output_errors(output):
        held = sum(path.stat().st_size for path in work_folder(output).glob("*-*.dat"))
        free = shutil.disk_usage(output.parent).free
    if free < bytes_needed - held:
        raise OutputError(
            f"{output}: needs up to {bytes_text(bytes_needed - held)} more, but {bytes_text(free)} are free there",
            "free some space or choose another disk, then run the same command again",
        )


def _identity(file: Path) -> list[int] | None:
    """Size and time of the last change (ns) of a file; None if it does not exist."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return [status.st_size, status.st_mtime_ns]


# A table that outlives the output


@contextmanager
def kept_store(
    folder: Path,
    fingerprint: Mapping[str, object],
    *,
    name: str,
    shard: str,
    capacity: int,
    wanted: Iterable[int],
) -> Iterator[BlobStore]:
    """Open the store ``name`` in ``folder`` for the block; the folder is created if it does not exist.

    If the store holds all keys ``wanted``, it is opened read-only, so that any number of processes share it. Otherwise
    it is claimed and written, by jobs of different ``shard`` together, and survives any crash.

    Raises ``OutputError`` if the folder holds something else or a store of another ``fingerprint`` (naming the settings
    that differ), or if a live process is writing this shard.
    """
    hint = f"choose another folder, or remove {folder}"
    refuse_other_folder(folder, name)
    with os_errors_as_output_errors(folder):
        if not folder.exists():
            folder.mkdir(exist_ok=True)
            sync_folder(folder.parent)
    _agree(folder, fingerprint, contents=f"a {name}", hint=hint)
    with BlobStore(folder, name, capacity=capacity, read_only=True, remedy=hint) as complete:
        if all(key in complete for key in wanted):
            yield complete
            return
    claim = Claim.take(folder, shard, of=folder)
    try:
        with BlobStore(folder, name, shard=shard, capacity=capacity, remedy=hint) as store:
            yield store
    finally:
        claim.release()


def refuse_other_folder(folder: Path, name: str) -> None:
    """Raise ``OutputError`` if there is a ``folder`` that is neither empty nor that of the kept store ``name``."""
    if folder.is_symlink() and not folder.exists():
        raise OutputError(f"{folder}: is a link to nowhere", "remove the link, or name another folder")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OutputError(f"{folder}: is not a folder with a {name}", "name a folder, a new one or one made before")
    with os_errors_as_output_errors(folder):
        _refuse_special_files(folder)
    if _holds_foreign_files(folder):
        raise OutputError(f"{folder}: holds files but no {name}", "name a new folder, or an empty one")


# What in a folder is ours


def delete_work(folder: Path) -> None:
    """Delete a work folder or a table, if there is one, with everything that kin wrote into it.

    Raises ``OutputError``, and deletes nothing, if it is a link, of another user, in use, or holds foreign files.
    """
    if not os.path.lexists(folder):
        return
    with os_errors_as_output_errors(folder):
        refuse_unless_ours(folder)
        _refuse_special_files(folder)
        refuse_foreign(folder, _foreign_names(folder))
    with WorkFolder(folder, Claim.take(folder, ALONE, of=folder)) as work:
        work.remove()


def refuse_foreign(folder: Path, names: list[str]) -> None:
    """Raise ``OutputError`` if there are ``names``, those of files in ``folder`` that are none of kin's."""
    if names:
        raise OutputError(f"{folder}: holds {', '.join(names[:3])}, which kin did not make", "move it elsewhere")


def refuse_unless_ours(folder: Path) -> None:
    """Raise ``OutputError`` if ``folder`` is a symbolic link, no folder, or belongs to another user."""
    status = folder.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise OutputError(f"{folder}: is a symbolic link, and kin follows none there", "remove the link")
    if not stat.S_ISDIR(status.st_mode):
        raise OutputError(f"{folder}: is not a folder", "move it elsewhere, or choose another output with -o")
    if status.st_uid != os.geteuid():
        raise OutputError(
            f"{folder}: belongs to another user (number {status.st_uid})", "choose another output folder with -o"
        )


def _refuse_special_files(folder: Path) -> None:
    """Raise ``OutputError`` if a link, a pipe or a device has the name of one of kin's files in ``folder``."""
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process has removed it
            if _is_own_name(path) and not stat.S_ISREG(path.lstat().st_mode):
                raise OutputError(f"{path}: is not a regular file, so kin did not make it", "remove it")


def _is_own_name(path: Path) -> bool:
    return bool(_OWN_FILE.fullmatch(path.name)) or Claim.owns(path)


def _foreign_names(folder: Path) -> list[str]:
    """Names of everything in a work folder that kin does not write there."""
    return sorted(path.name for path in folder.iterdir() if not _is_own_name(path))


# Fingerprints: every setting that decides a result, as JSON


def as_text(state: Mapping[str, object]) -> bytes:
    """The mapping as JSON in UTF-8, keys in order."""
    return json.dumps(dict(state), sort_keys=True, ensure_ascii=False, indent=1).encode(errors="backslashreplace")


def as_json(state: Mapping[str, object]) -> dict[str, Any]:
    """The mapping as it is read back from JSON: tuples become lists."""
    result: dict[str, Any] = json.loads(as_text(state))
    return result


def parsed(path: Path, content: bytes, *, hint: str) -> dict[str, Any]:
    """The JSON object in the ``content`` of ``path``; ``OutputError`` with ``hint`` if it is not one."""
    try:
        state = json.loads(content)
    except (ValueError, RecursionError):
        state = None
    if not isinstance(state, dict):
        raise OutputError(f"{path}: is damaged (not a JSON object)", hint)
    return state


def differences(found: Mapping[str, object], wanted: Mapping[str, object]) -> str:
    """One line with ``name: old → new`` for every entry that differs; empty if none does."""
    return "; ".join(
        f"{name}: {_shown(found, name)} → {_shown(wanted, name)}"
        for name in sorted(found.keys() | wanted.keys())
        if name not in found or name not in wanted or found[name] != wanted[name]
    )


def _shown(settings: Mapping[str, object], name: str) -> str:
    return json.dumps(settings[name], ensure_ascii=False) if name in settings else "(not set)"


def _holds_foreign_files(folder: Path) -> bool:
    """Whether a folder without fingerprint holds files that no claim explains."""
    with os_errors_as_output_errors(folder):
        if (folder / _FINGERPRINT).exists():
            return False
        # hidden files are temporary ones that a crash left while the fingerprint was written
        return any(not (path.name.startswith(".") or Claim.owns(path)) for path in folder.iterdir())


def _agree(folder: Path, fingerprint: Mapping[str, object], *, contents: str, hint: str) -> None:
    """Store ``fingerprint`` in a new folder, or raise ``OutputError`` if the one stored there differs."""
    path, wanted = folder / _FINGERPRINT, as_json(fingerprint)
    with os_errors_as_output_errors(folder):
        if not path.exists():
            create_atomic(path, as_text(wanted))
        found = parsed(path, read_regular(path), hint=hint)
    if differing := differences(found, wanted):
        raise OutputError(f"{folder}: holds {contents} of other settings ({differing})", hint)
