"""Settings of an evaluation: slides, metrics, the sample of tiles; and what a finished file tells of them itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from kin_cli.errors import UsageError
from kin_cli.geometry import Box
from kin_cli.pyramid.provenance import Provenance

METRICS = ("fid", "kid", "histogram", "sobel", "piqe", "niqe", "ssim", "fsim", "seams")
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


def seam_choice(
    slide: Path,
    made: Provenance | None,
    *,
    patch_px: int | None = None,
    origin: tuple[int, int] = (0, 0),
    note: Callable[[str], None],
) -> SeamChoice:
    """The grid of a slide's patches: as asked for, otherwise as the slide tells, otherwise of 512 px.

    ``made`` is what ``provenance`` says of the slide. ``note`` is told what is not known, and what contradicts it.
    """
    told = None if made is None else made.patch_px
    if patch_px is None:
        if told is None:
            note(f"{slide}: does not tell the patches it was made in; 512 px are taken (--patch-size)")
        return SeamChoice(told or SeamChoice.patch_px, origin)
    if told not in (None, patch_px):
        note(f"{slide}: was made in patches of {told} px; --patch-size {patch_px} measures elsewhere")
    return SeamChoice(patch_px, origin)


def source_choice(
    made: Provenance | None,
    source: Path,
    *,
    level: int | None = None,
    region: Box | None = None,
    mpp: float | None = None,
    note: Callable[[str], None],
) -> SlideChoice:
    """The part of a ``source`` that a translation shows: as asked for, otherwise as the translation tells.

    ``made`` is what ``provenance`` says of the translation. With ``mpp`` both are resampled, and the level does not
    matter. ``note`` is told what contradicts the translation.

    Raises:
        UsageError: ``mpp`` is given and the translation shows a region, which is not in pixels of that resolution.
    """
    if made is None:
        return SlideChoice(source, level=level, mpp=mpp, region=region)
    if not made.is_from(source):
        note(f"{made.file}: was made from {made.slide}, a file of another size than {source}")
    if region is None and made.region is not None and mpp is not None:
        hint = "say where it is with --source-region, in pixels of the resolution of --mpp"
        raise UsageError(f"{made.file}: shows only a region of {made.slide}", hint)
    for option, asked, told in (("--source-level", level, made.level), ("--source-region", region, made.region)):
        if asked is not None and asked != told and mpp is None:
            note(f"{made.file}: was made from {made.part}; {option} says otherwise, and is followed")
    own = SlideChoice(source, mpp=mpp, region=region, source_mpp=made.source_mpp, series=made.series)
    if mpp is not None or level not in (None, made.level):  # a region of the file's would be in other pixels
        return replace(own, level=level)
    return replace(own, level=made.level, mpp=made.mpp, region=region or made.region)


@dataclass(frozen=True)
class EvaluationSettings:
    """Everything that an evaluation needs.

    Attributes:
        slide: the slide to evaluate.
        reference: a real slide of the target stain, for FID, KID, the histogram, and to fit NIQE to.
        source: what the slide was translated from, pixel by pixel; for SSIM, FSIM and as the control of the seams.
        metrics: names from ``METRICS``; None for all that the inputs allow.
        sampling: which tiles are measured.
        seams: the grid of the seam metric.
        authors: also compute the variants of the KIN authors' code.
        inception: file with the weights of FID's network.
        features: "efficientnet-lite0" for KID in the features of that network; None for those of ``inception``.
        niqe_model: file with a NIQE model; None to fit one to the reference.
        device: device of the network of FID and KID.
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
    features: Literal["efficientnet-lite0"] | None = None
    niqe_model: Path | None = None
    device: str = "auto"
    workers: int | None = None

    def missing(self, metric: str) -> str | None:
        """Return the input that a metric lacks, as a noun phrase with its option; None if it lacks nothing."""
        if metric in ("fid", "kid", "histogram") and self.reference is None:
            return "a real slide of the target stain (--reference SLIDE)"
        if metric == "fid" and self.inception is None:
            # The name is PUBLIC_FILE of kin_cli.metrics.fid, which takes seconds to import.
            return (
                "the weights of its network (--inception FILE, such as pt_inception-2015-12-05-6726825d.pth of"
                " pytorch-fid)"
            )
        if metric == "kid" and self.features is None and self.inception is None:
            return "a network (--features efficientnet-lite0, or --inception FILE)"
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
