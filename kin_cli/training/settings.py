"""Everything that a training run can be told, in frozen values that are checked once."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from kin_cli.errors import UsageError
from kin_cli.geometry import Box

FrameworkName = Literal["cyclegan", "cut", "lsesim"]

# these may change between a run and its continuation: they do not enter the weights
_FREE = (
    "output",
    "device",
    "workers",
    "checkpoint_every",
    "sample_every",
    "log_every",
    "evaluation",
    "half",
    "overwrite",
)


@dataclass(frozen=True)
class PatchSettings:
    """Where patches come from and how they are varied.

    ``source`` and ``target`` are slides, images, or folders of either. ``patch_px`` is the side of a patch, in pixels
    of the level read; ``mpp`` resamples slides to that many µm per pixel, None reads level 0. A tissue patch holds at
    least ``min_tissue`` of it; ``border_fraction`` and ``background_fraction`` of the patches hold less, or none. ``*_region``
    keeps the rest of each slide out of training. ``scale`` and ``jitter`` are the largest relative changes of size and
    colour; 0 is none. ``guide`` is an image of the target stain that lies on the source slide, black where unknown, to
    the pixel if ``guide_aligned``.
    """

    source: Path
    target: Path
    patch_px: int = 512
    mpp: float | None = None
    min_tissue: float = 0.5
    border_fraction: float = 0.0
    background_fraction: float = 0.0
    source_region: Box | None = None
    target_region: Box | None = None
    flip: bool = True
    rotate: bool = False
    scale: float = 0.0
    jitter: float = 0.0
    guide: Path | None = None
    guide_aligned: bool = False

    def __post_init__(self) -> None:
        if self.guide_aligned and self.guide is None:
            raise UsageError("guide-aligned says how a guide lies, and there is none", "--guide GUIDE")
        if self.patch_px < 32 or self.patch_px % 4:
            raise UsageError(f"patch size {self.patch_px} is not a multiple of 4 from 32 upwards")
        fractions = {
            "min-tissue": self.min_tissue,
            "border-fraction": self.border_fraction,
            "background-fraction": self.background_fraction,
        }
        for name, value in fractions.items():
            if not 0 <= value <= 1:
                raise UsageError(f"{name} {value} is not a share between 0 and 1")
        if self.border_fraction + self.background_fraction > 1:
            raise UsageError("border-fraction and background-fraction together exceed 1")
        if not (0 <= self.scale < 1 and 0 <= self.jitter < 1):
            raise UsageError(f"scale {self.scale} and jitter {self.jitter} must be from 0 to below 1")


@dataclass(frozen=True)
class NetworkSettings:
    """Sizes of the networks.

    ``antialias`` gives generator and discriminator blur filters around their changes of size, as CUT has them. Weights
    start from ``init`` with ``init_gain`` (its standard deviation, or Xavier's gain), or, of the generator, from the
    file ``start``.
    """

    width: int = 64
    blocks: int = 9
    antialias: bool = False
    disc_width: int = 64
    disc_layers: int = 3
    init: Literal["normal", "xavier"] = "normal"
    init_gain: float = 0.02
    start: Path | None = None

    def __post_init__(self) -> None:
        if min(self.width, self.blocks, self.disc_width, self.disc_layers) < 1:
            raise UsageError("width, blocks, disc-width and disc-layers must be at least 1")


@dataclass(frozen=True)
class Schedule:
    """How long, how fast, in which order.

    ``epoch_patches`` None is as many patches as fit side by side into the source's tissue. ``steps`` overrides
    ``epochs``. The learning rate falls linearly to 0 over the last ``decay_fraction`` of the steps. A step sees
    ``batch`` × ``accumulate`` patches of each stain on every device. ``warm_steps`` first steps teach the generator the
    haematoxylin of its input (see ``counterstain``). ``disc_steps`` is how often the discriminator steps for each step
    of the generator, on new patches of the target and, where there is a pool, on earlier fakes.
    """

    epochs: int = 100
    epoch_patches: int | None = None
    steps: int | None = None
    batch: int = 1
    accumulate: int = 1
    lr: float = 2e-4
    decay_fraction: float = 0.5
    ema: float = 0.999
    warm_steps: int = 0
    disc_steps: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (self.epochs, self.batch, self.accumulate, self.disc_steps, self.epoch_patches or 1, self.steps or 1)
        if min(counts) < 1 or self.warm_steps < 0 or self.seed < 0:
            raise UsageError("epochs, steps, disc-steps, batch size and accumulation must be at least 1")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError(f"a learning rate must be a positive number, got {self.lr}")
        if not (0 <= self.decay_fraction <= 1 and 0 <= self.ema < 1):
            raise UsageError(f"decay share {self.decay_fraction} and EMA {self.ema} must be from 0 to 1 (EMA below 1)")

    def rate(self, step: int, total: int) -> float:
        """Learning rate of step ``step`` (0 first) of ``total``: constant, then linear; the last step's is not 0."""
        span = self.decay_fraction * total
        return self.lr * min(1.0, (total - step) / span) if span > 0 else self.lr

    def outlook(self, done: int, total: int) -> str:
        """A line about a run that goes on after ``done`` steps with a schedule of another length."""
        now = f"goes on with step {done + 1} of now {total}, at a learning rate of {self.rate(done, total):.1e}"
        first = total - math.ceil(self.decay_fraction * total) + 2  # the first to have less than the full rate
        return f"{now}, which falls from step {max(first, done + 1)} on" if self.decay_fraction else now


@dataclass(frozen=True)
class CycleGanLosses:
    """Zhu et al., ICCV 2017: λ of the cycle, identity relative to it, size of the pool of earlier translations."""

    cycle: float = 10.0
    identity: float = 0.5
    pool: int = 50


@dataclass(frozen=True)
class CutLosses:
    """Park et al., ECCV 2020: weights of GAN and PatchNCE, with NCE of the identity or without.

    ``layers`` are indices into the generator's ``model``; empty takes the official five. The authors have neither a
    ``pool`` nor ``nuclei``, the weight of the penalty on brown nuclei, nor ``guided``, the weight of DAB beside its
    place where patches come with a guide (see ``guide``), nor ``painted``, the weight that the warm start's term keeps
    after it, which holds the colours while a new discriminator is still blind.
    """

    gan: float = 1.0
    nce: float = 1.0
    identity: bool = True
    layers: tuple[int, ...] = ()
    locations: int = 256
    projection: int = 256
    tau: float = 0.07
    pool: int = 0
    nuclei: float = 0.0
    guided: float = 2.0
    painted: float = 0.0


@dataclass(frozen=True)
class LsesimLosses:
    """Zheng et al., CVPR 2021. ``learned`` is L-LSeSim, otherwise F-LSeSim with fixed features.

    ``layers`` count the ReLUs of VGG16 from 0 (4 is relu3_1, 7 is relu4_1). ``window`` is the side of the local map, in
    pixels of the feature map. ``vgg`` names the file of VGG16 weights; ``random_features`` does without.
    """

    learned: bool = True
    spatial: float = 10.0
    layers: tuple[int, ...] = (4, 7)
    locations: int = 256
    window: int = 32
    tau: float = 0.07
    disc_rate: float = 2.0
    pool: int = 50
    vgg: Path | None = None
    random_features: bool = False

    def __post_init__(self) -> None:
        if self.vgg is None and not self.random_features:
            raise UsageError(
                "LSeSim compares VGG16 features, and no weights were named",
                "--vgg vgg16.pth (torchvision's file), or --random-features to do without",
            )
        if not self.layers or min(self.layers) < 0 or max(self.layers) > 12:
            raise UsageError(f"LSeSim layers {self.layers} are not among the 13 ReLUs of VGG16, 0 to 12")


Losses = CycleGanLosses | CutLosses | LsesimLosses


@dataclass(frozen=True)
class HeldOut:
    """What the moving average is tried on while it trains: every ``every`` steps and at the end.

    ``slides`` (a file or a folder; None: the first source slide) are translated at their ``region``; None picks a piece
    of up to 8 × 8 patches, on a source slide among what ``source_region`` leaves out. ``inception`` are the weights of
    FID's network, ``patches`` the number of real target patches it compares with. Without any of them nothing is tried.
    """

    every: int | None = None
    slides: Path | None = None
    region: Box | None = None
    inception: Path | None = None
    patches: int = 256

    def __post_init__(self) -> None:
        if min(self.every or 1, self.patches - 1) < 1:
            raise UsageError("the interval of evaluations must be at least 1 step, and FID takes at least 2 patches")

    @property
    def asked(self) -> bool:
        """Whether there is anything to do."""
        return any(value is not None for value in (self.every, self.slides, self.region, self.inception))

    def due(self, step: int) -> bool:
        """Whether step ``step`` (1 first) is evaluated, other than as the last one."""
        return self.every is not None and step % self.every == 0


@dataclass(frozen=True)
class Card:
    """What the checkpoint says about itself; free text."""

    source_stain: str = ""
    target_stain: str = ""
    credit: str = ""
    use: str = "research only, not for diagnosis"


@dataclass(frozen=True)
class TrainSettings:
    """A training run. ``device`` and ``precision`` are names as for ``kin translate``, without fp16.

    ``half`` stores the generator's file in float16: half the size, less than a grey level of difference.
    """

    output: Path
    patches: PatchSettings
    losses: Losses
    network: NetworkSettings = field(default_factory=NetworkSettings)
    schedule: Schedule = field(default_factory=Schedule)
    card: Card = field(default_factory=Card)
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    workers: int = 2
    checkpoint_every: int = 500
    sample_every: int = 500
    log_every: int = 50
    evaluation: HeldOut = field(default_factory=HeldOut)
    half: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if min(self.workers, self.checkpoint_every, self.sample_every, self.log_every) < 1:
            raise UsageError("workers and the intervals of checkpoints, samples and log must be at least 1")

    @property
    def framework(self) -> FrameworkName:
        """Which framework the losses belong to."""
        if isinstance(self.losses, CycleGanLosses):
            return "cyclegan"
        return "cut" if isinstance(self.losses, CutLosses) else "lsesim"

    def fingerprint(self) -> dict[str, Any]:
        """Everything that changes the weights, as JSON can hold it, nested one level deep; of paths the last part."""
        values = {name: value for name, value in asdict(self).items() if name not in _FREE}
        return {"framework": self.framework, **_plain(values)}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return value.name if isinstance(value, Path) else value
