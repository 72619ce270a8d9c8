"""Tables that are kept: pass 1 measured once, for any kernel, read-out and output."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kin_cli import __version__
from kin_cli.plan import Plan
from kin_cli.store.begin import ALONE
from kin_cli.store.blobs import BlobStore
from kin_cli.store.files import os_errors_as_output_errors
from kin_cli.store.kept import kept_store

_SAMPLES = 16
_SAMPLE_BYTES = 1 << 16


@contextmanager
def kept_table(plan: Plan, folder: Path, *, shard: str = ALONE) -> Iterator[BlobStore]:
    """The store of the table in ``folder``: read only if no wanted patch is missing, else to be continued.

    Which patches those are does not matter to the others, so another tissue mask only adds what it lacks. Raises
    ``OutputError`` where the folder holds a table of other settings, naming them; see ``kept_store``.
    """
    selected = plan.table_weights.ravel() > 0
    with kept_store(
        folder,
        table_fingerprint(plan),
        name="table",
        shard=shard,
        capacity=len(plan.grid),
        wanted=(int(key) for key in selected.nonzero()[0]),
    ) as store:
        yield store


def table_fingerprint(plan: Plan) -> dict[str, object]:
    """Everything that changes the statistics of a patch."""
    norm, view = plan.settings.norm, plan.view
    return {
        "slide": _content_id(plan.settings.source.slide),
        "level": view.level,
        "mpp": view.mpp,
        "region": [view.region.x, view.region.y, view.region.width, view.region.height],
        "model sha256": plan.generator.sha256,
        "patch size": norm.patch_px,
        "measured size": norm.measured_px,
        "correction": norm.correction,
        "eps": norm.eps,
        "device": plan.device.type,
        "precision": plan.precision,
        "compiled": plan.compiled,
        "kin": __version__,
    }


def _content_id(slide: Path) -> str:
    """Size and checksum of 64 KiB in each sixteenth of a file: a slide may move, but not change."""
    crc, size = 0, slide.stat().st_size
    with os_errors_as_output_errors(slide), slide.open("rb") as file:
        for sample in range(_SAMPLES):
            file.seek(sample * (size // _SAMPLES))
            crc = zlib.crc32(file.read(_SAMPLE_BYTES), crc)
    return f"{size} bytes (crc32 of samples {crc:08x})"
