"""Training runs: draw patches, step, log, and save a generator that ``kin translate`` takes."""

from __future__ import annotations

import copy
import io
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from kin_cli import __version__
from kin_cli.concurrency import prefetch
from kin_cli.errors import InputError, KinError, OutputError
from kin_cli.geometry import Pixels
from kin_cli.models.checkpoint import save_generator
from kin_cli.progress import Progress, SilentProgress
from kin_cli.slide.open import find_images
from kin_cli.store.claim import Claim
from kin_cli.store.files import os_errors_as_output_errors, write_atomic
from kin_cli.training.cut import build_cut
from kin_cli.training.cyclegan import build_cyclegan
from kin_cli.training.distributed import Rank, this_rank, unsynchronised
from kin_cli.training.folder import (
    EVALUATION_LOG,
    EXPORTED_FILE,
    GENERATOR_FILE,
    LOG_FILE,
    SAMPLES,
    check_run_folder,
    clear_run_folder,
)
from kin_cli.training.framework import Framework, PatchBatch, Phase
from kin_cli.training.guidance import Guidance
from kin_cli.training.heldout import Trial, summary
from kin_cli.training.inputs import SLIDES, RunInputs, described, input_files
from kin_cli.training.lsesim import build_lsesim
from kin_cli.training.networks import Ema
from kin_cli.training.patches import PatchSource, to_pixels, to_tensor
from kin_cli.training.settings import CutLosses, CycleGanLosses, TrainSettings
from kin_cli.training.state import CsvLog, Resumed, RunState, begin_state
from kin_cli.trust.learn import LearnSettings, learn_into

_SAMPLES = 4
_SAMPLE_NUMBERS = 1 << 40  # patches from here on are not drawn by training
_MPP_TOLERANCE = 0.1
_GOLDEN = 0x9E3779B97F4A7C15  # 2⁶⁴ / golden ratio, as in Fibonacci hashing


def train(settings: TrainSettings, progress: Progress) -> Path:
    """Train a generator, or continue a run, and return the generator's file.

    The folder of the run holds ``generator.safetensors`` (the EMA generator; written with every checkpoint),
    ``generator.pth`` (the same under the official keys, without metadata), ``state.pt``, ``log.csv``, ``samples/`` and,
    if evaluation is requested, ``evaluation.csv`` and ``evaluation/``. Nothing else in the folder is ever touched.

    Memory bound: networks, optimizers, one step's activations, and 2 · workers steps of patches; see ``Trial``.

    Raises:
        KinError: Slides or settings are wrong, or a loss is not finite.
    """
    with ExitStack() as stack:
        rank = stack.enter_context(this_rank(settings))
        files = input_files(settings)
        lead = _lead(settings, files, stack) if rank.leads else None
        rank.barrier()
        stains = _open(settings, files, stack)
        run = _TrainingRun(settings, rank, stains=stains, progress=progress if rank.leads else SilentProgress())
        run.go(lead)
        rank.barrier()
    return settings.output / GENERATOR_FILE


def build(settings: TrainSettings) -> Framework:
    """The framework of the settings, with initial weights drawn from their seed."""
    torch.manual_seed(settings.schedule.seed)
    if isinstance(settings.losses, CycleGanLosses):
        framework = build_cyclegan(settings.network, settings.losses)
    elif isinstance(settings.losses, CutLosses):
        framework = build_cut(settings.network, settings.losses)
    else:
        framework = build_lsesim(settings.network, settings.losses)
    framework.phases[0].objective.guidance = Guidance(settings.guidance)
    return framework


@dataclass(frozen=True)
class Stains:
    """Patch sources of both stains."""

    source: PatchSource
    target: PatchSource

    def draw(self, first: int, count: int) -> tuple[list[Pixels], list[Pixels], list[Pixels]]:
        """``count`` patches of the source, of the target, and guides if any, from number ``first``; thread-safe."""
        numbers = range(first, first + count)
        pairs = [self.source.draw_guided(n) for n in numbers]
        guides = [guide for _, guide in pairs if guide is not None]
        return [patch for patch, _ in pairs], [self.target.draw(n) for n in numbers], guides

    def resolution_note(self) -> str | None:
        """Message about resolutions that differ by more than 10 %, None if they agree or are unknown."""
        source, target = self.source.mpp, self.target.mpp
        if source is None or target is None or abs(target / source - 1.0) <= _MPP_TOLERANCE:
            return None
        return f"source patches have {source:.3f} µm per pixel, target patches {target:.3f}: --mpp brings both to one"


