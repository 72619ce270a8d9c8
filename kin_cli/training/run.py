"""A training run: draw patches, step, log, and leave a generator that ``kin translate`` takes."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from kin_cli import __version__
from kin_cli.concurrency import prefetch
from kin_cli.errors import KinError, OutputError
from kin_cli.models.checkpoint import save_generator
from kin_cli.models.images import to_pixels, to_tensor
from kin_cli.progress import Progress, SilentProgress
from kin_cli.slide.base import Pixels
from kin_cli.store.claim import Claim
from kin_cli.store.files import os_errors_as_output_errors
from kin_cli.training.cut import build_cut
from kin_cli.training.cyclegan import build_cyclegan
from kin_cli.training.distributed import Rank, this_rank, unsynchronised
from kin_cli.training.framework import Framework, PatchBatch, Phase
from kin_cli.training.heldout import Trial, summary
from kin_cli.training.lsesim import build_lsesim
from kin_cli.training.networks import Ema
from kin_cli.training.patches import PatchSource, find_images
from kin_cli.training.settings import CutLosses, CycleGanLosses, TrainSettings
from kin_cli.training.state import STATE_FILE, CsvLog, RunState

GENERATOR_FILE = "generator.safetensors"
_SAMPLES = 4
_SAMPLE_NUMBERS = 1 << 40  # beyond any patch that training draws
_MPP_TOLERANCE = 0.1
_PATIENCE = timedelta(hours=2)
_GOLDEN = 0x9E3779B97F4A7C15


# FROM training.run: A training run: draw patches, step, log, and leave a generator that ``kin translate`` takes.


@dataclass(frozen=True)
class Drawn:
    """As many patches of both stains, and of the guide, if there is one."""

    source: list[Pixels]
    target: list[Pixels]
    guide: list[Pixels]


@dataclass(frozen=True)
class Stains:
    """Patches of both stains."""

    source: PatchSource
    target: PatchSource

    def draw(self, first: int, count: int) -> Drawn:
        """``count`` patches of each, from number ``first``; thread-safe."""
        numbers = range(first, first + count)
        pairs = [self.source.draw_guided(n) for n in numbers]
        guides = [guide for _, guide in pairs if guide is not None]
        return Drawn([patch for patch, _ in pairs], [self.target.draw(n) for n in numbers], guides)

    def resolution_note(self) -> str | None:
        """A line about resolutions that differ by more than 10 %, None where they agree or are unknown."""
        source, target = self.source.mpp, self.target.mpp
        if source is None or target is None or abs(target / source - 1.0) <= _MPP_TOLERANCE:
            return None
        return f"source patches have {source:.3f} µm per pixel, target patches {target:.3f}: --mpp brings both to one"


def train(settings: TrainSettings, progress: Progress) -> Path:
    """Train a generator, or continue a run, and return the path of the generator's file.

    The folder of the run holds ``generator.safetensors`` (the moving average; renewed with every checkpoint),
    ``generator.pth`` (the same under the official keys, without metadata), ``state.pt``, ``log.csv``, ``samples/``, and
    where evaluations were asked for ``evaluation.csv`` and ``evaluation/``.

    Memory bound: networks, optimizers, one step's activations, and 2 · workers steps of patches; see ``Trial``.
    Raises a KinError where slides or settings are wrong, or a loss is not finite.
    """
    with ExitStack() as stack:
        me = stack.enter_context(this_rank(settings))
        claim = _claim(settings, stack) if me.leads else None
        me.barrier()
        stains = _open(settings, stack)
        run = _TrainingRun(settings, me, stains=stains, progress=progress if me.leads else SilentProgress())
        run.go(claim)
        me.barrier()
    return settings.output / GENERATOR_FILE


def build(settings: TrainSettings) -> Framework:
    """The framework of the settings, its weights drawn from their seed."""
    torch.manual_seed(settings.schedule.seed)
    if isinstance(settings.losses, CycleGanLosses):
        return build_cyclegan(settings.network, settings.losses)
    if isinstance(settings.losses, CutLosses):
        return build_cut(settings.network, settings.losses)
    return build_lsesim(settings.network, settings.losses)


class _TrainingRun:
    """What the steps of one run share."""

    def __init__(self, settings: TrainSettings, me: Rank, *, stains: Stains, progress: Progress) -> None:
        self._settings, self._me, self._stains, self._progress = settings, me, stains, progress
        framework = build(settings)
        ema = Ema(framework.generator, settings.schedule.ema)
        self._fingerprint = {**settings.fingerprint(), "processes": me.world}
        self._state = RunState(framework, ema)
        me.place(framework)
        ema.module.to(device=me.device)
        resumed = self._state.restore(settings.output, fingerprint=self._fingerprint)
        self._done = resumed.step
        warm = settings.schedule.warm_steps > 0
        objectives = [me.wrap(phase, unused=warm) for phase in framework.phases]
        self._stepper = Stepper(framework, me, ema, objectives, settings.schedule.seed)
        schedule = settings.schedule
        patches = schedule.epochs * (schedule.epoch_patches or stains.source.capacity)
        per_step = schedule.batch * schedule.accumulate * me.world
        self._total = schedule.steps or math.ceil(patches / per_step)
        if self._done > self._total:
            raise OutputError(
                f"{settings.output}: has done {self._done} steps already, more than the {self._total} asked for",
                "ask for more steps or epochs, or for another --output",
            )
        if self._done == self._total:
            self._progress.note(f"all {self._total} steps are done already")
        elif resumed.rescheduled:
            self._progress.note(schedule.outlook(self._done, self._total))

    def go(self, claim: Claim | None) -> None:
        """Do the steps that are left; the process that leads, and holds the claim, records them."""
        recorder = self._recorder() if claim is not None else None
        with self._progress.stage("train", self._total - self._done, "steps") as advance:
            for number, batches in self._batches():
                rate = self._settings.schedule.rate(number, self._total)
                terms = self._stepper.step(number, batches, rate=rate)
                if claim is not None and recorder is not None:
                    claim.touch()
                    recorder(number + 1, rate, terms)
                advance(1, " ".join(f"{name} {value:.3f}" for name, value in terms.items()))

    def _recorder(self) -> Callable[[int, float, dict[str, float]], None]:
        """What is called after every step, with the number of steps done, to log, picture and keep its results."""
        settings, start = self._settings, time.monotonic()
        if note := self._stains.resolution_note():
            self._progress.note(note)
        log = CsvLog(settings.output / "log.csv", step=self._done)
        evaluate = self._evaluator()
        rows: list[dict[str, float]] = []

        def record(done: int, rate: float, terms: dict[str, float]) -> None:
            rows.append(terms)
            last = done == self._total
            examine = settings.evaluation.asked and (last or settings.evaluation.due(done))
            keep = last or examine or done % settings.checkpoint_every == 0
            # a row at every checkpoint, too: a resumed run then has the rows of an uninterrupted one
            if keep or done % settings.log_every == 0:
                log.add(_row(done, rate, time.monotonic() - start, means(rows)))
                rows.clear()
            if last or done % settings.sample_every == 0:
                self._picture(done)
            if keep:
                self._export(done)
                if examine:
                    evaluate(done)
                # last, so that a run that is killed before evaluates again
                self._state.save(settings.output, step=done, fingerprint=self._fingerprint)

        return record

    def _evaluator(self) -> Callable[[int], None]:
        """What is called with the number of steps done when the generator's file is to be evaluated."""
        settings = self._settings
        if not settings.evaluation.asked:
            return lambda _done: None
        if settings.evaluation.slides is None and settings.patches.source_region is None:
            self._progress.note("evaluations are on a slide that trains, too: --source-region, or --evaluation SLIDE")
        trial = Trial(settings, self._stains.target)
        log = CsvLog(settings.output / "evaluation.csv", step=self._done)

        def evaluate(done: int) -> None:
            found = trial.run(settings.output / GENERATOR_FILE, done)
            for row in found:
                log.add(row)
            self._progress.note(f"step {done}: {summary(found)}")

        return evaluate

    def _batches(self) -> Iterator[tuple[int, list[PatchBatch]]]:
        schedule, me = self._settings.schedule, self._me
        own = schedule.batch * schedule.accumulate * schedule.disc_steps

        def draw(number: int) -> tuple[int, Drawn]:
            return number, self._stains.draw((number * me.world + me.rank) * own, own)

        steps = range(self._done, self._total)
        workers = self._settings.workers
        for number, drawn in prefetch(draw, steps, workers=workers, ahead=2 * workers):
            yield number, self._batches_of(drawn, warm=number < schedule.warm_steps)

    def _batches_of(self, drawn: Drawn, *, warm: bool) -> list[PatchBatch]:
        """The first patches are the accumulated batches; the others are dealt to them for the discriminator."""
        size, count = self._settings.schedule.batch, self._settings.schedule.accumulate
        parts = [slice(i, i + size) for i in range(0, len(drawn.source), size)]
        pairs = [(self._tensor(drawn.source[part]), self._tensor(drawn.target[part])) for part in parts]
        guides = [self._tensor(drawn.guide[part]) if drawn.guide else None for part in parts[:count]]
        spare = pairs[count:]
        return [
            PatchBatch(*pair, warm, tuple(spare[i::count]), guide=guide, aligned=self._settings.patches.guide_aligned)
            for i, (pair, guide) in enumerate(zip(pairs[:count], guides, strict=True))
        ]

    def _tensor(self, patches: list[Pixels]) -> torch.Tensor:
        return to_tensor(patches, self._me.device).contiguous(memory_format=self._me.memory_format)

    def _picture(self, done: int) -> None:
        drawn = self._stains.draw(_SAMPLE_NUMBERS, _SAMPLES)
        folder = self._settings.output / "samples"
        with os_errors_as_output_errors(folder):
            folder.mkdir(exist_ok=True)
        write_samples(folder / f"{done:07d}.png", self._state.ema.module, source=drawn.source, target=drawn.target)

    def _export(self, done: int) -> None:
        module, output = self._state.ema.module, self._settings.output
        save_generator(module, output / "generator.pth", spec=module.spec)
        stored = copy.deepcopy(module).half() if self._settings.half else module
        save_generator(stored, output / GENERATOR_FILE, spec=module.spec, metadata=self._metadata(done))

    def _metadata(self, done: int) -> dict[str, str]:
        settings, mpp = self._settings, self._stains.source.mpp
        found: dict[str, Any] = {
            "software": f"kin {__version__}",
            "framework": settings.framework,
            "steps": f"{done} of {self._total}",
            "patch_px": settings.patches.patch_px,
            "mpp": "" if mpp is None else f"{mpp:.4f}",
            "training": json.dumps(self._fingerprint, sort_keys=True, ensure_ascii=False),
            **vars(settings.card),
        }
        return {name: str(value) for name, value in found.items() if value != ""}


