"""A store that outlives the work that filled it, in a folder of its own with the fingerprint of what it holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kin_cli.errors import OutputError
from kin_cli.store.blobs import BlobStore
from kin_cli.store.claim import Claim
from kin_cli.store.files import create_atomic, os_errors_as_output_errors, sync_folder
from kin_cli.store.fingerprint import as_json, as_text, differences, parsed

_FINGERPRINT = "fingerprint.json"


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
