"""Give kin hostile inputs and check that each leads to a result or to one clear line: python scripts/fuzz.py

    python scripts/fuzz.py --inputs 3000 --seed 0 -j 2 [--kinds images,masks] [--slides FOLDER]
    python scripts/fuzz.py --flips 2000
    python scripts/fuzz.py --seed 0 --only images:17 --keep FOLDER

Inputs are made from seeds: slides and photographs (with --slides also damaged copies of the real slides in a folder),
masks, manifests, configuration files, checkpoints, work folders, claims, files under the names of outputs, standard
streams, option values. kin runs on each in a process of its own, in a folder of its own. Wrong is: an exit code other
than 0, 1, 2 and 75; a failure without exactly one line "kin: …" that names the file; a traceback, "unexpected" or
"internal error"; an output in spite of a failure; anything left behind after a refusal; a file that existed before and
is not the same any more; more than 60 s, twice, or 3 GiB; and, where it is known what is right, other pixels or bytes.

--flips changes outputs that have their record: ``kin check`` and ``--skip-existing`` must notice every change. --only
repeats one input; --keep copies its files. Exits 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from fuzzing import checkpoints, flips, images, masks, options, texts, work
from fuzzing.case import Outcome, execute, snapshot
from fuzzing.stock import Stock

KINDS = {  # and how often each is chosen
    "images": (images.images, 9),
    "masks": (masks.masks, 4),
    "manifests": (texts.manifests, 3),
    "configs": (texts.configs, 3),
    "checkpoints": (checkpoints.checkpoints, 4),
    "folders": (work.folders, 3),
    "claims": (work.claims, 2),
    "outputs": (work.outputs, 2),
    "streams": (work.streams, 1),
    "options": (options.options, 4),
}


_running: list[Fuzz] = []  # the processes of the pool inherit it: pickled for each input it would take long


class Fuzz:
    def __init__(self, folder: Path, settings: argparse.Namespace) -> None:
        self.folder, self.settings = folder, settings
        self.stock = Stock(folder / "stock", settings.slides)
        self.before = snapshot(self.stock.folder)

    def one(self, name: str) -> tuple[str, Outcome]:
        """Make the input ``kind:number``, run kin on it and judge it."""
        kind, _, number = name.partition(":")
        place, logs = (self.folder / f"{part}-{kind}-{number}" for part in ("case", "logs"))
        place.mkdir()
        logs.mkdir()
        try:
            case = KINDS[kind][0](random.Random(f"{self.settings.seed}:{name}"), place, self.stock)
        except Exception as error:
            raise RuntimeError(f"{name} cannot be made") from error
        if self.settings.only and self.settings.keep:
            shutil.copytree(place, self.settings.keep, symlinks=True, ignore=_special, dirs_exist_ok=True)
        outcome = execute(case, place, logs)
        if outcome.problems:  # of the user's files the sound ones that inputs are made from are the most precious
            now = snapshot(self.stock.folder)
            outcome.problems += [f"LOST: stock/{path}" for path, what in self.before.items() if now.get(path) != what]
        for done in (place, logs):
            shutil.rmtree(done, ignore_errors=True)
        return name, outcome

    def names(self) -> list[str]:
        if self.settings.only:
            return list(self.settings.only.split(","))
        kinds = self.settings.kinds.split(",") if self.settings.kinds else list(KINDS)
        total = sum(KINDS[kind][1] for kind in kinds)
        counts = {kind: -(-self.settings.inputs * KINDS[kind][1] // total) for kind in kinds}
        return [f"{kind}:{number}" for kind, count in counts.items() for number in range(count)]

    def run(self) -> int:
        names = self.names()
        random.Random(0).shuffle(names)
        table: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
        wrong: list[str] = []
        start, slowest = time.monotonic(), 0.0
        _running.append(self)
        with multiprocessing.get_context("fork").Pool(self.settings.j) as pool:
            for done, (name, outcome) in enumerate(pool.imap_unordered(_one, names), 1):
                table[name.partition(":")[0]].update(("inputs", outcome.kind, *["wrong"] * bool(outcome.problems)))
                slowest = max(slowest, outcome.seconds)
                for problem in outcome.problems:
                    wrong.append(problem)
                    print(f"WRONG {name} ({outcome.what}): {problem}", flush=True)
                if self.settings.only:
                    print(f"{name}: {outcome.what}\nexit code {outcome.code}\n{outcome.said}")
                if done % 100 == 0:
                    print(
                        f"{done} of {len(names)} inputs, {len(wrong)} wrong, {time.monotonic() - start:.0f} s",
                        flush=True,
                    )
        now = snapshot(self.stock.folder)
        wrong += [f"LOST: stock/{path}" for path, what in self.before.items() if now.get(path) != what]
        _show(table)
        lost = sum("LOST" in problem for problem in wrong)
        said = sum(bool(re.match("says: ", problem)) for problem in wrong)
        print(f"{len(names)} inputs in {time.monotonic() - start:.0f} s, the slowest {slowest:.1f} s")
        print(f"{said} tracebacks or unexpected errors, {lost} lost user files, {len(wrong)} wrong")
        return 1 if wrong else 0


def _one(name: str) -> tuple[str, Outcome]:
    return _running[0].one(name)


def _special(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not (Path(folder, name).is_file() or Path(folder, name).is_dir())]


def _show(table: dict[str, Counter[str]]) -> None:
    columns = ("inputs", "done", "refused", "usage", "wrong")
    print(f"{'kind':<12}" + "".join(f"{name:>9}" for name in columns))
    for kind, counts in table.items():
        if counts:
            print(f"{kind:<12}" + "".join(f"{counts[name]:>9}" for name in columns))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", help=f"some of {','.join(KINDS)}")
    parser.add_argument("--slides", type=Path, help="folder of real slides, damaged copies of which are inputs, too")
    parser.add_argument("--only", help="inputs to repeat, such as images:17")
    parser.add_argument("--keep", type=Path, help="with --only: folder for a copy of the input")
    parser.add_argument("--flips", type=int, help="change finished outputs so often, instead of making inputs")
    parser.add_argument("-j", type=int, default=os.cpu_count(), help="number of processes")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kin-fuzz-") as temporary:
        if settings.flips:
            return flips.flip(Stock(Path(temporary) / "stock", None), settings.flips, settings.seed)
        return Fuzz(Path(temporary), settings).run()


if __name__ == "__main__":
    sys.exit(main())