def _row(done: int, rate: float, seconds: float, terms: dict[str, float]) -> dict[str, str]:
    head = {"step": str(done), "lr": f"{rate:.3e}", "seconds": f"{seconds:.1f}"}
    return head | {name: f"{value:.5f}" for name, value in terms.items()}


def _claim(settings: TrainSettings, stack: ExitStack) -> Claim:
    """Make the run's folder and claim it; with ``overwrite`` an earlier run there is forgotten."""
    output = settings.output
    if not output.parent.is_dir():
        raise OutputError(f"{output.parent}: no such folder", "create it, or choose another output with -o")
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output}: is a file", "a run needs a folder: choose another output with -o")
    with os_errors_as_output_errors(output):
        output.mkdir(exist_ok=True)
    claim = Claim.take(output, "train", of=output)
    stack.callback(claim.release)
    if settings.overwrite:
        with os_errors_as_output_errors(output):
            (output / STATE_FILE).unlink(missing_ok=True)
    return claim


def _open(settings: TrainSettings, stack: ExitStack) -> Stains:
    """Open and survey the slides of both stains; they must be of about one resolution."""
    patches, seed = settings.patches, settings.schedule.seed
    sources = []
    for stain, path in (("source", patches.source), ("target", patches.target)):
        source = PatchSource(find_images(path), patches, stain=stain, seed=seed)
        stack.callback(source.close)
        sources.append(source)
    return Stains(*sources)


