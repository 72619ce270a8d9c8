"""The folder ``<figure>.compare.kin-work/``: translations and a table of statistics, until a figure is finished.

Only files that kin knows by name are deleted from it, no link is followed, and a folder of another user is refused.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kin_cli.errors import OutputError
from kin_cli.outputs import network_inputs
from kin_cli.settings import Settings
from kin_cli.slide.files import SlideIdentity
from kin_cli.store.files import WORK_ENDING, named_beside, os_errors_as_output_errors, read_regular, write_atomic
from kin_cli.store.work import as_text, delete_work, parsed, refuse_foreign, refuse_unless_ours

TABLE = "table"
_BEGUN = "begun.json"
_VARIANT = r"in|tin|kin|seamless|(?:kin|kernel)-(?:1|global|(?:constant|gaussian)-[0-9]+(?:-[0-9.]+)?)"


def work_folder_of(figure: Path) -> Path:
    """Return the folder of unfinished work beside ``figure``; a translation's has another name."""
    return named_beside(figure, f".compare{WORK_ENDING}")


@contextmanager
def figure_work(folder: Path, base: Settings, *, overwrite: bool) -> Iterator[None]:
    """Create the work folder of a figure for the block, or continue an interrupted one; it is kept for ``clear``.

    ``overwrite`` first deletes the work of other settings or another slide, and work begun without ``overwrite``.

    Raises:
        OutputError: the folder is a link, of another user, or holds files that kin did not make, with ``overwrite``.
        InputError: the slide is missing or cannot be read.
    """
    wanted = {"overwrite": overwrite, "settings": _settings(base)}
    with os_errors_as_output_errors(folder):
        with suppress(FileExistsError):
            folder.mkdir()
        refuse_unless_ours(folder)
        _refuse_special(folder)
    try:
        begun = _begun(folder)
        if overwrite and begun != wanted:
            refuse_foreign(folder, _foreign_names(folder))
            for path in _own(folder):
                _delete(path)
        if overwrite or begun is None:
            with os_errors_as_output_errors(folder):
                write_atomic(folder / _BEGUN, as_text(wanted))
        yield
    except BaseException:
        with suppress(OSError):
            if [path.name for path in folder.iterdir()] == [_BEGUN]:
                (folder / _BEGUN).unlink()
            folder.rmdir()  # fails if it holds unfinished work
        raise


def clear(folder: Path, variants: Iterable[str] = (), *, note: Callable[[str], None]) -> None:
    """Delete the work of a finished figure, and the folder; what kin did not make is left, with a note."""
    for path in _own(folder, tuple(variants)):
        try:
            _delete(path)
        except OutputError as error:  # the figure is finished
            note(f"{error.message}: it is left")
    with suppress(OSError):
        folder.rmdir()
    if folder.is_dir() and (names := sorted(path.name for path in folder.iterdir())):
        note(f"{folder}: is left, it holds {', '.join(names[:3])}")


def _delete(path: Path) -> None:
    with os_errors_as_output_errors(path):
        if stat.S_ISDIR(path.lstat().st_mode):
            delete_work(path)
        else:
            path.unlink()


def _own(folder: Path, variants: tuple[str, ...] = ()) -> list[Path]:
    """What kin writes into the folder, without following links; ``variants`` are more names of translations."""
    names = "|".join([_VARIANT, *map(re.escape, variants)])
    own = re.compile(rf"(?:{names})\.tif(?:\.json|{re.escape(WORK_ENDING)})?|{TABLE}|\.?{_BEGUN}(?:\.[0-9]+\.tmp)?")
    with os_errors_as_output_errors(folder):
        return sorted(path for path in folder.iterdir() if own.fullmatch(path.name))


def _foreign_names(folder: Path) -> list[str]:
    own = _own(folder)
    return sorted(path.name for path in folder.iterdir() if path not in own)


def _refuse_special(folder: Path) -> None:
    """Raise ``OutputError`` if a link, a pipe or a device has a name that kin uses in ``folder``."""
    for path in _own(folder):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise OutputError(f"{path}: is not a regular file, so kin did not make it", "remove it")


def _begun(folder: Path) -> dict[str, Any] | None:
    path = folder / _BEGUN
    with os_errors_as_output_errors(path):
        try:
            return parsed(path, read_regular(path), hint=f"remove {path}")
        except FileNotFoundError:
            return None


def _settings(base: Settings) -> Any:
    """All settings as JSON, with the stamps of slide and model."""
    model: list[int] = []
    with suppress(OSError):  # it is missing, which is told when it is loaded
        for file, _ in network_inputs(base):
            status = file.stat()
            model += [status.st_size, status.st_mtime_ns]
    slide = base.source.slide
    stamps = SlideIdentity(slide).stamps if slide.is_file() else []  # otherwise it is refused where it is opened
    described = {**asdict(base), "slide": stamps, "model stamp": model}
    described["output"].pop("overwrite")
    return json.loads(json.dumps(described, default=str))
