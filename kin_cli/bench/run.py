"""The benchmark of ``kin bench``: a whole translation, its stages, the limits and the plain loop, in one process."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from kin_cli import __version__
from kin_cli.bench.limits import Clock, Layer, Limit, Limits, Timing, measure_limits
from kin_cli.bench.stages import Bench, Stage, end_to_end, plain_loops
from kin_cli.concurrency import available_cores
from kin_cli.errors import UsageError
from kin_cli.geometry import Box, Size
from kin_cli.models.architectures import Spec, build
from kin_cli.models.checkpoint import save_generator
from kin_cli.models.resnet import ResnetSpec, UrustSpec
from kin_cli.passes.devices import DTYPES, ready_devices
from kin_cli.plan import Plan, make_plan
from kin_cli.progress import Progress, SilentProgress
from kin_cli.sample import write_sample
from kin_cli.settings import ComputeSettings, OutputSettings, Settings, SourceSettings, TrustSettings, paper_settings
from kin_cli.slide.open import open_slide

Architecture = Literal["cut", "cyclegan", "urust"]
_STEPS = 9  # whole translation, six stages, limits, plain loops


@dataclass(frozen=True)
class RandomGenerator:
    """A generator with random weights, as fast as a trained one of the same architecture."""

    architecture: Architecture = "cut"
    width: int = 64
    blocks: int = 9

    def __post_init__(self) -> None:
        if min(self.width, self.blocks) < 1:
            raise UsageError(f"no generator has width {self.width} and {self.blocks} blocks", "at least 1 each")

    @property
    def spec(self) -> Spec:
        """Specification of the network."""
        if self.architecture == "urust":
            return UrustSpec(width=self.width, blocks=self.blocks)
        blurs = self.architecture == "cut"
        return ResnetSpec(width=self.width, blocks=self.blocks, antialias_down=blurs, antialias_up=blurs)


@dataclass(frozen=True)
class BenchSettings:
    """Settings of a benchmark.

    Attributes:
        model: a checkpoint, or a random generator to create.
        slide: a slide whose middle is used; None for a synthetic one.
        size: size of the part that is used, in pixels.
        patch_px: side of a patch, in pixels.
        measure_px: side of the middle of a patch that pass 1 measures; None for the whole patch.
        compute: device, precision, batch and threads.
        repeats: number of repeats of each measurement; the median counts.
        quick: make one short repeat, without the seamless windows.
    """

    model: Path | RandomGenerator
    slide: Path | None = None
    size: Size = field(default_factory=lambda: Size(1536, 1536))
    patch_px: int = 512
    measure_px: int | None = None
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    repeats: int = 3
    quick: bool = False

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise UsageError(f"{self.repeats} repeats measure nothing", "at least 1")

    @property
    def runs(self) -> int:
        """Number of times that each stage is measured."""
        return 1 if self.quick else self.repeats

    @property
    def at_least_s(self) -> float:
        """Shortest time in seconds over which a stage is timed; a shorter call is repeated until then."""
        return 0.1 if self.quick else 0.5


@dataclass(frozen=True)
class BenchResult:
    """Everything that was measured; times are in seconds per patch."""

    settings: BenchSettings
    plan: dict[str, Any]
    device: torch.device
    generator: dict[str, Any]
    stages: tuple[Stage, ...]
    limits: Limits
    whole: Timing
    plain: Timing
    plain_twice: Timing
    memory: dict[str, int | None]
    load: float | None
    seconds: float

    @property
    def speedup(self) -> float:
        """Time of the plain loop over that of the whole translation."""
        return self.plain.seconds / self.whole.seconds

    @property
    def speedup_twice(self) -> float:
        """Time of the plain loop with two runs per patch, as kernelized normalization needs, over that of the whole."""
        return self.plain_twice.seconds / self.whole.seconds

    @property
    def fraction_of_slowest(self) -> float:
        """Time of both passes if each took as long as its slowest stage, as a fraction of the time of the whole."""
        found = {stage.name: stage.timing.seconds for stage in self.stages}
        passes = (("read", "measure"), ("read", "apply", "encode"))
        return sum(max(found[name] for name in names) for names in passes) / self.whole.seconds

    def as_dict(self) -> dict[str, Any]:
        """Return the record, ready for JSON; rates are per second, FLOP rates in units of 10¹²."""
        pixels = self.settings.patch_px**2
        return {
            "kin": __version__,
            "torch": torch.__version__,
            "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "machine": {**machine(self.device), "load_before": self.load},
            "settings": _settings(self.settings),
            "generator": self.generator,
            "plan": self.plan,
            "limits": {"product": _limit(self.limits.product), "convolution": _limit(self.limits.convolution)},
            "stages": [self._stage(stage, pixels) for stage in self.stages],
            "end_to_end": {**_timing(self.whole, pixels), "fraction_of_slowest_stages": self.fraction_of_slowest},
            "plain_loop": _timing(self.plain, pixels),
            "plain_loop_twice": _timing(self.plain_twice, pixels),
            "speedup": self.speedup,
            "speedup_twice": self.speedup_twice,
            "memory": self.memory,
            "seconds": self.seconds,
        }

    def _stage(self, stage: Stage, pixels: int) -> dict[str, Any]:
        rate = None if stage.flop is None else stage.flop / stage.timing.seconds
        fraction = None if rate is None else rate / self.limits.devices
        return {
            "name": stage.name,
            **_timing(stage.timing, pixels),
            "gflop_per_patch": None if stage.flop is None else stage.flop / 1e9,
            "tflop_per_s": None if rate is None else rate / 1e12,
            "fraction_of_product": None if fraction is None else fraction / self.limits.product.flop_per_s,
            "fraction_of_convolution": None if fraction is None else fraction / self.limits.convolution.flop_per_s,
        }


def bench(settings: BenchSettings, progress: Progress) -> BenchResult:
    """Measure this machine. Everything is written to a temporary folder, which is deleted.

    Memory bound: that of a translation, 64 patches, and three matrices of 8192² on a GPU (2048² on a CPU).

    Raises:
        KinError: the slide, the model or the device cannot be used.
    """
    start, load = time.perf_counter(), _load()
    clock = Clock(settings.runs, settings.at_least_s)
    ready_devices(settings.compute.device)  # before threads start to make the sample slide
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kin-bench-")))
        advance = stack.enter_context(progress.stage("bench", _STEPS, "measurements"))
        wanted = _translation(settings, folder)
        plan = make_plan(wanted)
        stack.enter_context(plan.view.slide)
        # The whole translation first, so that the peak of memory is that of a translation.
        if plan.compiled:  # once before, so that compiling the kernels is not timed
            end_to_end(wanted, patches=len(plan.grid), repeats=1)
        whole, record = end_to_end(wanted, patches=len(plan.grid), repeats=settings.runs)
        advance(1)
        stages = Bench(plan, None if settings.quick else _seamless(wanted, stack), folder, clock)
        found = []
        for measure in stages.stages():
            found.append(measure())
            advance(1)
        limits = _limits(plan, stages.work.largest, clock)
        advance(1)
        plain, plain_twice = plain_loops(plan, folder, clock)
        advance(1)
        return BenchResult(
            settings,
            {**plan.summary(), "compiled": plan.compiled},
            plan.device,
            _generator(plan),
            tuple(stage for stage in found if stage is not None),
            limits,
            whole,
            plain,
            plain_twice,
            {name: record[name] for name in ("peak_rss_bytes", "peak_device_bytes")},
            load,
            round(time.perf_counter() - start, 1),
        )


def machine(device: torch.device) -> dict[str, Any]:
    """Describe the machine: device, processor, cores, and versions."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "processor": _processor(),
        "cores": available_cores(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def _load() -> float | None:
    """Load average of the last minute; None if the system has none."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def _limits(plan: Plan, largest: Layer, clock: Clock) -> Limits:
    dtype = DTYPES[plan.precision]
    limits = measure_limits(largest, device=plan.device, dtype=dtype, batch=plan.batch, clock=clock)
    return replace(limits, devices=len(plan.devices) if plan.device.type == "cuda" else 1)


def _translation(settings: BenchSettings, folder: Path) -> Settings:
    """Settings to translate every patch in the middle of the slide, or of a synthetic slide."""
    slide = settings.slide or folder / "sample.tif"
    region = None
    if settings.slide is None:
        write_sample(
            OutputSettings(slide), settings.size, seed=0, workers=settings.compute.workers, progress=SilentProgress()
        )
    else:
        with open_slide(slide) as opened:
            region = _middle(opened.levels[0], settings.size)
    return Settings(
        trust=TrustSettings(enabled=False),
        source=SourceSettings(slide=slide, region=region, tissue="none"),
        model=_model(settings.model, folder),
        output=OutputSettings(folder / "out.ome.tif"),
        norm=paper_settings(patch_px=settings.patch_px, measure_px=settings.measure_px),
        compute=settings.compute,
    )


def _seamless(wanted: Settings, stack: ExitStack) -> Plan:
    norm = replace(wanted.norm, window_px=None, halo_px=None, interpolation="bilinear")
    plan = make_plan(replace(wanted, norm=norm, output=replace(wanted.output, path=wanted.output.path.with_stem("b"))))
    stack.enter_context(plan.view.slide)
    return plan


def _model(model: Path | RandomGenerator, folder: Path) -> Path:
    if isinstance(model, Path):
        return model
    torch.manual_seed(0)
    file = folder / "random.safetensors"
    save_generator(build(model.spec), file, spec=model.spec)
    return file


def _middle(full: Size, wanted: Size) -> Box:
    width, height = min(full.width, wanted.width), min(full.height, wanted.height)
    return Box((full.width - width) // 2, (full.height - height) // 2, width, height)


def _generator(plan: Plan) -> dict[str, Any]:
    generator = plan.generator
    return {
        "architecture": generator.architecture,
        "width": generator.width,
        "blocks": generator.blocks,
        "parameters": sum(parameter.numel() for parameter in generator.module.parameters()),
    }


def _settings(settings: BenchSettings) -> dict[str, Any]:
    return {
        "model": "random" if isinstance(settings.model, RandomGenerator) else settings.model.name,
        "slide": None if settings.slide is None else settings.slide.name,
        "size": [settings.size.width, settings.size.height],
        "patch_px": settings.patch_px,
        "measured_px": settings.measure_px or settings.patch_px,
        "repeats": settings.runs,
        "quick": settings.quick,
    }


def _limit(limit: Limit) -> dict[str, Any]:
    return {"what": limit.what, "tflop_per_s": limit.flop_per_s / 1e12}


def _timing(timing: Timing, pixels: int) -> dict[str, Any]:
    return {
        "seconds_per_patch": timing.seconds,
        "fastest": timing.fastest,
        "slowest": timing.slowest,
        "repeats": timing.repeats,
        "patches_per_s": 1 / timing.seconds,
        "mpixel_per_s": pixels / timing.seconds / 1e6,
    }


def _processor() -> str:
    """Name of the processor, if the system provides it, else its architecture."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
            return next(named, "") or platform.machine()
    except OSError:
        return platform.processor() or platform.machine()
