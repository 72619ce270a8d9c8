"""Settings of a training run, as frozen dataclasses that check themselves."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from kin_cli.errors import UsageError
from kin_cli.geometry import Box

FrameworkName = Literal["cyclegan", "cut", "lsesim"]

# not part of the fingerprint, because they do not affect the weights: a resumed run may change them
_FREE = (
    "output",
    "device",
    "workers",
    "save_every",
    "log_every",
    "evaluation",
    "half",
    "overwrite",
    "card",
    "reference",
)

# settings that states of earlier versions lack, and the values at which these versions trained
_LATER: dict[str, dict[str, Any]] = {
    "patches": {"source_jitter": 0.0, "guide": None, "stain_jitter": 0.0},
    "network": {"smooth_norm": False, "start_entry": None},
    "guidance": {"background": 0.0, "pigment": 0.0},
}


@dataclass(frozen=True)
class PatchSettings:
    """Where patches are drawn, and how they are augmented.

    ``source`` and ``target`` are slides, images, or folders of either. ``patch_px`` is the side of a patch in pixels.
    ``mpp`` resamples slides to that many µm per pixel; None reads level 0. ``min_tissue`` is the least tissue fraction
    of a tissue patch; ``border_fraction`` of the patches have less tissue, ``background_fraction`` have none. Only the
    ``source_region`` and ``target_region`` of each slide are used for training. ``flip`` mirrors half of the patches,
    ``rotate`` turns them by multiples of 90°, ``scale`` and ``jitter`` are the largest relative changes of size and of
    optical density; ``source_jitter`` is one more of the source's density, ``stain_jitter`` that of the strength of
    each stain of the source (H-E-D space). ``guide`` names images in the frame of the source slides, one for each, that
    show the target stain at the same place (see ``guidance``), up to ``guide_shift_px`` off.
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
    source_jitter: float = 0.0
    stain_jitter: float = 0.0
    guide: Path | None = None
    guide_shift_px: int = 64

    def __post_init__(self) -> None:
        if self.patch_px < 32 or self.patch_px % 4:
            raise UsageError(f"patch size {self.patch_px} is not a multiple of 4 from 32 upwards")
        fractions = {
            "min-tissue": self.min_tissue,
            "edge-fraction": self.border_fraction,
            "background-fraction": self.background_fraction,
        }
        for name, value in fractions.items():
            if not 0 <= value <= 1:
                raise UsageError(f"{name} {value} is not a fraction between 0 and 1")
        if self.border_fraction + self.background_fraction > 1:
            raise UsageError("edge-fraction and background-fraction together exceed 1")
        amounts = {"scale": self.scale, "jitter": self.jitter, "source-jitter": self.source_jitter}
        amounts["stain-jitter"] = self.stain_jitter
        for name, amount in amounts.items():
            if not 0 <= amount < 1:
                raise UsageError(f"{name} {amount} must be from 0 to below 1")


@dataclass(frozen=True)
class NetworkSettings:
    """Sizes and initial weights of the networks.

    ``width`` and ``blocks`` are the generator's channels and residual blocks, ``disc_width`` and ``disc_layers`` the
    discriminators' channels and downsampling layers. ``antialias`` adds blur filters wherever they change resolution,
    as in CUT. Weights are drawn from ``init``, a normal distribution of standard deviation ``init_gain`` or Xavier's
    with that gain; the generator's are read from the file ``start`` if there is one, from the entry ``start_entry``
    if that holds several. ``smooth_norm`` normalizes patches in training by mixtures of their own statistics and the
    slides' (see ``smooth_norm.SmoothNorm``).
    """

    width: int = 64
    blocks: int = 9
    antialias: bool = False
    disc_width: int = 64
    disc_layers: int = 3
    init: Literal["normal", "xavier"] = "normal"
    init_gain: float = 0.02
    start: Path | None = None
    start_entry: str | None = None
    smooth_norm: bool = False

    def __post_init__(self) -> None:
        if min(self.width, self.blocks, self.disc_width, self.disc_layers) < 1:
            raise UsageError("width, blocks, disc-width and disc-layers must be at least 1")