@dataclass(frozen=True)
class _Lead:
    """What only the leading process has: the claim on the folder, and the identities of the files of the run."""

    claim: Claim
    inputs: RunInputs


class _TrainingRun:
    """One run in one process: networks, stepper, and the number of steps done and to do."""

    def __init__(self, settings: TrainSettings, rank: Rank, *, stains: Stains, progress: Progress) -> None:
        self._settings, self._rank, self._stains, self._progress = settings, rank, stains, progress
        framework = build(settings)
        ema = Ema(framework.generator, settings.schedule.ema)
        self._fingerprint = {**settings.fingerprint(), "processes": rank.world}
        self._state = RunState(framework, ema)
        rank.place(framework)
        ema.module.to(device=rank.device)
        self._resumed = Resumed()
        if not settings.overwrite:
            self._resumed = self._state.restore(settings.output, fingerprint=self._fingerprint)
        self._done = self._resumed.step
        objectives = [rank.wrap(phase) for phase in framework.phases]
        self._stepper = Stepper(framework, rank, ema, objectives, settings.schedule.seed)
        schedule = settings.schedule
        patches = schedule.epochs * (schedule.epoch_patches or stains.source.capacity)
        per_step = schedule.batch * schedule.accumulate * rank.world
        self._total = schedule.steps or math.ceil(patches / per_step)
        if self._done > self._total:
            raise OutputError(
                f"{settings.output}: has done {self._done} steps already, more than the {self._total} asked for",
                "ask for more steps or epochs, or for another --output",
            )

    def go(self, lead: _Lead | None) -> None:
        """Do the remaining steps; the leading process records them."""
        recorder = self._recorder(lead.inputs) if lead is not None else None
        with self._progress.stage("train", self._total - self._done, "steps") as advance:
            for number, batches in self._batches():
                rate = self._settings.schedule.rate(number, self._total)
                terms = self._stepper.step(number, batches, rate=rate)
                if lead is not None and recorder is not None:
                    lead.claim.touch()
                    recorder(number + 1, rate, terms)
                advance(1, " ".join(f"{name} {value:.3f}" for name, value in terms.items()))

    def _recorder(self, inputs: RunInputs) -> Callable[[int, float, dict[str, float]], None]:
        """Return a function that logs and saves; call it after every step with the number of steps done."""
        settings, start = self._settings, time.monotonic()
        trial, logs = self._begin(inputs)
        rows: list[dict[str, float]] = []

        def record(done: int, rate: float, terms: dict[str, float]) -> None:
            rows.append(terms)
            last = done == self._total
            evaluating = settings.evaluation.requested and (last or settings.evaluation.due(done))
            sampling = last or done % settings.save_every == 0
            saving = sampling or evaluating
            if saving:
                inputs.check_unchanged(whole=last)
            # a row with every checkpoint, so that a resumed run logs the rows of an uninterrupted one
            if saving or done % settings.log_every == 0:
                logs[LOG_FILE].add(_row(done, rate, time.monotonic() - start, means(rows)))
                rows.clear()
            if sampling:
                self._write_samples(done)
            if saving:
                self._export(done)
                if evaluating and trial is not None:
                    self._evaluate(trial, logs[EVALUATION_LOG], done)
                # last, so that a run killed before this point evaluates again
                self._save(done, inputs, logs)
                if last:
                    self._save_digests(done, inputs, logs)

        return record

    def _begin(self, inputs: RunInputs) -> tuple[Trial | None, dict[str, CsvLog]]:
        """Check everything that may refuse the run, begin or continue its folder, and open its logs."""
        settings = self._settings
        if self._done:
            inputs.require_same(self._resumed.inputs, settings.output, note=self._progress.note)
        inputs.begin(self._progress)
        trial = Trial(settings, self._stains.target) if settings.evaluation.requested else None
        if not self._done:
            begin_state(settings.output)
            clear_run_folder(settings.output)
        logs = {name: self._log(name) for name in (LOG_FILE, *([] if trial is None else [EVALUATION_LOG]))}
        for note in self._notes():
            self._progress.note(note)
        if self._done == self._total:  # the card may be another one
            self._export(self._done)
        return trial, logs

    def _notes(self) -> Iterator[str]:
        """What to tell the user before the first step."""
        settings = self._settings
        if self._done == self._total:
            yield f"all {self._total} steps are done already"
        elif self._resumed.rescheduled:
            yield settings.schedule.outlook(self._done, self._total)
        if note := self._stains.resolution_note():
            yield note
        evaluation = settings.evaluation
        if evaluation.requested and evaluation.slides is None and settings.patches.source_region is None:
            yield (
                "evaluations use a slide that is also trained on: hold part of it out by --source-region, or give "
                "--evaluation SLIDE"
            )

    def _log(self, name: str) -> CsvLog:
        path, saved = self._settings.output / name, self._resumed.logs.get(name)
        return CsvLog(path, step=self._done, saved=saved, note=self._progress.note)

    def _save(self, done: int, inputs: RunInputs, logs: Mapping[str, CsvLog]) -> None:
        self._state.save(
            self._settings.output,
            step=done,
            fingerprint=self._fingerprint,
            inputs=inputs.as_dict(),
            logs={**self._resumed.logs, **{name: log.as_dict(done) for name, log in logs.items()}},
        )

    def _save_digests(self, done: int, inputs: RunInputs, logs: Mapping[str, CsvLog]) -> None:
        """Wait for the digests of the slides, and save them if some were missing: then copies are recognised."""
        before = inputs.as_dict()
        inputs.finish(self._progress)
        if inputs.as_dict() != before:
            self._save(done, inputs, logs)

    def _evaluate(self, trial: Trial, log: CsvLog, done: int) -> None:
        results = trial.run(self._settings.output / GENERATOR_FILE, done)
        for row in results:
            log.add(row)
        self._progress.note(f"step {done}: {summary(results)}")

    def _batches(self) -> Iterator[tuple[int, list[PatchBatch]]]:
        """The number of every step that is left, and its batches, read ahead by ``workers`` threads."""
        size, count = self._settings.schedule.batch, self._settings.schedule.accumulate
        workers, own = self._settings.workers, size * count

        def draw(number: int) -> tuple[int, tuple[list[Pixels], list[Pixels], list[Pixels]]]:
            return number, self._stains.draw((number * self._rank.world + self._rank.index) * own, own)

        for number, (source, target, guide) in prefetch(
            draw, range(self._done, self._total), workers=workers, ahead=2 * workers
        ):
            parts = [slice(i, i + size) for i in range(0, own, size)]
            yield (
                number,
                [
                    PatchBatch(
                        self._tensor(source[part]),
                        self._tensor(target[part]),
                        self._tensor(guide[part]) if guide else None,
                    )
                    for part in parts
                ],
            )

    def _tensor(self, patches: list[Pixels]) -> torch.Tensor:
        return to_tensor(patches, self._rank.device).contiguous(memory_format=self._rank.memory_format)

    def _write_samples(self, done: int) -> None:
        source, target, _ = self._stains.draw(_SAMPLE_NUMBERS, _SAMPLES)
        folder = self._settings.output / SAMPLES
        with os_errors_as_output_errors(folder):
            folder.mkdir(exist_ok=True)
        write_samples(folder / f"{done:07d}.png", self._state.ema.module, source=source, target=target)

    def _export(self, done: int) -> None:
        module, output = self._state.ema.module, self._settings.output
        save_generator(module, output / EXPORTED_FILE, spec=module.spec)
        stored = copy.deepcopy(module).half() if self._settings.half else module
        save_generator(stored, output / GENERATOR_FILE, spec=module.spec, metadata=self._metadata(done))
        if done == self._total:
            self._learn_reference(output / GENERATOR_FILE)

    def _learn_reference(self, file: Path) -> None:
        """Put into the file of the finished generator what its training patches are like, for the trust map."""
        settings = self._settings
        if not settings.reference:
            return
        patches = settings.patches
        wanted = LearnSettings(
            settings.reference,
            mpp=patches.mpp,
            region=patches.source_region,
            stain_jitter=max(patches.stain_jitter, LearnSettings.stain_jitter),
            seed=settings.schedule.seed,
            device=str(self._rank.device),
        )
        try:
            learn_into(file, file, find_images(patches.source), wanted, self._progress)
        except InputError as error:  # the generator is complete all the same
            self._progress.note(f"no reference statistics, and so no trust map: {error}")

    def _metadata(self, done: int) -> dict[str, str]:
        settings, mpp = self._settings, self._stains.source.mpp
        values: dict[str, Any] = {
            "software": f"kin {__version__}",
            "framework": settings.framework,
            "steps": f"{done} of {self._total}",
            "patch_px": settings.patches.patch_px,
            "training": json.dumps(self._fingerprint, sort_keys=True, ensure_ascii=False),
            **vars(settings.card),
            "mpp": settings.card.mpp if mpp is None else f"{mpp:.4f}",
        }
        return {name: str(value) for name, value in values.items() if value != ""}


