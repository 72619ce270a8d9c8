"""Which slides a batch translates, and where each goes: all questions are asked before work starts."""

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
_OWN_ENDING = ".kin.ome.tif"
COLUMNS = ("wsi", "mpp", "output", "model", "mask")


# FROM batch.jobs: Which slides a batch translates, and where each goes: all questions are asked before work starts.


@dataclass(frozen=True)
class SlideTask:
    """One slide of a batch; None leaves what the command's own options say."""

    slide: Path
    output: Path
    source_mpp: float | None = None
    model: Path | None = None
    mask: Path | None = None


@dataclass(frozen=True)
class Search:
    """How folders are searched: with their sub-folders, and for which endings (lower case, with their dot)."""

    recursive: bool = False
    extensions: tuple[str, ...] = EXTENSIONS

    @classmethod
    def of(cls, extensions: Sequence[str], *, recursive: bool) -> Search:
        """From endings as people write them: ``svs``, ``.SVS``; none means all that slides commonly have."""
        dotted = tuple("." + ending.lower().lstrip(".") for ending in extensions)
        return cls(recursive, dotted or EXTENSIONS)


def find_tasks(inputs: Sequence[Path], folder: Path, search: Search) -> list[SlideTask]:
    """A job for every file named and every slide in the folders named, whose sub-folders ``folder`` will repeat.

    Raises ``UsageError`` where an input does not exist and where nothing matches.
    """
    jobs = []
    for given in inputs:
        if given.is_dir():
            found = slides_in(given, search, without=folder)
            jobs += [SlideTask(slide, folder / default_output(slide.relative_to(given))) for slide in found]
        elif given.exists():
            jobs.append(SlideTask(given, folder / default_output(Path(given.name))))
        else:
            raise UsageError(f"{given}: no such file or folder", "check the path and its spelling")
    if not jobs:
        how = "" if search.recursive else "; --recursive searches sub-folders too"
        raise UsageError(
            f"{', '.join(map(str, inputs))}: no slide found",
            f"searched for {' '.join(search.extensions)}{how}; see --ext",
        )
    return list(dict.fromkeys(jobs))


def slides_in(folder: Path, search: Search, *, without: Path) -> list[Path]:
    """The slides in a folder, by name. Hidden files and our own outputs and work folders are none.

    All DICOM files of one folder are one slide, as OpenSlide has it, named by the first.
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


def refuse_collisions(jobs: Sequence[SlideTask]) -> None:
    """Raise ``UsageError`` where two jobs would write one file, or one would replace a slide.

    Names are compared as a file system does that ignores case, and with the record beside each output.
    """
    owners: dict[str, SlideTask] = {}
    for job in jobs:
        for path in _written(job):
            other = owners.setdefault(str(path.resolve()).lower(), job)
            if other != job:
                raise UsageError(
                    f"{other.slide} and {job.slide} would both be written to {path}",
                    "name their outputs in a --manifest",
                )
    slides = {str(job.slide.resolve()).lower(): job for job in jobs}
    for job in jobs:
        for path in _written(job):
            if str(path.resolve()).lower() in slides:
                raise UsageError(f"{path} is a slide of this batch and would be replaced", "choose another -o")


def _written(job: SlideTask) -> Iterator[Path]:
    yield job.output
    yield OutputSettings(job.output).record_path


# FROM batch.manifest: ``slides.csv``: a list of slides with the columns ``wsi[,mpp,output,model,mask]``.


@dataclass(frozen=True)
class Manifest:
    """Its jobs, and the columns that mean nothing to us."""

    jobs: tuple[SlideTask, ...]
    ignored: tuple[str, ...]


def read_manifest(file: Path, *, slides: Path | None, outputs: Path) -> Manifest:
    """The jobs of a manifest.

    Relative slides lie in ``slides`` (the manifest's folder if None), relative models and masks in the manifest's
    folder, relative outputs in ``outputs``. ``mpp`` is the slide's own pixel size in µm. Empty fields count as absent.
    Raises ``UsageError`` naming the line, where the file cannot be read or says nothing.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(
            f"{file}: cannot be read: {reason}", f"a CSV file with the columns {','.join(COLUMNS)}"
        ) from None
    head = text.partition("\n")[0]
    delimiter = ";" if ";" in head and "," not in head else ","  # what spreadsheets write where the comma is decimal
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    names = [(name or "").strip().lower() for name in reader.fieldnames or ()]
    if "wsi" not in names:
        raise UsageError(
            f"{file}: has no column 'wsi' (columns: {', '.join(names) or 'none'})", "its first line names them"
        )
    reader.fieldnames = names
    jobs = []
    for row in reader:
        fields = {name: (row.get(name) or "").strip() for name in COLUMNS}
        if any(fields.values()):
            jobs.append(_job(fields, f"{file}, line {reader.line_num}", (slides or file.parent, file.parent, outputs)))
    if not jobs:
        raise UsageError(f"{file}: lists no slide", "one line a slide below the line of column names")
    return Manifest(tuple(jobs), tuple(name for name in names if name not in COLUMNS))


def _job(fields: Mapping[str, str], where: str, folders: tuple[Path, Path, Path]) -> SlideTask:
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
        raise UsageError(f"{where}: '{text}' is not a pixel size", "µm per pixel, such as 0.25, or nothing")
    return mpp
