"""All settings of a translation as one frozen value; each part checks itself when it is made (``UsageError``)."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kin_cli.errors import UsageError
from kin_cli.geometry import Box
from kin_cli.models.named import FULL_RANGE, NetworkChoice, find_generator
from kin_cli.norm.kernel import Kernel
from kin_cli.norm.lookup import Interpolation
from kin_cli.store.files import named_beside

if TYPE_CHECKING:
    import torch

Method = Literal["in", "kin", "dn", "tin"]
BORDERS = "borders between patches"  # how ``border_warning`` begins
_TRUST_THRESHOLD = 0.01
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
    variance, 1 the unbiased one. ``squash`` gives the slide's thumbnail the shape of a patch, as the KIN authors' code
    does, whatever the slide's shape is.
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
    squash: bool = False

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

    ``series`` is the number of a picture within a TIFF file; None: the largest one in colour. ``stain_match`` brings
    the slide to the colours that the generator knows, by one of two methods.
    """

    slide: Path
    level: int | None = None
    mpp: float | None = None
    source_mpp: float | None = None
    region: Box | None = None
    tissue: Path | Literal["auto", "none"] = "auto"
    on_read_error: Literal["fail", "fill"] = "fail"
    series: int | None = None
    stain_match: Literal["macenko", "reinhard"] | None = None

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
    def trust_paths(self) -> tuple[Path, Path]:
        """Paths of the trust map beside the output: its whole name and ``.trust.png`` or ``.trust.geojson``."""
        return named_beside(self.path, ".trust.png"), named_beside(self.path, ".trust.geojson")

    @property
    def report_path(self) -> Path:
        """Path of the HTML report beside the output: its whole name and ``.report.html``."""
        return named_beside(self.path, ".report.html")


@dataclass(frozen=True)
class TrustSettings:
    """The trust map. ``enabled`` None: if the generator's file holds reference statistics.

    Patches whose percentile is ``below`` count as unlike the training; None: 0.01. With ``leave_out`` they are not
    translated.
    """

    enabled: bool | None = None
    below: float | None = None
    leave_out: bool = False

    @classmethod
    def of(cls, enabled: bool | None, below: float | None, *, background: str | None) -> TrustSettings:
        """The settings as options give them: a threshold together with background "keep" leaves patches out."""
        return cls(enabled, below, leave_out=below is not None and background == "keep")

    @property
    def threshold(self) -> float:
        """The trust percentile below which a patch counts as unlike the training."""
        return self.below or _TRUST_THRESHOLD

    def __post_init__(self) -> None:
        if self.below is not None and not 0 < self.below < 1:
            raise UsageError(f"--trust-below {100 * self.below:g}% is not between 0 and 100 %", "1% is usual")
        if self.below is not None and self.enabled is False:
            raise UsageError("--trust-below and --no-trust exclude each other")


@dataclass(frozen=True)
class ComputeSettings:
    """Devices and parallelism; only ``device``, ``precision`` and ``compile`` may change pixels.

    ``device`` may name several of one kind, separated by commas. ``compile`` "auto" uses Triton kernels on
    GPUs, if they can be compiled.
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

    ``network`` is a network of one's own: code that the user names, or a torch.nn.Module; ``model`` then holds its
    weights, None: it has them. ``input_range`` are the numbers of black and white in its input and output.
    """

    source: SourceSettings
    model: Path | None
    output: OutputSettings
    norm: NormSettings = field(default_factory=NormSettings)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    table: Path | None = None
    config: Path | None = None
    entry: str | None = None
    model_norm: Literal["instance", "batch", "none"] | None = None
    trust: TrustSettings = field(default_factory=TrustSettings)
    network: NetworkChoice | torch.nn.Module | None = None
    input_range: tuple[float, float] = FULL_RANGE

    @property
    def makes_trust_map(self) -> bool:
        """Whether a trust map is made, if the generator's file tells of its training: not for one set of statistics."""
        return self.trust.enabled is not False and self.norm.method != "tin"

    @property
    def model_name(self) -> str:
        """The generator for messages and records: its file, or its network if it comes without a file."""
        if self.model is not None:
            return str(self.model)
        network = self.network
        return network.target if isinstance(network, NetworkChoice) else type(network).__name__

    def __post_init__(self) -> None:
        if self.model is None and self.network is None:
            raise UsageError("no generator was given", "give its file, or a network of your own")
        if self.network is not None and self.model_norm is not None:
            raise UsageError("--norm and --network exclude each other", "a network of your own has its own norm layers")
        low, high = self.input_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UsageError(f"input range {low:g},{high:g}: black must be less than white", "such as 0,1")
        if self.norm.method == "tin" and (self.trust.enabled or self.trust.below is not None):
            raise UsageError("--method tin has no table of statistics, and so no trust map", "leave out --trust")
        if self.table is not None and self.norm.method == "tin":
            raise UsageError("--method tin has no table to keep", "its statistics are those of a thumbnail")
        if self.table is not None and self.source.on_read_error == "fill":
            raise UsageError("--table and --on-read-error fill exclude each other", "a kept table must not have gaps")


