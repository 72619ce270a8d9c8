"""Which slide the content of a folder is of: all processes that fill it agree, and no other slide's content gets in."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from kin_cli.errors import InputError, OutputError
from kin_cli.slide.files import NOTED_BYTES, SlideIdentity
from kin_cli.store.files import create_atomic, os_errors_as_output_errors, output_error, read_regular, write_atomic
from kin_cli.store.work import as_text, parsed

_FILE = re.compile(r"slide-[0-9a-f]{16}\.json")


class SharedIdentity:
    """The slide that the content of a folder (unfinished work, a kept table) was made from; processes share it there.

    Every set of stamps under which the slide was seen has a file ``slide-<key>.json`` with the stamps and, as soon as
    one process knows it, the digest. So a job on a node with a copy of the slide takes part, and no two processes write
    different things into one file. All digests must be equal.

    ``others_live`` tells whether other processes may be filling the folder right now, and so be computing a digest.
    ``hint`` tells what to do if the folder belongs to another slide, ``note`` is told of what takes a while.
    """

    def __init__(
        self,
        folder: Path,
        identity: SlideIdentity,
        *,
        contents: str,
        hint: str,
        note: Callable[[str], None],
        others_live: Callable[[], bool],
    ) -> None:
        self._folder, self._identity, self._contents, self._hint = folder, identity, contents, hint
        self._note, self._others_live = note, others_live

    def join(self) -> None:
        """Record the slide in the folder, and begin to compute its digest unless another process does.

        Raises:
            OutputError: the folder's content is of another slide, or that cannot be known; a file cannot be written.
            InputError: a file of the slide cannot be read.
        """
        known, identity = self._known(), self._identity
        mine = _key(identity.stamps)
        is_new, alone = mine not in known, not self._others_live()
        identity.adopt(known.get(mine))
        if identity.as_dict()["sha256"] is None and any(known.values()) and (is_new or alone):
            if identity.bytes > NOTED_BYTES:
                self._note(f"{identity.path}: comparing its checksum with that of earlier work")
            identity.sha256()
        self._require_one(known, whole=alone)
        unknown = identity.as_dict()["sha256"] is None  # before it is recorded: the digest may come at any moment
        self._record(mine, may_fail=not is_new or any(known.values()))
        if unknown:
            identity.when_known(lambda _sha256: self._record(mine, may_fail=False))
            if is_new or alone:
                identity.begin()

    def settle(self, *, whole: bool) -> None:
        """Raise as ``join`` does, or if the slide was changed since then: before the work is used.

        ``whole``: no other process will add to the work, so nothing may stay unknown.
        """
        if self._identity.begun and not whole:
            self._identity.sha256()  # for the other processes
        try:
            self._identity.check_unchanged()
        except InputError:
            self.spoil_if_changed()
            raise
        known = self._known()
        self._identity.adopt(known.get(_key(self._identity.stamps)))
        if whole and len(known) > 1:
            self._identity.sha256()
        self._require_one(known, whole=whole)

    def spoil_if_changed(self) -> None:
        """Record the stamps that the slide has now, if they are others: for work that ends before it is settled.

        The work may hold what was read of other bytes. So it is not continued when the slide is as it was before, only
        if the bytes of these stamps turn out to be the same.
        """
        with suppress(InputError, OSError):
            now = SlideIdentity(self._identity.path)
            if now.stamps != self._identity.stamps:
                create_atomic(self._folder / f"slide-{_key(now.stamps)}.json", as_text(now.as_dict()))

    def _known(self) -> dict[str, str | None]:
        """The digest, if it is known, of the slide under each set of stamps."""
        found: dict[str, str | None] = {}
        with os_errors_as_output_errors(self._folder):
            for file in sorted(self._folder.iterdir()):
                if not _FILE.fullmatch(file.name):
                    continue
                recorded = parsed(file, read_regular(file), hint=self._hint)
                sha256 = recorded.get("sha256")
                found[_key(recorded.get("files"))] = None if sha256 is None else str(sha256)
        return found

    def _require_one(self, known: Mapping[str, str | None], *, whole: bool) -> None:
        mine = self._identity.as_dict()["sha256"]
        if len({*known.values(), mine} - {None}) > 1:
            raise OutputError(
                f"{self._folder}: holds {self._contents} of another slide of this name (its bytes differ)", self._hint
            )
        others = (sha256 for key, sha256 in known.items() if key != _key(self._identity.stamps))
        if whole and None in others:
            raise OutputError(
                f"{self._folder}: holds {self._contents} of a slide that was changed, copied or moved before its "
                "checksum was known",
                self._hint,
            )

    def _record(self, mine: str, *, may_fail: bool) -> None:
        """Write what is known of the slide; with ``may_fail`` a folder that cannot be written to is no error."""
        file, identity = self._folder / f"slide-{mine}.json", self._identity.as_dict()
        try:
            if not file.exists():
                create_atomic(file, as_text(identity))
            if identity["sha256"] is not None and read_regular(file) != as_text(identity):
                write_atomic(file, as_text(identity))
        except OSError as error:
            if not may_fail:
                raise output_error(file, error) from error


def _key(stamps: object) -> str:
    return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16]
