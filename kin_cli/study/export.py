"""A static version of a study: a folder that opens from a disk or any web server, and returns answers as a file."""

from __future__ import annotations

import json
import random
import secrets
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from kin_cli.concurrency import available_cores, prefetch
from kin_cli.progress import Progress
from kin_cli.study.app import LETTERS, shown_images, study_files, trial_state
from kin_cli.study.pictures import KIND, StudyPictures, images_of, picture_levels
from kin_cli.study.plan import Reader, Study, Trial, reader_key
from kin_cli.view.app import new_folder
from kin_cli.view.pictures import TILE_PX

_Key = tuple[int, str, str]  # item, question, name of the image
_Ids = dict[_Key, str]


def export_study(study: Study, folder: Path, *, progress: Progress, workers: int | None) -> int:
    """Write the static version of a study to a new folder; returns the number of tiles.

    Each reader opens ``index.html#KEY``, see ``reader_key``. Images have random names, others in each question, since
    the image that comes back with every method would be the real one; all tiles of an item at one place are equally
    long. Names of methods are not in it.

    Raises:
        OutputError: the folder exists and is not empty, or cannot be written.
        InputError: a slide was changed since the study was made.
    """
    pictures, workers = StudyPictures(study), workers or available_cores()
    pictures.check()
    ids: _Ids = {key: secrets.token_hex(8) for key in _shown(study)}

    def fill(draft: Path) -> int:
        files = study_files()
        files["index.html"] = files.pop("")
        for name, content in files.items():
            (draft / name).write_bytes(content)
        (draft / "plan.js").write_bytes(_plan(study, ids))
        jobs = list(_tiles(study, ids))
        random.SystemRandom().shuffle(jobs)  # times of files tell nothing
        for key, _ in {key: None for key, _ in jobs}.items():
            for level in range(len(picture_levels(study.items[key[0]].image(key[2])))):
                (draft / "tiles" / ids[key] / str(level)).mkdir(parents=True)
        write = partial(_write_tile, study, pictures, draft, ids)
        with progress.stage("tiles", len(jobs), "tiles") as advance:
            for _ in prefetch(write, jobs, workers=workers, ahead=2 * workers):
                advance(1)
        return len(jobs)

    try:
        return new_folder(folder, fill)
    finally:
        pictures.close()


def _plan(study: Study, ids: _Ids) -> bytes:
    readers = {reader_key(reader.secret): _reader_plan(study, reader, ids) for reader in study.readers}
    content = {"study": study.id, "title": study.title, "readers": readers}
    return b"window.KIN_STUDY = " + json.dumps(content).replace("<", "\\u003c").encode() + b";\n"


def _reader_plan(study: Study, reader: Reader, ids: _Ids) -> list[dict[str, Any]]:
    plan = []
    for number, trial in enumerate(reader.trials):
        state = trial_state(study, reader, number)
        names = dict(zip(LETTERS, shown_images(trial), strict=False))
        for image in state["images"]:
            image["id"] = ids[trial.item, _question(trial), names[image["id"]]]
        plan.append(state)
    return plan


def _shown(study: Study) -> dict[_Key, None]:
    """Every image in every question that some reader is asked."""
    trials = (trial for reader in study.readers for trial in reader.trials)
    return {(trial.item, _question(trial), name): None for trial in trials for name in sorted(shown_images(trial))}


def _question(trial: Trial) -> str:
    """What is asked about an item: which method is best, or which of a method and the reference is real."""
    return "/".join([trial.challenge, *sorted(trial.slots)])


def _tiles(study: Study, ids: _Ids) -> Iterator[tuple[_Key, tuple[int, int, int]]]:
    """Key of an image, and a tile of it: level from the coarsest, column, row."""
    for key in ids:
        levels = picture_levels(study.items[key[0]].image(key[2]))
        for level, size in enumerate(reversed(levels)):
            for row in range(-(-size.height // TILE_PX)):
                yield from ((key, (level, col, row)) for col in range(-(-size.width // TILE_PX)))


def _write_tile(
    study: Study,
    pictures: StudyPictures,
    folder: Path,
    ids: _Ids,
    job: tuple[_Key, tuple[int, int, int]],
) -> None:
    key, place = job
    level, col, row = place
    body = pictures.tile(key[0], key[2], tuple(images_of(study.items[key[0]])), place)
    (folder / "tiles" / ids[key] / str(level) / f"{col}_{row}{KIND}").write_bytes(body)
