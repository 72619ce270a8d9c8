"""``slides.csv``: a list of slides with the columns ``wsi[,mpp,output,model,mask]``."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kin_cli.batch.jobs import Job
from kin_cli.errors import UsageError
from kin_cli.settings import default_output

COLUMNS = ("wsi", "mpp", "output", "model", "mask")


@dataclass(frozen=True)
class Manifest:
    """Its jobs, and the columns that mean nothing to us."""

    jobs: tuple[Job, ...]
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


def _job(fields: Mapping[str, str], where: str, folders: tuple[Path, Path, Path]) -> Job:
    slides, beside, outputs = folders
    if not fields["wsi"]:
        raise UsageError(f"{where}: names no slide", "fill the column 'wsi'")
    slide = slides / fields["wsi"]
    output = outputs / (fields["output"] or default_output(Path(slide.name)))
    return Job(
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
