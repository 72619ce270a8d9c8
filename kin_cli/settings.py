"""All settings of a translation as one frozen value; each part checks itself when it is made (``UsageError``)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kin_cli.errors import UsageError
from kin_cli.geometry import Box
from kin_cli.norm.kernel import Kernel
from kin_cli.norm.lookup import Interpolation
from kin_cli.store.files import named_beside

Method = Literal["in", "kin", "dn", "tin"]
BORDERS = "borders between patches"  # how ``border_warning`` begins
_MPP_RANGE = (0.001, 10_000.0)  # wider than any microscope, and within what TIFF can store
_OUTPUT_KINDS = (".ome.tif", ".ome.tiff", ".tif", ".tiff", ".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class NormSettings:
    """Settings of the normalization.

    The methods are presets of kernel and interpolation:

    ``in``   kernel 1, nearest, no halo
    ``kin``  any kernel and interpolation, by default gaussian:7, bilinear
    ``dn``   kernel 1, bilinear
    ``tin``  neither: one set of statistics, from a thumbnail

    The defaults leave no visible borders between patches, except with ``in``; ``paper_settings`` has those of the
    published method. ``kernel`` and ``interpolation`` None take those of the method, ``eps`` None that of each layer;
    ``halo_px`` and ``window_px`` None are chosen from the generator (``in``: no halo). ``measure_px`` is the side of
    the square in the middle of a patch that pass 1 measures; None: the whole patch. ``correction`` 0 is the biased
    variance, 1 the unbiased one.
    """

    method: Method = "kin"
    kernel: Kernel | None = None
    interpolation: Interpolation | None = None
    patch_px: int = 512
    window_px: int | None = None
    halo_px: int | None = None
    correction: int = 0
    eps: float | None = None
    thumbnail: Path | None = None
    measure_px: int | None = None

    def __post_init__(self) -> None:
        if self.patch_px < 4 or self.patch_px % 4:
            raise UsageError(f"patch size {self.patch_px} is not a multiple of 4", "512 is what generators train on")
        if self.window_px is not None and (self.window_px < 1 or self.window_px % self.patch_px):
            raise UsageError(f"window {self.window_px} is not a multiple of the patch size {self.patch_px}")
        if self.halo_px is not None and self.halo_px < 0:
            raise UsageError(f"halo {self.halo_px} is negative", "0, a number of pixels, or auto")
        self._check_measure()
        if self.correction not in (0, 1):
            raise UsageError(f"correction {self.correction} is neither 0 (biased) nor 1 (unbiased)")
        if self.eps is not None and not (math.isfinite(self.eps) and self.eps >= 0):
            raise UsageError(f"eps {self.eps} must be a number from 0 upwards")
        if self.method != "tin" and self.thumbnail is not None:
            raise UsageError("a thumbnail is used by --method tin only")
        if self.method == "tin" and (self.kernel or self.interpolation):
            raise UsageError("--method tin has one set of statistics, and so neither a kernel nor an interpolation")
        fixed = {"in": ("1", "nearest"), "dn": ("1", "bilinear")}.get(self.method)
        if fixed and (str(self.kernel or "1"), self.interpolation or fixed[1]) != fixed:
            raise UsageError(
                f"--method {self.method} is kernel 1 with {fixed[1]} interpolation", "--method kin takes any"
            )

    def _check_measure(self) -> None:
        side = self.measure_px
        if side is None:
            return
        if side % 4 or not self.patch_px <= 4 * side <= 4 * self.patch_px:
            raise UsageError(
                f"measure size {side} is not a multiple of 4 from {self.patch_px / 4:g} to {self.patch_px}",
                "it is the side of a square inside each patch",
            )
        if self.method == "tin" or self.effective_kernel.size == 1:
            raise UsageError(
                "--measure-size needs a kernel of size 3 or more",
                "kernel 1 measures whole patches, tin a thumbnail",
            )

    @property
    def measured_px(self) -> int:
        """Side in pixels of the part of a patch that pass 1 measures."""
        return self.measure_px or self.patch_px

    @property
    def effective_kernel(self) -> Kernel:
        """The kernel in use: the given one, or that of the method."""
        return self.kernel or Kernel.parse("gaussian:7" if self.method == "kin" else "1")

    @property
    def effective_interpolation(self) -> Interpolation:
        """The interpolation in use: the given one, or that of the method."""
        return self.interpolation or ("nearest" if self.method == "in" else "bilinear")

    @property
    def wanted_halo_px(self) -> int | None:
        """Width of the halo in pixels; None: as wide as the generator looks."""
        return 0 if self.halo_px is None and self.method == "in" else self.halo_px


def paper_settings(
    method: Method = "kin", *, kernel: Kernel | None = None, patch_px: int = 512, measure_px: int | None = None
) -> NormSettings:
    """Settings of the published method: windows are patches, without a halo, and statistics are not interpolated."""
    return NormSettings(
        method,
        kernel,
        interpolation="nearest" if method == "kin" else None,
        patch_px=patch_px,
        window_px=patch_px,
        halo_px=0,
        measure_px=measure_px,
    )


def border_warning(method: str, interpolation: str, kernel: str, *, halo_px: int, reach_px: int) -> str | None:
    """What to say of settings that leave borders between patches, with the flag that removes them; None if none do.

    ``reach_px`` is how far the generator looks beyond a window.
    """
    if method == "in":
        return (
            f"{BORDERS} show, since --method in normalizes every patch by itself; leave it out:"
            " --method kin, the default, leaves none"
        )
    causes = []
    if interpolation == "nearest" and method != "tin" and kernel != "global":
        causes.append("statistics change in steps (--interpolation nearest)")
    if halo_px < reach_px:
        causes.append(f"the generator looks {reach_px} px beyond a window and is shown {halo_px} (--halo {halo_px})")
    if not causes:
        return None
    found = " and ".join(causes)
    return f"{BORDERS} may show: {found}; --seamless, the default, leaves none: leave out --paper"


@dataclass(frozen=True)
class SourceSettings:
    """The slide and what to read of it: ``level``, or resampled to ``mpp``; ``region`` is in pixels of that image.

    ``series`` is the number of a picture within a TIFF file; None: the largest one in colour.
    """

    slide: Path
    level: int | None = None
    mpp: float | None = None
    source_mpp: float | None = None
    region: Box | None = None
    tissue: Path | Literal["auto", "none"] = "auto"
    on_read_error: Literal["fail", "fill"] = "fail"
    series: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("--mpp", self.mpp), ("--source-mpp", self.source_mpp)):
            if value is not None and not _MPP_RANGE[0] <= value <= _MPP_RANGE[1]:
                low, high = _MPP_RANGE
                raise UsageError(f"{name} {value} is not within {low} to {high}", "µm per pixel, such as 0.5 for 20×")


@dataclass(frozen=True)
class OutputSettings:
    """The output file and its encoding; the ending of ``path`` decides the format."""

    path: Path
    compression: Literal["jpeg", "deflate"] = "jpeg"
    quality: int = 85
    subsampling: Literal["420", "422", "444"] = "420"
    icc: Literal["keep", "drop"] = "keep"
    background: Literal["fill", "keep", "white"] = "fill"
    overwrite: bool = False
    skip_existing: bool = False
    report: bool = False

    def __post_init__(self) -> None:
        if not self.path.name.lower().endswith(_OUTPUT_KINDS):
            raise UsageError(f"{self.path}: no known ending", "write " + ", ".join(_OUTPUT_KINDS))

    @property
    def flat(self) -> bool:
        """Whether the output is a PNG or JPEG, a single image without a pyramid."""
        return self.path.suffix.lower() in (".png", ".jpg", ".jpeg")

    @property
    def record_path(self) -> Path:
        """Path of the JSON record beside the output: the output's whole name and ``.json``."""
        return named_beside(self.path, ".json")

    @property
    def report_path(self) -> Path:
        """Path of the HTML report beside the output: its whole name and ``.report.html``."""
        return named_beside(self.path, ".report.html")


