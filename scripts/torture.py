"""Kill translations at random moments and check that every finished file is the same: python scripts/torture.py

Each output (.ome.tif, .tif or .png, with or without --report and --table) is made either by one process or in shards
in random order. The processes are killed again and again (SIGKILL, SIGTERM, SIGINT, the latter two also twice), in both
passes, in the assembly and while the report is made, and continued by the same command, until the output is finished
and compared with one that was made without interruption. Reports must be equal but for times and memory. With --tmpfs
(needs root) the disk is also filled up during the work. With --train, trainings are killed and continued instead.
Exits 1 if any file or exit code is wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image

import kin_cli.commands.train
import kin_cli.commands.translate
from kin_cli.commands.main import main
from kin_cli.models.resnet import ResnetGenerator, ResnetSpec
from kin_cli.progress import Advance
from kin_cli.report.page import is_report_of
from kin_cli.signals import interruptible

STAGES = ("measure", "apply", "background", "pyramid", "write", "end")
REPORT_STAGES = ("seams", "source", "tiles", "report")
ENDINGS = (".ome.tif", ".ome.tif", ".tif", ".png")
# what a report says of its own run and no two runs share: the mark of the record, times and memory
OF_THE_RUN = re.compile(
    r'<meta name="kin-record" content="\w+">|<div class="bars">.*?</div>|<div><dt>(?:time|memory)</dt><dd>.*?</div>'
    r'|<tr><th scope="row">peak memory</th>.*?</tr>',
    re.DOTALL,
)
SIGNALS = {  # sent shortly after one another, and the exit codes that they may lead to
    (signal.SIGKILL,): (-9,),
    (signal.SIGTERM,): (75,),
    (signal.SIGINT,): (130,),
    (signal.SIGTERM, signal.SIGTERM): (75,),
    (signal.SIGINT, signal.SIGINT): (130, -2),  # a shell calls both 130
}
MOST_KILLS = 6  # of one command; then it is left to finish


class Attempt:
    """One run of a command in a forked child, which sends the names of its stages through a pipe."""

    def __init__(self, arguments: list[str]) -> None:
        self.reports, report_to = os.pipe()
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.reports)
            for standard in (1, 2):
                os.dup2(self.log.fileno(), standard)
            _child(arguments, report_to)
        os.close(report_to)

    def events(self) -> Iterator[str]:
        """Yield the name of a stage whenever it makes progress, until the child ends."""
        with os.fdopen(self.reports) as lines:
            for line in lines:
                yield line.strip()

    def killed_at(self, stage: str, after: int, delay: float, signals: tuple[int, ...]) -> tuple[str, int]:
        """Send signals ``delay`` s after the ``after``-th event of a stage. Return the last stage and the exit code."""
        last, seen, sent = "begin", 0, False
        for event in self.events():
            last = last if sent else event
            seen += event == stage
            if seen == after and not sent:
                for number in signals:
                    time.sleep(delay)
                    os.kill(self.pid, number)
                sent = True
        return last, self.wait()

    def wait(self) -> int:
        """Return the exit code, negative for a signal."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        with self.log:
            self.log.seek(0)
            self.said = self.log.read().decode()
        return code


def _child(arguments: list[str], report_to: int) -> None:
    class PipeProgress:
        @contextmanager
        def stage(self, name: str, _total: int, _unit: str = "") -> Iterator[Advance]:
            os.write(report_to, f"{name}\n".encode())
            yield interruptible(lambda *_: os.write(report_to, f"{name}\n".encode()) and None)
            if name in ("write", "tiles"):  # the record follows, or the report's file
                os.write(report_to, b"end\n" if name == "write" else b"report\n")

        def outlook(self, work: object) -> None:
            pass

        def note(self, message: str) -> None:
            pass

    kin_cli.commands.translate.ConsoleProgress = PipeProgress  # type: ignore[misc]
    kin_cli.commands.train.ConsoleProgress = PipeProgress  # type: ignore[misc]
    sys.argv[1:] = arguments
    code = 1
    try:
        main()
    except SystemExit as done:
        code = int(done.code or 0)
    finally:
        os._exit(code)