# FROM training.samples: Pictures of a run's progress: the same patches every time.


@torch.inference_mode()
def write_samples(path: Path, generator: nn.Module, *, source: Sequence[Pixels], target: Sequence[Pixels]) -> None:
    """A PNG of three rows: patches of the source, what the generator makes of them, patches of the target."""
    device = next(generator.parameters()).device
    # one at a time: the peak of a step must not be exceeded for a picture
    made = [to_pixels(generator(to_tensor([patch], device)))[0] for patch in source]
    rows = [np.concatenate(list(row), axis=1) for row in (source, made, target)]
    with os_errors_as_output_errors(path):
        Image.fromarray(np.concatenate(rows)).save(path)


# FROM training.step: One step of a run: every phase once, over the accumulated batches.


@dataclass(frozen=True)
class Stepper:
    """A framework, ready on its device. Used by one thread."""

    framework: Framework
    this_rank: Rank
    ema: Ema
    objectives: Sequence[nn.Module]
    seed: int

    def step(self, number: int, batches: Sequence[PatchBatch], *, rate: float) -> dict[str, float]:
        """Do step ``number`` (0 first) at the learning rate ``rate``; the terms of all losses, by name.

        Terms are means over the accumulated batches, of this process. Raises ``KinError`` where one is not finite:
        parameters are then those of the step before, or of its phase.
        """
        torch.manual_seed(_mixed(self.seed, number, self.this_rank.rank))
        values: dict[str, float] = {}
        for phase, objective in zip(self.framework.phases, self.objectives, strict=True):
            if batches[0].warm and phase is not self.framework.phases[0]:
                break
            for repeat in range(1 + (len(batches[0].spare) if phase.repeats else 0)):
                values |= self._lower(phase, objective, [batch.repeated(repeat) for batch in batches], rate)
                _require_finite(values, number)
                phase.optimizer.step()
        self.ema.update(self.framework.generator)
        return values

    def _lower(
        self, phase: Phase, objective: nn.Module, batches: Sequence[PatchBatch], rate: float
    ) -> dict[str, float]:
        for group in phase.optimizer.param_groups:
            group["lr"] = rate * phase.rate
        phase.optimizer.zero_grad()
        sums: dict[str, float] = {}
        for number, batch in enumerate(batches):
            with unsynchronised(objective, last=number == len(batches) - 1):
                terms = self.this_rank.terms(objective, batch)
                loss = torch.stack(list(terms.values())).sum() / len(batches)
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + float(term.detach()) / len(batches)
        return sums


def _mixed(*numbers: int) -> int:
    """A seed of 63 bits from several numbers, so that neighbouring steps have unrelated seeds."""
    state = 0
    for number in numbers:
        state = ((state ^ number) * _GOLDEN + 1) % (1 << 64)
        state ^= state >> 31
    return state >> 1


def _require_finite(values: dict[str, float], number: int) -> None:
    bad = [name for name, value in values.items() if value != value or abs(value) == float("inf")]
    if bad:
        raise KinError(
            f"the loss {bad[0]} is {values[bad[0]]} at step {number + 1}: training has diverged",
            "a lower --lr or --precision fp32 may help; the last checkpoint is kept",
        )


def means(rows: Iterable[dict[str, float]]) -> dict[str, float]:
    """Mean of each name over the rows that have it."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in columns.items()}
