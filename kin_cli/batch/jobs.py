"""Which slides a batch translates, and where each goes: all questions are asked before work starts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kin_cli.errors import UsageError
from kin_cli.settings import OutputSettings, default_output

EXTENSIONS = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".dcm")
_OWN_ENDING = ".kin.ome.tif"


@dataclass(frozen=True)
class Job:
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


def find_jobs(inputs: Sequence[Path], folder: Path, search: Search) -> list[Job]:
    """A job for every file named and every slide in the folders named, whose sub-folders ``folder`` will repeat.

    Raises ``UsageError`` where an input does not exist and where nothing matches.
    """
    jobs = []
    for given in inputs:
        if given.is_dir():
            found = slides_in(given, search, without=folder)
            jobs += [Job(slide, folder / default_output(slide.relative_to(given))) for slide in found]
        elif given.exists():
            jobs.append(Job(given, folder / default_output(Path(given.name))))
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
    hidden = folder.name.startswith(".") or folder.name.endswith(".kin-work")
    return not hidden and folder.resolve() != output.resolve()


def _is_slide(name: str, search: Search) -> bool:
    lower = name.lower()
    return lower.endswith(search.extensions) and not lower.startswith(".") and not lower.endswith(_OWN_ENDING)


def refuse_collisions(jobs: Sequence[Job]) -> None:
    """Raise ``UsageError`` where two jobs would write one file, or one would replace a slide.

    Names are compared as a file system does that ignores case, and with the record beside each output.
    """
    owners: dict[str, Job] = {}
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


def _written(job: Job) -> Iterator[Path]:
    yield job.output
    yield OutputSettings(job.output).record_path