def _row(done: int, rate: float, seconds: float, terms: dict[str, float]) -> dict[str, str]:
    head = {"step": str(done), "lr": f"{rate:.3e}", "seconds": f"{seconds:.1f}"}
    return head | {name: f"{value:.5f}" for name, value in terms.items()}


@dataclass(frozen=True)
class Stepper:
    """A framework on its device, and how one step is done. For one thread."""

    framework: Framework
    rank: Rank
    ema: Ema
    objectives: Sequence[nn.Module]
    seed: int

    def step(self, number: int, batches: Sequence[PatchBatch], *, rate: float) -> dict[str, float]:
        """Do step ``number`` (from 0) at the learning rate ``rate`` and return the terms of all losses by name.

        Every phase runs once over the accumulated batches; terms are means over those of this process.

        Raises:
            KinError: A term is not finite; the phase that computed it has not changed any parameter.
        """
        torch.manual_seed(_mixed(self.seed, number, self.rank.index))
        values: dict[str, float] = {}
        for phase, objective in zip(self.framework.phases, self.objectives, strict=True):
            values |= self._backward(phase, objective, batches, rate)
            _require_finite(values, number)
            phase.optimizer.step()
        self.ema.update(self.framework.generator)
        return values

    def _backward(
        self, phase: Phase, objective: nn.Module, batches: Sequence[PatchBatch], rate: float
    ) -> dict[str, float]:
        """Compute a phase's gradients over all batches, and return its terms."""
        for group in phase.optimizer.param_groups:
            group["lr"] = rate * phase.rate
        phase.optimizer.zero_grad()
        sums: dict[str, float] = {}
        for number, batch in enumerate(batches):
            with unsynchronised(objective, last=number == len(batches) - 1):
                terms = self.rank.terms(objective, batch)
                loss = torch.stack(list(terms.values())).sum() / len(batches)
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + float(term.detach()) / len(batches)
        return sums