@dataclass(frozen=True)
class ComputeSettings:
    """Devices and parallelism; only ``device``, ``precision`` and ``compile`` may change pixels.

    ``device`` may name several of one kind, separated by commas. ``compile`` "auto" compiles on GPUs, for slides with
    enough patches.
    """

    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    batch_size: int | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("--batch-size", self.batch_size), ("--workers", self.workers)):
            if value is not None and value < 1:
                raise UsageError(f"{name} {value} must be at least 1")


@dataclass(frozen=True)
class Settings:
    """All settings of one translation. ``table`` is a folder that keeps the table, and ``config`` the TOML
    file that the settings came from, if any; neither changes the output. ``entry`` names the generator in a model file
    that holds several; ``model_norm`` is the kind of its norm layers, None: as the file tells.
    """

    source: SourceSettings
    model: Path
    output: OutputSettings
    norm: NormSettings = field(default_factory=NormSettings)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    table: Path | None = None
    config: Path | None = None
    entry: str | None = None
    model_norm: Literal["instance", "batch", "none"] | None = None

    def __post_init__(self) -> None:
        if self.table is not None and self.norm.method == "tin":
            raise UsageError("--method tin has no table to keep", "its statistics are those of a thumbnail")
        if self.table is not None and self.source.on_read_error == "fill":
            raise UsageError("--table and --on-read-error fill exclude each other", "a kept table must not have gaps")


def default_output(slide: Path) -> Path:
    """The default output beside a slide: ``slide.kin.ome.tif`` for ``slide.svs``."""
    name = slide.name
    ending = next((kind for kind in _OUTPUT_KINDS if name.lower().endswith(kind)), slide.suffix)
    return slide.with_name(name[: len(name) - len(ending)] + ".kin.ome.tif")