@dataclass(frozen=True)
class Schedule:
    """Length, batches, learning rate and random seed.

    ``epoch_patches`` None is the number of patches that fit side by side into the source's tissue. ``steps`` replaces
    ``epochs``. The learning rate falls linearly to 0 over the last ``decay_fraction`` of the steps. Every step uses
    ``batch`` × ``accumulate`` patches of each stain per process. ``ema`` is the decay of the generator's exponential
    moving average (EMA).
    """

    epochs: int = 100
    epoch_patches: int | None = None
    steps: int | None = None
    batch: int = 1
    accumulate: int = 1
    lr: float = 2e-4
    decay_fraction: float = 0.5
    ema: float = 0.999
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (self.epochs, self.batch, self.accumulate, self.epoch_patches, self.steps)
        if any(count is not None and count < 1 for count in counts):
            raise UsageError("epochs, epoch-patches, steps, batch-size and accumulate must be at least 1")
        if self.seed < 0:
            raise UsageError(f"seed {self.seed} is negative", "a whole number from 0 upwards")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError(f"a learning rate must be a positive number, got {self.lr}")
        if not (0 <= self.decay_fraction <= 1 and 0 <= self.ema < 1):
            raise UsageError(
                f"decay-fraction {self.decay_fraction} and ema {self.ema} must be from 0 to 1, ema below 1"
            )

    def rate(self, step: int, total: int) -> float:
        """Learning rate of step ``step`` (from 0) of ``total``: constant, then linear; above 0 in the last step."""
        span = self.decay_fraction * total
        return self.lr * min(1.0, (total - step) / span) if span > 0 else self.lr

    def outlook(self, done: int, total: int) -> str:
        """Message for a run that continues after ``done`` steps with a schedule of another length."""
        now = f"goes on with step {done + 1} of now {total}, at a learning rate of {self.rate(done, total):.1e}"
        first = total - math.ceil(self.decay_fraction * total) + 2  # the first below the full rate
        return f"{now}, which falls from step {max(first, done + 1)} on" if self.decay_fraction else now


@dataclass(frozen=True)
class CycleGanLosses:
    """Zhu et al., ICCV 2017: weight of the cycle loss, of the identity loss relative to it, size of the image pools."""

    cycle: float = 10.0
    identity: float = 0.5
    pool: int = 50


@dataclass(frozen=True)
class CutLosses:
    """Park et al., ECCV 2020: weights of the adversarial loss and of PatchNCE; ``identity`` adds PatchNCE of targets.

    ``layers`` are indices into the generator's ``model``; empty selects the authors' five.
    """

    gan: float = 1.0
    nce: float = 1.0
    identity: bool = True
    layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class LsesimLosses:
    """Zheng et al., CVPR 2021: L-LSeSim if ``learned``, otherwise F-LSeSim with fixed features.

    ``spatial`` is the weight of the spatially-correlative loss. ``layers`` count the ReLUs of VGG16 from 0 (4 is
    relu3_1, 7 is relu4_1). ``window`` is the side of a local self-similarity map, in pixels of the feature map.
    ``vgg`` is the file of VGG16 weights; ``random_features`` runs without one.
    """

    learned: bool = True
    spatial: float = 10.0
    layers: tuple[int, ...] = (4, 7)
    window: int = 32
    pool: int = 50
    vgg: Path | None = None
    random_features: bool = False

    def __post_init__(self) -> None:
        if self.vgg is None and not self.random_features:
            raise UsageError(
                "LSeSim compares VGG16 features, and no weights were named",
                "--vgg vgg16.pth (torchvision's file), or --random-features to train without it",
            )
        if not self.layers or min(self.layers) < 0 or max(self.layers) > 12:
            raise UsageError(f"LSeSim layers {self.layers} are not among the 13 ReLUs of VGG16, 0 to 12")


@dataclass(frozen=True)
class GuidanceSettings:
    """Terms that every framework can add to its own.

    ``weight`` is that of the distance to the guide, place by place in cells of ``cell_px`` pixels, ``colours`` that of
    the distance between the colours of a patch and of its guide; without a guide they have no effect.
    ``background`` is the weight of the distance of the source's background to its translation, ``pigment`` that of its
    brown and black pigment.
    """

    weight: float = 2.0
    colours: float = 10.0
    cell_px: int = 16
    background: float = 0.0
    pigment: float = 0.0

    def __post_init__(self) -> None:
        if self.cell_px < 4 or self.cell_px % 2:
            raise UsageError(f"guide-cell {self.cell_px} is not an even number of pixels from 4 upwards")
        if min(self.weight, self.colours, self.background, self.pigment) < 0:
            raise UsageError("guide-weight, guide-colours, background-weight and pigment-weight must not be negative")


