"""The slides in files and folders that a command line names, and an account of all that is left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kin_cli.batch.tasks import SlideTask, Worklist
from kin_cli.errors import InputError, UsageError
from kin_cli.settings import default_output
from kin_cli.slide.files import dicom_series, slide_files
from kin_cli.store.files import WORK_ENDING, real

EXTENSIONS = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".dcm")
STATUS_FOLDER = "kin-batch"
_OWN_ENDING = ".kin.ome.tif"
_OWN_ENDINGS = (_OWN_ENDING, f"{_OWN_ENDING}.json", f"{_OWN_ENDING}.report.html")
_INDICES = (".vms", ".vmu")  # these name the pictures that they consist of
_LISTED = 12


@dataclass(frozen=True)
class Search:
    """How folders are searched: with or without sub-folders, and for which endings (lower case, with the dot)."""

    recursive: bool = False
    extensions: tuple[str, ...] = EXTENSIONS

    @classmethod
    def of(cls, extensions: Sequence[str], *, recursive: bool) -> Search:
        """Make a search from endings as people write them (``svs``, ``.SVS``, ``*.svs``, ``svs,ndpi``).

        No endings mean ``EXTENSIONS``.
        """
        words = " ".join(extensions).replace(",", " ").lower().split()
        dotted = tuple("." + word.lstrip("*.") for word in words if word.lstrip("*."))
        if extensions and not dotted:
            raise UsageError(f"--ext {' '.join(extensions)!r} names no ending", "such as --ext svs")
        return cls(recursive, dotted or EXTENSIONS)


def find_tasks(inputs: Sequence[Path], folder: Path, search: Search) -> Worklist:
    """One task for every file in ``inputs`` and every slide in its folders; the same slide is taken once.

    Outputs go to ``folder``, in the same sub-folders as the slides. The notes count what was left out.

    Raises:
        UsageError: an input does not exist, or no slide is found.
        InputError: no slide is found, and a folder cannot be read.
    """
    tasks, walk = [], _Walk(search, folder)
    for given in inputs:
        try:
            is_folder, exists = given.is_dir(), os.path.lexists(given)
        except (OSError, ValueError) as error:
            raise UsageError(f"{given}: {getattr(error, 'strerror', None) or error}", "check the path") from None
        if is_folder:
            found = walk.slides_in(given)
            tasks += [SlideTask(slide, folder / default_output(slide.relative_to(given))) for slide in found]
        elif exists:
            tasks.append(SlideTask(given, folder / default_output(Path(given.name))))
        else:
            raise UsageError(f"{given}: no such file or folder", "check the path and its spelling")
    tasks, repeated = _once(tasks)
    if not tasks:
        if walk.unreadable:
            raise InputError(walk.unreadable[0], "check its permissions, or leave it out")
        how = "" if search.recursive else "; --recursive searches sub-folders too"
        left_out = "".join(f"; {note}" for note in walk.notes())
        raise UsageError(
            f"{', '.join(map(str, inputs))}: no slide found",
            f"searched for {' '.join(search.extensions)}{how}; see --ext{left_out}",
        )
    return Worklist(tuple(tasks), (*repeated, *walk.notes()), tuple(walk.unreadable))


class _Walk:
    """Searches folders and remembers what it left out."""

    def __init__(self, search: Search, outputs: Path) -> None:
        self._search = search
        self._outputs = real(outputs)
        self._endings: Counter[str] = Counter()
        self._ours = self._folders = self._work = self._hidden = 0
        self._skipped: list[str] = []
        self.unreadable: list[str] = []

    def notes(self) -> list[str]:
        """Return one line for each kind of file that the search left out although it can be read."""
        notes = list(self._skipped)
        if self._endings:
            counts = [f"{count} {ending}" for ending, count in self._endings.most_common(_LISTED)]
            more = len(self._endings) - _LISTED
            notes.append(f"left out: {', '.join(counts)}{f' and {more} more kinds' if more > 0 else ''} (see --ext)")
        if self._ours:
            notes.append(f"left out: {_counted(self._ours, 'output')} of kin ({_OWN_ENDING})")
        if self._work:
            notes.append(f"left out: {_counted(self._work, 'work folder')} of kin (*{WORK_ENDING})")
        if self._hidden:
            notes.append(f"left out: {_counted(self._hidden, 'hidden slide')} or folders of slides (.*)")
        if self._folders:
            notes.append(f"not searched: {_counted(self._folders, 'sub-folder')} (see --recursive)")
        return notes

    def slides_in(self, top: Path) -> list[Path]:
        """The slides in a folder: those of each folder by name, before those of its sub-folders.

        Hidden files, outputs and work folders of kin, data folders of MIRAX and the folder of the outputs are no
        slides; they are counted. Symbolic links to folders are followed after all else, each folder is searched once.
        The files of one DICOM series in a folder are one slide; the first of them stands for it.
        """
        slides: list[Path] = []
        seen: set[tuple[int, int]] = set()
        stack, links = [top], list[Path]()
        while stack or links:
            folder = stack.pop() if stack else links.pop(0)
            try:
                status = folder.stat()
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                with os.scandir(folder) as listed:
                    entries = sorted(listed, key=lambda entry: entry.name)
            except OSError as error:
                self.unreadable.append(f"{folder}: cannot be searched: {error.strerror}")
                continue
            folders = [entry for entry in entries if self._is_folder(entry)]
            slides += self._slides_of(folder, [entry.name for entry in entries if entry not in folders])
            names = {entry.name.lower() for entry in entries}
            inside = [entry for entry in folders if self._is_searched(folder / entry.name, names)]
            links += [folder / entry.name for entry in inside if entry.is_symlink()]
            stack += [folder / entry.name for entry in reversed(inside) if not entry.is_symlink()]
        return slides

    def _is_folder(self, entry: os.DirEntry[str]) -> bool:
        try:
            return entry.is_dir()
        except OSError as error:
            self.unreadable.append(f"{entry.path}: cannot be looked at: {error.strerror}")
            return True  # and so neither a slide nor, since its search fails, a folder of slides

    def _is_searched(self, folder: Path, beside: set[str]) -> bool:
        """Whether to search a sub-folder; ``beside``: lower-case names of the files and folders beside it."""
        name = folder.name.lower()
        if name.startswith("."):
            self._hidden += _holds_slides(folder, self._search)
            return False
        if name.endswith(WORK_ENDING):
            self._work += 1
            return False
        if f"{name}.mrxs" in beside and _is_mirax_data(folder):
            self._note_if_slides(folder, f"not searched, since it holds the data of {folder.name}.mrxs")
            return False
        place = real(folder)
        if place in (self._outputs, self._outputs / STATUS_FOLDER):
            if place == self._outputs:
                self._note_if_slides(folder, "not searched, since the outputs go there")
            return False
        self._folders += not self._search.recursive
        return self._search.recursive

    def _note_if_slides(self, folder: Path, why: str) -> None:
        if _holds_slides(folder, self._search):
            self._skipped.append(f"{folder}: {why}")

    def _slides_of(self, folder: Path, names: list[str]) -> list[Path]:
        """The slides among the files of one folder; counts the others."""
        shown = [name for name in names if not name.startswith(".")]
        self._hidden += sum(name.startswith(".") and name.lower().endswith(self._search.extensions) for name in names)
        companions = {file.name for name in shown if name.lower().endswith(_INDICES) for file in _parts(folder / name)}
        slides = []
        for name in shown:
            if name.lower().endswith(_OWN_ENDINGS):
                self._ours += name.lower().endswith(_OWN_ENDING)
            elif name in companions:
                continue
            elif name.lower().endswith(self._search.extensions):
                slides.append(folder / name)
            else:
                self._endings[Path(name).suffix.lower() or "without ending"] += 1
        return list(_first_of_series(slides))


def _is_mirax_data(folder: Path) -> bool:
    try:
        names = [name.lower() for name in os.listdir(folder)]  # noqa: PTH208 - names are enough
    except OSError:
        return False  # its search fails, and that is told
    return any(name == "slidedat.ini" or name.endswith(".dat") for name in names)


def _holds_slides(folder: Path, search: Search) -> bool:
    try:
        names = [name.lower() for name in os.listdir(folder)]  # noqa: PTH208 - names are enough
    except OSError:
        return False
    return any(
        name.endswith(search.extensions) and not name.startswith(".") and not name.endswith(_OWN_ENDINGS)
        for name in names
    )


def _parts(index: Path) -> list[Path]:
    """The other files of a slide whose index is ``index``."""
    try:
        return slide_files(index)[1:] if index.is_file() else []
    except InputError:
        return []


def _series_key(slide: Path) -> tuple[str, bytes] | None:
    """What the files of one DICOM series have in common; None for another file."""
    if slide.suffix.lower() != ".dcm":
        return None
    try:
        series = dicom_series(slide) if slide.is_file() else None
    except OSError:
        return None
    return (os.path.realpath(slide.parent), series) if series else None


def _first_of_series(slides: Iterable[Path]) -> Iterator[Path]:
    seen = set()
    for slide in slides:
        key = _series_key(slide)
        if key is None or key not in seen:
            yield slide
        seen.add(key)


def _once(tasks: Sequence[SlideTask]) -> tuple[list[SlideTask], list[str]]:
    """The tasks without those of a slide that another names, too, and notes; a link gives way to the file itself."""
    chosen: dict[object, SlideTask] = {}
    repeated: list[tuple[Path, object]] = []
    for task in tasks:
        key = _series_key(task.slide) or os.path.realpath(task.slide)
        other = chosen.get(key)
        if other is None:
            chosen[key] = task
        elif other.slide.is_symlink() and not task.slide.is_symlink():
            repeated.append((other.slide, key))
            chosen[key] = task
        else:
            repeated.append((task.slide, key))
    notes = [
        f"{slide}: the same slide as {chosen[key].slide}, translated once"
        if slide != chosen[key].slide
        else f"{slide}: given more than once, translated once"
        for slide, key in repeated[:_LISTED]
    ]
    if len(repeated) > _LISTED:
        notes.append(f"{len(repeated) - _LISTED} more slides are given more than once, translated once")
    kept = {id(task) for task in chosen.values()}
    return [task for task in tasks if id(task) in kept], notes


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
