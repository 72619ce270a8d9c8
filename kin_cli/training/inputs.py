"""Which files a run learns from: their stamps and digests are kept in its state, and compared when it continues."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

from kin_cli.errors import InputError, OutputError
from kin_cli.outputs import slide_inputs
from kin_cli.progress import Progress
from kin_cli.slide.files import SlideIdentity
from kin_cli.slide.open import find_images
from kin_cli.training.settings import LsesimLosses, TrainSettings

_AT_ONCE_BYTES = 1 << 27  # so few bytes are read before the first step
_HINT = "restore it, give another --output, or --overwrite starts afresh"

SLIDES = ("source", "target")
"""Kinds of which neither a file may be added nor one be left out."""
_OF_SLIDES = (*SLIDES, "guide", "evaluation")
_UNNAMED = ("start", "vgg")  # one file each, under any name


def input_files(settings: TrainSettings) -> dict[str, list[Path]]:
    """The files of a run by kind: slides of both stains, slides to evaluate on, and files of weights.

    Raises:
        UsageError: A folder holds no slide or image.
    """
    patches, losses = settings.patches, settings.losses
    vgg = losses.vgg if isinstance(losses, LsesimLosses) else None
    held_out, inception = settings.evaluation.slides, settings.evaluation.inception
    found: dict[str, list[Path | None]] = {
        "source": [*find_images(patches.source)],
        "target": [*find_images(patches.target)],
        "evaluation": [] if held_out is None else [*find_images(held_out)],
        "guide": [] if patches.guide is None else [*find_images(patches.guide)],
        "start": [settings.network.start],
        "vgg": [vgg],
        "inception": [inception],
    }
    return {kind: [file for file in files if file is not None] for kind, files in found.items()}


def described(files: Mapping[str, Iterable[Path]]) -> Iterator[tuple[Path, str]]:
    """Every file of the ``input_files``, also those that a slide's own file names, with what it is, in words."""
    for kind, paths in files.items():
        for path in paths:
            yield from slide_inputs(path, f"a slide of --{kind}" if kind in _OF_SLIDES else f"the file of --{kind}")


class RunInputs:
    """The identities of all files of a run.

    One thread takes the digests, one file after the other, beside the work. The files of small runs are read at once.
    What is no file is left out: it is refused where it is opened. A context manager, which stops the thread at its end.

    Raises:
        InputError: A file cannot be read.
    """

    def __init__(self, given: Mapping[str, Iterable[Path]]) -> None:
        files = {kind: [path for path in paths if path.is_file()] for kind, paths in given.items()}
        self._by_path = {path: SlideIdentity(path) for path in dict.fromkeys(chain(*files.values()))}
        self._identities = {
            kind: {"" if kind in _UNNAMED else path.name: self._by_path[path] for path in paths}
            for kind, paths in files.items()
        }
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, progress: Progress) -> None:
        """Compute the digests that are not known yet."""
        if self._bytes_left() <= _AT_ONCE_BYTES:
            self.finish(progress)
        else:
            self._thread = threading.Thread(target=self._compute, name="kin-digests", daemon=True)
            self._thread.start()

    def finish(self, progress: Progress) -> None:
        """Wait for all digests, or compute them. Raises ``InputError`` if a file was changed meanwhile."""
        if self._bytes_left() > _AT_ONCE_BYTES:
            progress.note("waiting for the checksums of the slides, by which the run knows them when it continues")
        if self._thread is not None:
            self._thread.join()
        for identity in self._unknown():
            identity.sha256()

    def check_unchanged(self, *, whole: bool) -> None:
        """Raise ``InputError`` if a file was changed since the run began or continued.

        Unless ``whole``, only the main file of a slide of several is looked at.
        """
        for path, identity in self._by_path.items():
            try:
                if whole or _stamp(path) != identity.stamps[0][1:]:
                    identity.check_unchanged()
            except (InputError, OSError):
                hint = "the state of the last save is kept; restore the file to continue from there"
                raise InputError(f"{path}: was changed during the training", hint) from None

    def as_dict(self) -> dict[str, Any]:
        """Stamps and digests by kind and name, for JSON; a digest is None while it is not known."""
        return {
            kind: {_plain(name): identity.as_dict() for name, identity in identities.items()}
            for kind, identities in self._identities.items()
        }

    def require_same(self, recorded: Mapping[str, Any], folder: Path, *, note: Callable[[str], None]) -> None:
        """Raise ``OutputError`` unless the files are those that ``recorded``, an earlier ``as_dict``, tells of.

        Slides to evaluate on and their weights may be added or left out, but not change under one name.
        """
        for kind, identities in self._identities.items():
            earlier = recorded.get(kind, {})
            if kind in (*SLIDES, "guide"):
                _require_names(kind, list(earlier), [_plain(name) for name in identities], folder)
            for name, identity in identities.items():
                known = earlier.get(_plain(name))
                if known is not None:
                    _require_same_file(kind, identity, known, folder, note)

    def _unknown(self) -> list[SlideIdentity]:
        return [identity for identity in self._by_path.values() if identity.as_dict()["sha256"] is None]

    def _bytes_left(self) -> int:
        return sum(stamp[1] for identity in self._unknown() for stamp in identity.stamps)

    def _compute(self) -> None:
        for identity in self._unknown():
            if self._stop.is_set():
                return
            with suppress(InputError, AssertionError):  # ``finish`` meets the error again; or it was closed meanwhile
                identity.sha256()

    def __enter__(self) -> RunInputs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for identity in self._by_path.values():
            identity.close()
        if self._thread is not None:
            self._thread.join()


def _require_names(kind: str, earlier: list[str], now: list[str], folder: Path) -> None:
    gone, new = (sorted(set(a) - set(b)) for a, b in ((earlier, now), (now, earlier)))
    for names, what in ((gone, "is missing"), (new, "was not there")):
        if names:
            raise OutputError(
                f"{folder}: was begun with other {kind} slides: {names[0]} {what}"
                + (f", and {len(gone) + len(new) - 1} more differ" if len(gone) + len(new) > 1 else ""),
                "give the same slides to continue it, another --output, or --overwrite starts afresh",
            )


def _require_same_file(
    kind: str, identity: SlideIdentity, known: Mapping[str, Any], folder: Path, note: Callable[[str], None]
) -> None:
    same = identity.is_recorded(known, note=note)
    if same is None:
        raise OutputError(
            f"{folder}: {identity.path} was changed, copied or moved before its checksum was known, so it may be "
            f"another {kind} file than the run was begun with",
            _HINT,
        )
    if not same:
        raise OutputError(f"{folder}: was begun with another {kind} file {identity.path}: its bytes differ", _HINT)


def _stamp(path: Path) -> list[int]:
    """What ``SlideIdentity.stamps`` says of the main file, without its name."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _plain(name: str) -> str:
    """A file name as JSON in UTF-8 keeps it."""
    return name.encode("utf-8", "backslashreplace").decode()
