"""Beginning work on an output, or going on with it: what an earlier run left, and whether the disk has room."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from kin_cli.errors import OutputError
from kin_cli.store.files import amount, os_errors_as_output_errors
from kin_cli.store.work import WorkFolder

_BEGUN = "begun"
ALONE = "0"  # the shard of a process that does all the work


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


def work_folder(output: Path) -> Path:
    """Where the unfinished work of ``output`` lies, if there is any."""
    return output.with_name(f"{output.name}.kin-work")


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
