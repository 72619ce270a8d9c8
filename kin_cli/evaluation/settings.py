"""Settings of an evaluation: slides, metrics, and the sample of tiles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kin_cli.errors import UsageError
from kin_cli.geometry import Box

METRICS = ("fid", "histogram", "sobel", "piqe", "niqe", "ssim", "fsim", "seams")
"""Names of the metrics, in the order of the results."""

_TILE_STEP = 16
_SMALLEST_TILE = 128


@dataclass(frozen=True)
class SlideChoice:
    """A slide, and which level, resolution and region of it to use.

    ``level`` and ``mpp`` (µm per pixel) exclude each other. ``source_mpp`` is the slide's own resolution, if its file
    states none or a wrong one. ``series`` is the number of a picture within a TIFF file.
    """

    path: Path
    level: int | None = None
    mpp: float | None = None
    region: Box | None = None
    source_mpp: float | None = None
    series: int | None = None


@dataclass(frozen=True)
class Sampling:
    """Which tiles are measured: ``tiles`` of the tiles with tissue, drawn at random with ``seed``; None for all.

    ``tile_px`` is a multiple of 16, at least 128. ``tissue`` is "auto", "none" (take everything as tissue), or the path
    of a mask.
    """

    tiles: int | None = None
    seed: int = 0
    tile_px: int = 512
    tissue: str | Path = "auto"

    def __post_init__(self) -> None:
        if self.tile_px < _SMALLEST_TILE or self.tile_px % _TILE_STEP:
            hint = f"take a multiple of {_TILE_STEP} from {_SMALLEST_TILE} upwards"
            raise UsageError(f"tiles of {self.tile_px} px cannot be evaluated", hint)


@dataclass(frozen=True)
class SeamChoice:
    """Grid of the patches that the slide was translated in: their side, and the corner (x, y) of the first one."""

    patch_px: int = 512
    origin: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class EvaluationSettings:
    """Everything that an evaluation needs.

    Attributes:
        slide: the slide to evaluate.
        reference: a real slide of the target stain, for FID, the histogram, and to fit NIQE to.
        source: what the slide was translated from, pixel by pixel; for SSIM, FSIM and as the control of the seams.
        metrics: names from ``METRICS``; None for all that the inputs allow.
        sampling: which tiles are measured.
        seams: the grid of the seam metric.
        authors: also compute the variants of the KIN authors' code.
        inception: file with the weights of FID's network.
        niqe_model: file with a NIQE model; None to fit one to the reference.
        device: device of FID's network.
        workers: number of threads; None for the number of available cores.
    """

    slide: SlideChoice
    reference: SlideChoice | None = None
    source: SlideChoice | None = None
    metrics: tuple[str, ...] | None = None
    sampling: Sampling = Sampling()
    seams: SeamChoice = SeamChoice()
    authors: bool = False
    inception: Path | None = None
    niqe_model: Path | None = None
    device: str = "auto"
    workers: int | None = None

    def missing(self, metric: str) -> str | None:
        """Return the input that a metric lacks, as a noun phrase with its option; None if it lacks nothing."""
        if metric in ("fid", "histogram") and self.reference is None:
            return "a real slide of the target stain (--reference SLIDE)"
        if metric == "fid" and self.inception is None:
            # The name is PUBLIC_FILE of kin_cli.metrics.fid, which takes seconds to import.
            return (
                "the weights of its network (--inception FILE, such as pt_inception-2015-12-05-6726825d.pth of"
                " pytorch-fid)"
            )
        if metric == "niqe" and self.niqe_model is None and self.reference is None:
            return "a model (--niqe-model FILE, or --reference SLIDE to fit one to)"
        if metric in ("ssim", "fsim") and self.source is None:
            return "the slide that was translated (--source SLIDE)"
        if metric == "seams" and self.slide.mpp is not None:
            return "the slide at its own resolution (no --mpp)"
        return None

    def chosen(self) -> tuple[tuple[str, ...], dict[str, str]]:
        """Return the metrics to compute, and for each that is left out the input that it needs.

        Raises:
            UsageError: a requested metric is unknown or lacks an input.
        """
        for name in self.metrics or ():
            if name not in METRICS:
                raise UsageError(f"there is no metric '{name}'", f"there are {', '.join(METRICS)}")
            if why := self.missing(name):
                raise UsageError(f"{name} cannot be computed: it needs {why}")
        wanted = [name for name in METRICS if self.metrics is None or name in self.metrics]
        left_out = {name: why for name in wanted if (why := self.missing(name))}
        return tuple(name for name in wanted if name not in left_out), left_out