def _mixed(*numbers: int) -> int:
    """Hash numbers to a seed of 63 bits, so that neighbouring steps have unrelated seeds."""
    state = 0
    for number in numbers:
        state = ((state ^ number) * _GOLDEN + 1) % (1 << 64)
        state ^= state >> 31
    return state >> 1


def _require_finite(values: dict[str, float], number: int) -> None:
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise KinError(
            f"the loss {bad[0]} is {values[bad[0]]} at step {number + 1}: training has diverged",
            "a lower --lr or --precision fp32 may help; the last checkpoint is kept",
        )


def means(rows: Iterable[dict[str, float]]) -> dict[str, float]:
    """Mean of every column over the rows that have it."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in columns.items()}


@torch.inference_mode()
def write_samples(path: Path, generator: nn.Module, *, source: Sequence[Pixels], target: Sequence[Pixels]) -> None:
    """Write a PNG of three rows: patches of the source, their translations, patches of the target."""
    device = next(generator.parameters()).device
    # one at a time, to need less memory than a training step
    translated = [to_pixels(generator(to_tensor([patch], device)))[0] for patch in source]
    rows = [np.concatenate(list(row), axis=1) for row in (source, translated, target)]
    encoded = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(encoded, "PNG")
    with os_errors_as_output_errors(path):
        write_atomic(path, encoded.getvalue())


def _lead(settings: TrainSettings, files: Mapping[str, list[Path]], stack: ExitStack) -> _Lead:
    """Check the run's folder, create it and claim it; take the stamps of the files before they are read."""
    output = settings.output
    check_run_folder(output, described(files), overwrite=settings.overwrite)
    inputs = stack.enter_context(RunInputs(files))
    with os_errors_as_output_errors(output):
        output.mkdir(exist_ok=True)
    claim = Claim.take(output, "train", of=output)
    stack.callback(claim.release)
    return _Lead(claim, inputs)


def _open(settings: TrainSettings, files: Mapping[str, list[Path]], stack: ExitStack) -> Stains:
    """Open and survey the slides of both stains."""
    sources = []
    for stain in SLIDES:
        guides = files["guide"] if stain == "source" else []
        source = PatchSource(files[stain], settings.patches, stain=stain, seed=settings.schedule.seed, guides=guides)
        stack.callback(source.close)
        sources.append(source)
    return Stains(*sources)
