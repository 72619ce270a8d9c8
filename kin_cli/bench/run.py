"""What ``kin bench`` measures."""

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
from kin_cli.bench.limits import Clock, Limit, Limits, Timing, measure_limits
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
from kin_cli.settings import ComputeSettings, NormSettings, OutputSettings, Settings, SourceSettings
from kin_cli.slide.open import open_slide

Architecture = Literal["cut", "cyclegan", "urust"]
_STEPS = 9  # the whole, six stages, the limits and the plain loops


# FROM bench.settings: What ``kin bench`` measures.


@dataclass(frozen=True)
class RandomGenerator:
    """A generator with random weights: it is as fast as a trained one of its layout."""

    architecture: Architecture = "cut"
    width: int = 64
    blocks: int = 9

    def __post_init__(self) -> None:
        if min(self.width, self.blocks) < 1:
            raise UsageError(
                f"a generator of width {self.width} with {self.blocks} blocks cannot be", "at least 1 each"
            )

    @property
    def spec(self) -> Spec:
        """The spec of its network."""
        if self.architecture == "urust":
            return UrustSpec(width=self.width, blocks=self.blocks)
        blurs = self.architecture == "cut"
        return ResnetSpec(width=self.width, blocks=self.blocks, antialias_down=blurs, antialias_up=blurs)


@dataclass(frozen=True)
class BenchSettings:
    """One benchmark.

    Attributes:
        model: a checkpoint, or a generator to be made.
        slide: a slide whose middle part is used; None for a made-up one.
        size: of that part, in pixels.
        measure_px: the middle of a patch that pass 1 looks at; None for all of it.
        repeats: how often everything is timed; the median counts.
        quick: one short repeat, without the seamless windows.
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
        """Repeats that are made."""
        return 1 if self.quick else self.repeats

    @property
    def at_least_s(self) -> float:
        """Shortest time that a repeat of a stage takes: short calls are repeated within it."""
        return 0.1 if self.quick else 0.5


# FROM bench.run: The benchmark: a slide and a generator, the whole, its stages, the limits, and the plain loop, in one process.


@dataclass(frozen=True)
class BenchResult:
    """Everything that was measured; times are per patch."""

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
        """How many times faster the whole translation is than the plain loop."""
        return self.plain.seconds / self.whole.seconds

    @property
    def speedup_twice(self) -> float:
        """The same against a plain loop that runs every patch twice, as kernelized normalization must."""
        return self.plain_twice.seconds / self.whole.seconds

    @property
    def fraction_of_slowest(self) -> float:
        """Time that both passes need, each as long as its slowest stage, as a share of what the whole took."""
        found = {stage.name: stage.timing.seconds for stage in self.stages}
        passes = (("read", "measure"), ("read", "apply", "encode"))
        return sum(max(found[name] for name in names) for names in passes) / self.whole.seconds

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; rates are per second, FLOP rates in units of 10¹²."""
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
    """Measure this machine; everything is written to a temporary folder, which is removed.

    Memory bound: that of a translation, 64 patches, and three matrices of 8192² on a GPU (2048² on a CPU).

    Raises a ``KinError`` where the slide, the model or the device cannot be used.
    """
    start, load = time.perf_counter(), round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    clock = Clock(settings.runs, settings.at_least_s)
    ready_devices(settings.compute.device)  # the sample slide is made by threads
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kin-bench-")))
        advance = stack.enter_context(progress.stage("bench", _STEPS, "measurements"))
        wanted = _translation(settings, folder)
        plan = make_plan(wanted)
        stack.enter_context(plan.view.slide)
        # first of all, so that the peak of memory is the translation's
        if plan.compiled:  # kernels are compiled once a process; that half a minute is no rate
            end_to_end(wanted, patches=len(plan.grid), repeats=1)
        whole, record = end_to_end(wanted, patches=len(plan.grid), repeats=settings.runs)
        advance(1)
        stages = Bench(plan, None if settings.quick else _seamless(wanted, stack), folder, clock)
        found = []
        for measure in stages.stages():
            found.append(measure())
            advance(1)
        limits = measure_limits(
            stages.work.largest, device=plan.device, dtype=DTYPES[plan.precision], batch=plan.batch, clock=clock
        )
        limits = replace(limits, devices=len(plan.devices) if plan.device.type == "cuda" else 1)
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
    """What the numbers were measured on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "processor": _processor(),
        "cores": available_cores(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def _translation(settings: BenchSettings, folder: Path) -> Settings:
    """The translation of every patch of the slide's middle part, or of a made-up slide."""
    slide = settings.slide or folder / "sample.tif"
    region = None
    if settings.slide is None:
        made = OutputSettings(slide)
        write_sample(made, settings.size, seed=0, workers=settings.compute.workers, progress=SilentProgress())
    else:
        with open_slide(slide) as opened:
            region = _middle(opened.levels[0], settings.size)
    return Settings(
        source=SourceSettings(slide=slide, region=region, tissue="none"),
        model=_model(settings.model, folder),
        output=OutputSettings(folder / "out.ome.tif"),
        norm=NormSettings(patch_px=settings.patch_px, measure_px=settings.measure_px),
        compute=settings.compute,
    )


def _seamless(wanted: Settings, stack: ExitStack) -> Plan:
    norm = replace(wanted.norm, halo_px=None, interpolation="bilinear")
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
    """The processor's name where the system tells."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
            return next(named, "") or platform.machine()
    except OSError:
        return platform.processor() or platform.machine()
