"""Which slides a batch translates and where each output goes, checked before any work starts.

Slides come from files and folders (``find_tasks``) or from a manifest (``read_manifest``), a CSV file with the columns
``wsi[,mpp,output,model,mask]``.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kin_cli.errors import UsageError
from kin_cli.settings import OutputSettings, default_output
from kin_cli.store.files import WORK_ENDING

EXTENSIONS = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".dcm")
COLUMNS = ("wsi", "mpp", "output", "model", "mask")
_OWN_ENDING = ".kin.ome.tif"


@dataclass(frozen=True)
class SlideTask:
    """One slide of a batch and its output. A field that is None takes the value of the command's option."""

    slide: Path
    output: Path
    source_mpp: float | None = None
    model: Path | None = None
    mask: Path | None = None


@dataclass(frozen=True)
class Search:
    """How folders are searched: with or without sub-folders, and for which endings (lower case, with the dot)."""

    recursive: bool = False
    extensions: tuple[str, ...] = EXTENSIONS

    @classmethod
    def of(cls, extensions: Sequence[str], *, recursive: bool) -> Search:
        """Make a search from endings as people write them (``svs``, ``.SVS``); no endings means ``EXTENSIONS``."""
        dotted = tuple("." + ending.lower().lstrip(".") for ending in extensions)
        return cls(recursive, dotted or EXTENSIONS)


@dataclass(frozen=True)
class Manifest:
    """Tasks read from a manifest, and the names of its unknown columns."""

    tasks: tuple[SlideTask, ...]
    ignored: tuple[str, ...]


def find_tasks(inputs: Sequence[Path], folder: Path, search: Search) -> list[SlideTask]:
    """Return one task for every file in ``inputs`` and every slide in its folders.

    Outputs go to ``folder``, in the same sub-folders as the slides. Raises ``UsageError`` if an input does not exist or
    no slide is found.
    """
    tasks = []
    for given in inputs:
        if given.is_dir():
            found = slides_in(given, search, without=folder)
            tasks += [SlideTask(slide, folder / default_output(slide.relative_to(given))) for slide in found]
        elif given.exists():
            tasks.append(SlideTask(given, folder / default_output(Path(given.name))))
        else:
            raise UsageError(f"{given}: no such file or folder", "check the path and its spelling")
    if not tasks:
        how = "" if search.recursive else "; --recursive searches sub-folders too"
        raise UsageError(
            f"{', '.join(map(str, inputs))}: no slide found",
            f"searched for {' '.join(search.extensions)}{how}; see --ext",
        )
    return list(dict.fromkeys(tasks))


def slides_in(folder: Path, search: Search, *, without: Path) -> list[Path]:
    """Return the slides in a folder, sorted by name.

    Hidden files, outputs and work folders of kin, and the folder ``without`` are left out. All DICOM files of one
    folder count as one slide, as in OpenSlide, and the first file stands for it.
    """
    found: list[Path] = []
    for root, folders, files in os.walk(folder):
        here = Path(root)
        folders[:] = sorted(name for name in folders if search.recursive and _is_searched(here / name, without))
        matching = sorted(name for name in files if _is_slide(name, search))
        dicom = [name for name in matching if name.lower().endswith(".dcm")]
        found += [here / name for name in matching if name in dicom[:1] or not name.lower().endswith(".dcm")]
    return found


def _is_searched(folder: Path, output: Path) -> bool:
    hidden = folder.name.startswith(".") or folder.name.endswith(WORK_ENDING)
    return not hidden and folder.resolve() != output.resolve()


def _is_slide(name: str, search: Search) -> bool:
    lower = name.lower()
    return lower.endswith(search.extensions) and not lower.startswith(".") and not lower.endswith(_OWN_ENDING)


def refuse_collisions(tasks: Sequence[SlideTask]) -> None:
    """Raise ``UsageError`` if two tasks write the same file or one replaces a slide of the batch.

    Includes the JSON record beside each output. Names are compared without regard to case, as some file systems do.
    """
    owners: dict[str, SlideTask] = {}
    for task in tasks:
        for path in _written(task):
            other = owners.setdefault(str(path.resolve()).lower(), task)
            if other != task:
                raise UsageError(
                    f"{other.slide} and {task.slide} would both be written to {path}",
                    "name their outputs in a --manifest",
                )
    slides = {str(task.slide.resolve()).lower() for task in tasks}
    for task in tasks:
        for path in _written(task):
            if str(path.resolve()).lower() in slides:
                raise UsageError(f"{path} is a slide of this batch and would be replaced", "choose another -o")


def _written(task: SlideTask) -> Iterator[Path]:
    yield task.output
    yield OutputSettings(task.output).record_path


def read_manifest(file: Path, *, slides: Path | None, outputs: Path) -> Manifest:
    """Read the tasks of a manifest.

    Relative paths of slides start at ``slides`` (the manifest's folder if None), those of models and masks at the
    manifest's folder, those of outputs at ``outputs``. ``mpp`` is the slide's pixel size in µm. An empty field counts
    as absent. Raises ``UsageError``, naming the line, if the file is unreadable, has a bad value or lists no slide.
    """
    reader = _reader(file)
    tasks = []
    for row in reader:
        fields = {name: (row.get(name) or "").strip() for name in COLUMNS}
        if any(fields.values()):
            folders = (slides or file.parent, file.parent, outputs)
            tasks.append(_task(fields, f"{file}, line {reader.line_num}", folders))
    if not tasks:
        raise UsageError(f"{file}: lists no slide", "one line a slide below the line of column names")
    return Manifest(tuple(tasks), tuple(name for name in reader.fieldnames or () if name not in COLUMNS))


def _reader(file: Path) -> csv.DictReader[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(
            f"{file}: cannot be read: {reason}", f"a CSV file with the columns {','.join(COLUMNS)}"
        ) from None
    head = text.partition("\n")[0]
    delimiter = (
        ";" if ";" in head and "," not in head else ","
    )  # spreadsheets write ; where the decimal mark is a comma
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    names = [(name or "").strip().lower() for name in reader.fieldnames or ()]
    if "wsi" not in names:
        raise UsageError(
            f"{file}: has no column 'wsi' (columns: {', '.join(names) or 'none'})",
            "the first line holds the column names",
        )
    reader.fieldnames = names
    return reader


def _task(fields: Mapping[str, str], where: str, folders: tuple[Path, Path, Path]) -> SlideTask:
    slides, beside, outputs = folders
    if not fields["wsi"]:
        raise UsageError(f"{where}: names no slide", "fill the column 'wsi'")
    slide = slides / fields["wsi"]
    output = outputs / (fields["output"] or default_output(Path(slide.name)))
    return SlideTask(
        slide,
        output,
        source_mpp=_mpp(fields["mpp"], where),
        model=beside / fields["model"] if fields["model"] else None,
        mask=beside / fields["mask"] if fields["mask"] else None,
    )


def _mpp(text: str, where: str) -> float | None:
    if not text:
        return None
    try:
        mpp = float(text)
    except ValueError:
        mpp = math.nan
    if not (math.isfinite(mpp) and mpp > 0):
        raise UsageError(f"{where}: '{text}' is not a pixel size", "µm per pixel, such as 0.25, or an empty field")
    return mpp
