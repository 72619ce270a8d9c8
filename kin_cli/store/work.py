"""The folder ``<output>.kin-work/`` that holds unfinished work, so that the same command continues it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from kin_cli.errors import OutputError
from kin_cli.store.claim import Claim
from kin_cli.store.files import create_atomic, os_errors_as_output_errors, sync_folder, write_atomic
from kin_cli.store.fingerprint import as_json, as_text, differences, parsed

_FINGERPRINT = "fingerprint.json"
_OVERWRITE_HINT = "--overwrite starts afresh"


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
        folder = output.with_name(f"{output.name}.kin-work")
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