class Torture:
    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options = folder, options
        self.random = random.Random(options.seed)
        self.kills: Counter[str] = Counter()
        self.signals: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.files = 0
        self.common = self._prepare()
        self.references = {ending: self._reference(ending) for ending in dict.fromkeys(ENDINGS)}
        self.wanted = digest(self.references[".ome.tif"])

    def _prepare(self) -> list[str]:
        torch.manual_seed(0)
        spec = ResnetSpec(width=4, blocks=1, antialias_down=False, antialias_up=False)
        torch.save(ResnetGenerator(spec).state_dict(), self.folder / "tiny.pth")
        slide = self.folder / "slide.tif"
        self._kin("sample", str(slide), "--size", self.options.size)
        return [str(slide), "-m", str(self.folder / "tiny.pth"), "--patch-size", "64", "--window", "128", "-j", "2"]

    def _reference(self, ending: str) -> Path:
        output = self.folder / f"reference{ending}" / f"out{ending}"
        output.parent.mkdir()
        self._kin("translate", *self.common, "-o", str(output), "--report")
        self._kin("check", str(output))
        return output

    def _kin(self, *arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "kin_cli", *arguments], check=True, capture_output=True)

    def make_output(self) -> None:
        """Make one output, from its first process to the comparison."""
        place, output = self.folder / f"file{self.files}", f"out{self.random.choice(ENDINGS)}"
        place.mkdir()
        common = [*self.common, "-o", str(place / output)]
        report = ["--report"] * (self.random.random() < 0.5)
        table = ["--table", str(place / "table")] if self.random.random() < 0.3 else []
        if self.random.random() < 0.5:
            self._until_done(["translate", *common, *table, *report])
        else:
            for name in ("measure", "apply"):
                total = self.random.randint(1, 4)
                for index in self.random.sample(range(1, total + 1), total):
                    self._until_done(["translate", *common, *table, "--pass", name, "--shard", f"{index}/{total}"])
            self._until_done(["assemble", *common, *report])
        self.files += 1
        self._compare(place / output, with_report=bool(report), with_table=bool(table))
        if not self.wrong:
            shutil.rmtree(place)

    def _compare(self, output: Path, *, with_report: bool, with_table: bool) -> None:
        """See that there is what should be and nothing else, and that it equals the reference."""
        left = sorted(path.name for path in output.parent.iterdir() if path.name != "table" or not with_table)
        wanted = [output.name, f"{output.name}.json", *[f"{output.name}.report.html"] * with_report]
        reference = self.references["".join(output.suffixes)]
        if left != wanted:
            self.wrong.append(f"{output.parent}: holds {left}, not {wanted}")
        elif digest(output) != digest(reference):
            self.wrong.append(f"{output}: differs")
        elif json.loads(record_of(output).read_bytes())["output_sha256"] != digest(output):
            self.wrong.append(f"{output}: differs from its record")
        elif with_report and comparable_report(output) != comparable_report(reference):
            self.wrong.append(f"{output}: its report differs")
        elif with_report and not is_complete_report(output):
            self.wrong.append(f"{output}: its report is cut off, or that of another record")

    def _until_done(self, command: list[str]) -> None:
        name = command[command.index("--pass") + 1] if "--pass" in command else None
        more = REPORT_STAGES if "--report" in command else ()
        for _ in range(self.random.randint(1, 2 if name else MOST_KILLS)):
            stages = (name,) if name else (*(STAGES[2:] if command[0] == "assemble" else STAGES), *more)
            stage = self.random.choice(stages)
            signals = self.random.choices(list(SIGNALS), (5, 2, 2, 1, 2))[0]
            after = self.random.randint(1, 40 if stage == "measure" else 4)
            attempt = Attempt(command)
            last, code = attempt.killed_at(stage, after, self.random.uniform(0, 0.03), signals)
            if code == 0:
                return
            self.kills[last] += 1
            self.signals["+".join(signal.Signals(number).name for number in signals)] += 1
            if code not in SIGNALS[signals] or "Traceback" in attempt.said:
                self.wrong.append(f"{' '.join(command)}: exit code {code} after {signals} in {last}: {attempt.said}")
                return
            if is_finished(Path(command[command.index("-o") + 1]), with_report="--report" in command):
                return  # it was killed with nothing left to do
        attempt = Attempt(command)
        if code := attempt.wait():
            self.wrong.append(f"{' '.join(command)}: exit code {code} when left alone: {attempt.said}")

    def fill_the_disk(self) -> None:
        """Translate on a small disk that another file fills up in the middle of the work; then remove that file."""
        place = self.folder / "disk"
        place.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], check=True)
        try:
            command = ["translate", *self.common, "-o", str(place / "out.ome.tif")]
            stage, ballast = self.random.choice(STAGES[:5]), place / "ballast"
            attempt = Attempt(command)
            for event in attempt.events():
                if event == stage and not ballast.exists():
                    os.kill(attempt.pid, signal.SIGSTOP)
                    fill(ballast)
                    os.kill(attempt.pid, signal.SIGCONT)
            code = attempt.wait()
            self.kills[f"disk full in {stage}" if code else "disk full too late"] += 1
            output = place / "out.ome.tif"
            if code not in (0, 1) or (output.exists() and digest(output) != self.wanted):
                self.wrong.append(f"{place}: exit code {code} when the disk was full in {stage}")
            ballast.unlink(missing_ok=True)
            if code and Attempt(command).wait() != 0:
                self.wrong.append(f"{place}: cannot be continued after the disk was full in {stage}")
            elif digest(output) != self.wanted:
                self.wrong.append(f"{place}: differs after the disk was full in {stage}")
        finally:
            subprocess.run(["umount", str(place)], check=True)


def fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def record_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.json")


def is_finished(output: Path, *, with_report: bool) -> bool:
    unfinished = output.with_name(f"{output.name}.kin-work").exists()
    return output.exists() and not unfinished and (not with_report or is_complete_report(output))


def is_complete_report(output: Path) -> bool:
    """Whether the report beside an output is there to its last word and belongs to its record."""
    report = output.with_name(f"{output.name}.report.html")
    record = json.loads(record_of(output).read_bytes())
    return is_report_of(record, report) and report.read_text().rstrip().endswith("</html>")


def comparable_report(output: Path) -> str:
    """The report beside an output, without its folder and what no two runs share."""
    text = output.with_name(f"{output.name}.report.html").read_text().replace(str(output.parent), "")
    return OF_THE_RUN.sub("", text)


def kill_trainings(folder: Path, *, kills: int, seed: int) -> int:
    """Kill (SIGKILL) and continue trainings of 30 steps until ``kills`` were killed; return how many went wrong."""
    choice, done, files, wrong = random.Random(seed), 0, 0, 0
    draw = np.random.default_rng(0)
    for stain in ("he", "ihc"):
        pixels = draw.integers(60, 250, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).resize((192, 192)).save(folder / f"{stain}.png")
    size = ["--patch-size", "64", "--width", "4", "--blocks", "1", "--disc-width", "4", "--disc-layers", "1"]
    how = ["--steps", "30", "--save-every", "4", "--log-every", "3", "--device", "cpu", "--evaluate-every", "15"]
    command = ["train", "cut", "--source", str(folder / "he.png"), "--target", str(folder / "ihc.png"), *size, *how]
    names = ("generator.safetensors", "generator.pth", "evaluation.csv", "samples/0000030.png")
    reference = folder / "reference"
    if Attempt([*command, "-o", str(reference)]).wait() != 0:
        raise SystemExit("the training without interruption failed")
    wanted = [digest(reference / name) for name in names]
    while done < kills:
        run = folder / f"run{files}"
        code, said = -9, ""
        for _ in range(choice.randint(1, MOST_KILLS)):
            attempt = Attempt([*command, "-o", str(run)])
            _, code = attempt.killed_at("train", choice.randint(1, 20), choice.uniform(0, 0.1), (signal.SIGKILL,))
            done += code == -9
            if code != -9:
                said = attempt.said
                break
        if code == -9:
            attempt = Attempt([*command, "-o", str(run)])
            code = attempt.wait()
            said = attempt.said
        files += 1
        same = code == 0 and [digest(run / name) for name in names] == wanted
        if not same:
            wrong += 1
            print(f"WRONG {run}: exit code {code}: {said}", flush=True)
        shutil.rmtree(run)
        print(f"{files} trainings, {done} kills, {wrong} wrong", flush=True)
    return wrong


def torture() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--size", default="1100x900", help="size of the slide, px")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tmpfs", type=int, default=0, metavar="N", help="also fill a small disk N times (needs root)")
    parser.add_argument("--train", type=int, default=0, metavar="N", help="kill trainings N times, and nothing else")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        if options.train:
            return 1 if kill_trainings(Path(temporary), kills=options.train, seed=options.seed) else 0
        run = Torture(Path(temporary), options)
        for _ in range(options.tmpfs):
            run.fill_the_disk()
        while sum(run.kills.values()) < options.kills and not run.wrong:
            run.make_output()
            print(f"{run.files} files, kills: {dict(run.kills)}", flush=True)
        for line in run.wrong:
            print("WRONG", line)
    print(f"signals: {dict(run.signals)}")
    print(f"{sum(run.kills.values())} kills, {run.files} files compared, {len(run.wrong)} wrong")
    return 1 if run.wrong else 0


if __name__ == "__main__":
    sys.exit(torture())