Losses = CycleGanLosses | CutLosses | LsesimLosses


@dataclass(frozen=True)
class HeldOut:
    """Evaluation of the EMA generator during training, every ``every`` steps and at the end.

    ``region`` of each of the ``slides`` (a file or a folder; None: the first source slide) is translated. ``region``
    None selects up to 8 × 8 patches rich in tissue, on a source slide outside ``source_region``. ``inception`` is the
    file of weights for FID, ``patches`` the number of real target patches for it. Nothing is evaluated unless one of
    ``every``, ``slides``, ``region`` and ``inception`` is given.
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
    def requested(self) -> bool:
        """Whether the run is evaluated at all."""
        return any(value is not None for value in (self.every, self.slides, self.region, self.inception))

    def due(self, step: int) -> bool:
        """Whether ``every`` asks for an evaluation after ``step`` steps."""
        return self.every is not None and step % self.every == 0


@dataclass(frozen=True)
class Card:
    """Free text about the generator, stored in its file: what it was trained on, and how well it does.

    ``mpp`` are the µm per pixel of the patches, for slides that do not state them.
    """

    source_stain: str = ""
    target_stain: str = ""
    mpp: str = ""
    data: str = ""
    credit: str = ""
    licence: str = ""
    figures: str = ""
    use: str = "research only, not for diagnosis"


@dataclass(frozen=True)
class TrainSettings:
    """Settings of one training run, written to the folder ``output``.

    ``device`` and ``precision`` are names as for ``kin translate``, without fp16. ``workers`` threads read patches.
    ``save_every`` and ``log_every`` are in steps. ``half`` stores the generator's file in float16: half the size, and
    outputs change by less than one grey level. ``overwrite`` discards an earlier run in the folder. ``reference`` is
    the number of patches that the finished generator's reference statistics are learned from, 0 for none.
    """

    output: Path
    patches: PatchSettings
    losses: Losses
    network: NetworkSettings = field(default_factory=NetworkSettings)
    guidance: GuidanceSettings = field(default_factory=GuidanceSettings)
    schedule: Schedule = field(default_factory=Schedule)
    card: Card = field(default_factory=Card)
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    workers: int = 2
    save_every: int = 500
    log_every: int = 50
    evaluation: HeldOut = field(default_factory=HeldOut)
    half: bool = False
    overwrite: bool = False
    reference: int = 0

    def __post_init__(self) -> None:
        if min(self.workers, self.save_every, self.log_every) < 1:
            raise UsageError("workers, save-every and log-every must be at least 1")
        losses = self.losses
        if isinstance(losses, CutLosses) and losses.gan == losses.nce == 0 and self.patches.guide is None:
            raise UsageError(
                "--gan and --nce are 0, so that nothing leads the translation", "give one a weight, or --guide"
            )
        shift, step = self.patches.guide_shift_px, self.guidance.cell_px // 2
        if shift < 0 or shift % step:
            raise UsageError(f"guide-shift {shift} is not a multiple of half of guide-cell {self.guidance.cell_px}")
        if self.patches.guide is not None and self.patches.patch_px < 2 * self.guidance.cell_px:
            raise UsageError(f"guide-cell {self.guidance.cell_px} is more than half of the patch size")

    @property
    def framework(self) -> FrameworkName:
        """The framework to which the losses belong."""
        if isinstance(self.losses, CycleGanLosses):
            return "cyclegan"
        return "cut" if isinstance(self.losses, CutLosses) else "lsesim"

    def fingerprint(self) -> dict[str, Any]:
        """All settings that affect the weights, nested one level deep and ready for JSON; paths as file names.

        Those in ``_LATER`` are left out where they have no effect, so that states from before them can be continued.
        """
        values = {name: value for name, value in asdict(self).items() if name not in _FREE}
        for group, defaults in _LATER.items():
            for name, default in defaults.items():
                if values[group][name] == default:
                    del values[group][name]
        if self.patches.guide is None:
            values["patches"].pop("guide_shift_px")
            kept = {name: value for name, value in values["guidance"].items() if name in ("background", "pigment")}
            values["guidance"] = kept
        if not values["guidance"]:
            del values["guidance"]
        return {"framework": self.framework, **_plain(values)}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    # bytes of a name that are not UTF-8 become escapes, since a generator's file takes none
    return value.name.encode("utf-8", "backslashreplace").decode() if isinstance(value, Path) else value
