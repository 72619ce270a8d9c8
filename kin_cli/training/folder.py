"""The folder of a run: which files in it are a run's own, and that no other is ever replaced or deleted."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from kin_cli.errors import OutputError, UsageError
from kin_cli.outputs import refuse_inputs
from kin_cli.store.claim import Claim
from kin_cli.store.files import os_errors_as_output_errors, real, sync_folder
from kin_cli.store.work import delete_work

STATE_FILE = "state.pt"
LOG_FILE, EVALUATION_LOG = "log.csv", "evaluation.csv"
GENERATOR_FILE, EXPORTED_FILE = "generator.safetensors", "generator.pth"
SAMPLES, EVALUATION = "samples", "evaluation"

_FILES = (EXPORTED_FILE, GENERATOR_FILE, LOG_FILE, EVALUATION_LOG, STATE_FILE)  # in the order of their removal
_INSIDE = {  # names in the folders of a run
    SAMPLES: re.compile(r"\.?[0-9]{7,}\.png(?:\.[0-9]+\.tmp)?"),
    EVALUATION: re.compile(r".+-[0-9]+-(?:in|kin)\.ome\.tif(?:\.json|\.kin-work)?|table-[0-9]+"),
}


def check_run_folder(output: Path, inputs: Iterable[tuple[Path, str]], *, overwrite: bool) -> None:
    """Raise unless a run may begin or continue in the folder ``output``, before anything is written there.

    A folder is taken that is missing, empty, or holds the state of a run; with ``overwrite`` also if the state is
    damaged. ``inputs`` are all files that the run reads, with what they are, in words.

    Raises:
        OutputError: It is no folder, or a link; it holds files but no state; a file of the run is a link or no file.
        UsageError: A file that the run would replace is one of its inputs.
    """
    if not output.parent.is_dir():
        raise OutputError(f"{output.parent}: no such folder", "create it, or choose another output with -o")
    if output.is_symlink():
        raise OutputError(f"{output}: is a symbolic link, and kin follows none there", "name the folder itself with -o")
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output}: is a file", "a run needs a folder: choose another output with -o")
    if not output.exists():
        return
    with os_errors_as_output_errors(output):
        _refuse_special(output)
        _refuse_inputs(output, list(inputs))
        own = re.compile(rf"\.{re.escape(STATE_FILE)}\.[0-9]+\.tmp")  # left by a run that was killed
        names = sorted(p.name for p in output.iterdir() if not (Claim.owns(p) or own.fullmatch(p.name)))
        if names and STATE_FILE not in names:
            raise OutputError(
                f"{output}: holds {', '.join(names[:3])}, but no state of a run of kin train",
                "choose a new or an empty folder with -o, or move these files",
            )
        if overwrite and names and output.stat().st_uid != os.geteuid():
            raise OutputError(f"{output}: belongs to another user", "choose another output with -o")


def clear_run_folder(output: Path) -> None:
    """Delete all that runs have written into the folder ``output`` but the state, by name. Other files are left.

    Raises:
        OutputError: A file cannot be deleted, or a table or work folder holds files that kin did not make.
    """
    with os_errors_as_output_errors(output):
        for name, own in _INSIDE.items():
            folder = output / name
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if own.fullmatch(path.name):
                    if stat.S_ISDIR(path.lstat().st_mode):
                        delete_work(path)
                    else:
                        path.unlink()
            with suppress(OSError):  # it holds other files, or is missing
                folder.rmdir()
        for name in _FILES[:-1]:
            (output / name).unlink(missing_ok=True)
        sync_folder(output)


def _refuse_special(output: Path) -> None:
    """Raise ``OutputError`` if a link or a pipe has the name of a file or folder of a run, or one that of the other."""
    for names, is_right, what in ((_FILES, stat.S_ISREG, "file"), (_INSIDE, stat.S_ISDIR, "folder")):
        for path in (output / name for name in names):
            if os.path.lexists(path) and not is_right(path.lstat().st_mode):
                raise OutputError(f"{path}: is not a {what} that a run makes", "move it, or choose another output")


def _refuse_inputs(output: Path, inputs: list[tuple[Path, str]]) -> None:
    """Raise ``UsageError`` if a run in ``output`` would replace one of its inputs."""
    refuse_inputs([output / name for name in _FILES], inputs)
    for path, what in inputs:
        place = real(path)
        for name in _INSIDE:
            if real(output / name) in place.parents:
                raise UsageError(f"{path}: {what} is in a folder that the run writes to", "choose another --output")