def presets(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with ``seamless`` and ``authors`` expanded; one that is given takes precedence over them.

    ``seamless`` False is the published setting. ``halo`` and ``window`` are a number of px, "auto" or None (not given,
    as are the others).
    """
    method = options.get("method") or "kin"
    halo, interpolation, window = options.get("halo"), options.get("interpolation"), options.get("window")
    seamless, authors = options.get("seamless"), options.get("authors")
    if seamless and method == "in":
        raise UsageError("--method in has patch borders by definition", "--seamless goes with kin, dn and tin")
    paper = bool(authors) if seamless is None else not seamless
    if paper:
        halo = 0 if halo is None else halo
        window = options.get("patch_size") or NormSettings.patch_px if window is None and halo == 0 else window
        interpolation = interpolation or ("nearest" if method == "kin" else None)
    correction, eps = options.get("correction"), options.get("eps")
    if authors:
        correction = 1 if correction is None else correction
        # The authors' KIN layer has no epsilon, their TIN layer has that of InstanceNorm.
        eps = 0.0 if eps is None and method != "tin" else eps
    return {
        "method": method,
        "interpolation": interpolation,
        "window_px": window if isinstance(window, int) else None,
        "halo_px": halo if isinstance(halo, int) else None,
        "correction": correction or 0,
        "eps": eps,
        "squash": bool(authors) and method == "tin" and options.get("thumbnail") is None,
    }


def settings_of(
    slide: Path | str, output: Path | str | None = None, *, generator: torch.nn.Module | Path | str, **options: Any
) -> Settings:
    """The settings of a translation as a Python program gives them; see ``kin_cli.translate``."""
    given = dict(options)
    if given.pop("paper", False):
        given["seamless"] = False
    kept = {name: given.get(name) for name in ("thumbnail", "patch_size")}
    norm = presets({name: given.pop(name, None) for name in (*_PRESETS, *_PRESET_OF)} | kept)
    for name in ("tissue", "thumbnail", "table"):
        if isinstance(given.get(name), str) and given[name] not in ("auto", "none"):
            given[name] = Path(given[name])
    if isinstance(given.get("kernel"), str):
        given["kernel"] = Kernel.parse(given["kernel"])
    if isinstance(given.get("region"), tuple | list):
        given["region"] = Box(*given["region"])
    trust = TrustSettings.of(
        given.pop("trust", None), given.pop("trust_below", None), background=given.get("background")
    )
    parts: dict[str, dict[str, Any]] = {"norm": norm, "source": {}, "output": {}, "compute": {}, "": {}}
    for name, value in given.items():
        field_name = _FIELDS.get(name, name)
        part = next((part for part, names in _PARTS.items() if field_name in names), None)
        if part is None or name in _FIELDS.values():
            known = [
                "paper",
                "trust",
                "trust_below",
                *_PRESETS,
                *_PRESET_OF,
                *_FIELDS,
                *(n for names in _PARTS.values() for n in names),
            ]
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else "the options are those of kin translate, with underscores"
            raise UsageError(f"translate has no option '{name}'", hint)
        parts[part][field_name] = value
    slide = Path(slide)
    return Settings(
        source=SourceSettings(slide=slide, **parts["source"]),
        model=find_generator(Path(generator)) if isinstance(generator, str | Path) else None,
        output=OutputSettings(Path(output) if output is not None else default_output(slide), **parts["output"]),
        norm=NormSettings(**parts["norm"]),
        compute=ComputeSettings(**parts["compute"]),
        trust=trust,
        network=None if isinstance(generator, str | Path) else generator,
        **parts[""],
    )


_PRESETS = ("seamless", "authors")
_PRESET_OF = ("method", "halo", "window", "interpolation", "correction", "eps")
_FIELDS = {"patch_size": "patch_px", "measure_size": "measure_px", "norm": "model_norm"}
_PARTS = {
    "norm": {"kernel", "patch_px", "thumbnail", "measure_px"},
    "source": {f.name for f in fields(SourceSettings)} - {"slide"},
    "output": {f.name for f in fields(OutputSettings)} - {"path"},
    "compute": {f.name for f in fields(ComputeSettings)},
    "": {"table", "entry", "model_norm", "input_range"},
}
"""The options of ``settings_of`` by the part of the settings that they belong to."""


def default_output(slide: Path) -> Path:
    """The default output beside a slide: ``slide.kin.ome.tif`` for ``slide.svs``; a name too long for a file is cut."""
    name = slide.name
    ending = next((kind for kind in _OUTPUT_KINDS if name.lower().endswith(kind)), slide.suffix)
    stem = name[: len(name) - len(ending)]
    return named_beside(slide.with_name(stem), ".kin.ome.tif") if stem else slide.with_name(".kin.ome.tif")
