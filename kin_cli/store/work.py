"""The folder ``<output>.kin-work/`` that holds unfinished work, so that the same command continues it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from kin_cli.errors import OutputError
from kin_cli.store.blobs import BlobStore
from kin_cli.store.claim import Claim
from kin_cli.store.files import (
    amount,
    create_atomic,
    os_errors_as_output_errors,
    sync_folder,
    work_folder,
    write_atomic,
)

_FINGERPRINT = "fingerprint.json"
_OVERWRITE_HINT = "--overwrite starts afresh"
_BEGUN = "begun"
ALONE = "0"  # the shard of a process that does all the work


# FROM store.work: The folder ``<output>.kin-work/`` that holds unfinished work, so that the same command continues it.


class WorkFolder:
    """Finished parts of one output, claimed by this process, with the fingerprint of everything that changes pixels.

    A context manager: leaving the block gives up the claim and keeps the folder, unless ``remove`` was called.
    """

    def __init__(self, folder: Path, claim: Claim) -> None:
        self.folder = folder
        self._claim = claim

    @classmethod
    def open(
        cls, output: Path, fingerprint: Mapping[str, object], *, overwrite: bool = False, shard: str = "0"
    ) -> WorkFolder:
        """Create the work folder of ``output``, or continue the one there if its fingerprint is the same.

        ``fingerprint`` must be JSON; ``overwrite`` removes what is there first. Jobs that fill the folder together
        each claim it under their own ``shard``. Raises ``OutputError`` where the fingerprint differs (naming what
        does), where a live process holds the claim, and where the folder cannot be written.
        """
        parent = output.parent
        if not parent.is_dir():
            raise OutputError(f"{parent}: no such folder", f"create it before writing {output.name} there")
        if output.is_dir():
            raise OutputError(f"{output}: is a folder, not a file to write", "give a file name for the output")
        folder = work_folder(output)
        with os_errors_as_output_errors(folder):
            folder.mkdir(exist_ok=True)
            sync_folder(parent)
        claim = Claim.take(folder, shard, of=output)
        work = cls(folder, claim)
        try:
            with os_errors_as_output_errors(folder):
                if overwrite:
                    work._clear()
                work._agree(as_json(fingerprint))
        except BaseException:
            claim.release()
            raise
        return work

    def path(self, name: str) -> Path:
        """Where the file ``name`` of the work lies."""
        return self.folder / name

    def read_state(self, name: str) -> dict[str, Any] | None:
        """What ``write_state`` stored last under ``name``; None if nothing was."""
        path = self.path(f"{name}.json")
        with os_errors_as_output_errors(path):
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                return None
        return parsed(path, content, hint=_OVERWRITE_HINT)

    def write_state(self, name: str, state: Mapping[str, object]) -> None:
        """Store a small JSON object under ``name`` (not ``fingerprint``); after a crash the old or the new is there."""
        path = self.path(f"{name}.json")
        with os_errors_as_output_errors(path):
            write_atomic(path, as_text(state))

    def touch(self) -> None:
        """Show other hosts that we live, as happens every minute by itself; ``OutputError`` if the claim was lost."""
        self._claim.touch()

    def remove(self) -> None:
        """Delete the folder and give up the claim: only when the output is complete."""
        with os_errors_as_output_errors(self.folder):
            self._clear()
            self._claim.release()
            Claim.remove_dead(self.folder)
            with suppress(OSError):  # a process that claimed the folder this very moment keeps it
                self.folder.rmdir()
            sync_folder(self.folder.parent)

    def close(self) -> None:
        """Give up the claim, keep the work."""
        self._claim.release()

    def __enter__(self) -> WorkFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _clear(self) -> None:
        """Delete all but the claims; the fingerprint goes last, lest a crash leave tiles that nothing describes."""
        self._claim.refuse_others()
        for path in sorted(self.folder.iterdir()):
            if path.name != _FINGERPRINT and not Claim.owns(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        self.path(_FINGERPRINT).unlink(missing_ok=True)
        sync_folder(self.folder)

    def _agree(self, wanted: dict[str, Any]) -> None:
        path = self.path(_FINGERPRINT)
        if not path.exists():
            # hidden files are what a crash left of the fingerprint's own writing
            if any(not Claim.owns(other) for other in self.folder.iterdir() if not other.name.startswith(".")):
                raise OutputError(f"{self.folder}: holds files but no {_FINGERPRINT}", _OVERWRITE_HINT)
            create_atomic(path, as_text(wanted))
        found = parsed(path, path.read_bytes(), hint=_OVERWRITE_HINT)
        if differing := differences(found, wanted):
            raise OutputError(f"{self.folder}: holds unfinished work of other settings ({differing})", _OVERWRITE_HINT)


# FROM store.begin: Beginning work on an output, or going on with it: what an earlier run left, and whether the disk has room.


def open_work(
    output: Path, fingerprint: Mapping[str, object], *, overwrite: bool = False, shard: str = ALONE
) -> WorkFolder:
    """The claimed work folder of ``output``: as an interrupted run with the same fingerprint left it, or a fresh one.

    ``overwrite`` clears what a run without it left, and goes on where a run with it was interrupted. Raises what
    ``WorkFolder.open`` raises.
    """
    try:
        work = WorkFolder.open(output, fingerprint, shard=shard)
    except OutputError:
        # Other settings, which overwrite clears; or another job of an array made the folder this very moment.
        work = WorkFolder.open(output, fingerprint, overwrite=overwrite, shard=shard)
    try:
        begun = work.read_state(_BEGUN)
        if overwrite and not (begun and begun["overwrite"]):
            work.close()
            work = WorkFolder.open(output, fingerprint, overwrite=True, shard=shard)
            begun = None
        if begun is None:
            work.write_state(_BEGUN, {"overwrite": overwrite, "found": _identity(output)})
    except BaseException:
        work.close()
        raise
    return work


def made_by(work: WorkFolder, output: Path) -> bool:
    """Whether ``output`` is there and was not when this work began: so an earlier run of this work has finished it."""
    begun, found = work.read_state(_BEGUN), _identity(output)
    return begun is not None and found is not None and found != begun["found"]


def check_disk(output: Path, bytes_needed: int) -> None:
    """Raise ``OutputError`` unless the disk has room for ``bytes_needed``, counting what the work holds already."""
    with os_errors_as_output_errors(output):
        held = sum(path.stat().st_size for path in work_folder(output).glob("*-*.dat"))
        free = shutil.disk_usage(output.parent).free
    if free < bytes_needed - held:
        raise OutputError(
            f"{output}: needs up to {amount(bytes_needed - held)} more, but {amount(free)} are free there",
            "free some space or choose another disk, then run the same command again",
        )


def _identity(file: Path) -> list[int] | None:
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


# FROM store.kept: A store that outlives the work that filled it, in a folder of its own with the fingerprint of what it holds.


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
    """The store ``name`` in ``folder``, which is made where it is missing, for as long as the block runs.

    Where all keys ``wanted`` are there it is opened to be read only, so that any number of processes share it;
    otherwise it is claimed and written, by jobs of different ``shard`` together, and survives any crash.

    Raises ``OutputError`` where the folder holds something else or a store of another ``fingerprint`` (naming what
    differs), and where a live process is writing this shard.
    """
    hint = f"choose another folder, or remove {folder}"
    _agree(folder, as_json(fingerprint), name=name, hint=hint)
    complete = BlobStore(folder, name, capacity=capacity, read_only=True, remedy=hint)
    with complete:
        if all(key in complete for key in wanted):
            yield complete
            return
    claim = Claim.take(folder, shard, of=folder)
    try:
        with BlobStore(folder, name, shard=shard, capacity=capacity, remedy=hint) as store:
            yield store
    finally:
        claim.release()


def _agree(folder: Path, wanted: dict[str, object], *, name: str, hint: str) -> None:
    path = folder / _FINGERPRINT
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is not a folder with a {name}", "name a folder, a new one or one made before")
    with os_errors_as_output_errors(folder):
        if not folder.exists():
            folder.mkdir(exist_ok=True)
            sync_folder(folder.parent)
        if not path.exists():
            if any(not Claim.owns(other) for other in folder.iterdir() if not other.name.startswith(".")):
                raise OutputError(f"{folder}: holds files but no {name}", "name a new folder, or an empty one")
            create_atomic(path, as_text(wanted))
        found = parsed(path, path.read_bytes(), hint=hint)
    if differing := differences(found, wanted):
        raise OutputError(f"{folder}: holds a {name} of other settings ({differing})", hint)


# FROM store.fingerprint: Fingerprints: everything that decides some result, as JSON, and how two of them differ.


def as_text(state: Mapping[str, object]) -> bytes:
    """The mapping as JSON with its keys in order."""
    return json.dumps(dict(state), sort_keys=True, ensure_ascii=False, indent=1).encode()


def as_json(state: Mapping[str, object]) -> dict[str, Any]:
    """The mapping as it will be read back, tuples as lists."""
    result: dict[str, Any] = json.loads(as_text(state))
    return result


def parsed(path: Path, content: bytes, *, hint: str) -> dict[str, Any]:
    """The JSON object that ``path`` held; ``OutputError`` with ``hint`` where it is none."""
    try:
        state = json.loads(content)
    except ValueError:
        state = None
    if not isinstance(state, dict):
        raise OutputError(f"{path}: is damaged (not a JSON object)", hint)
    return state


def differences(found: Mapping[str, object], wanted: Mapping[str, object]) -> str:
    """``name: old → new`` for every entry that differs, in one line; "" where none does."""
    return "; ".join(
        f"{name}: {_shown(found, name)} → {_shown(wanted, name)}"
        for name in sorted(found.keys() | wanted.keys())
        if name not in found or name not in wanted or found[name] != wanted[name]
    )


def _shown(settings: Mapping[str, object], name: str) -> str:
    return json.dumps(settings[name], ensure_ascii=False) if name in settings else "(not set)"
