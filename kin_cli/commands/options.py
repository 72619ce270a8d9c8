"""The options that every command which translates shares, and the settings that they make."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kin_cli.batch.shard import Shard
from kin_cli.commands.parameters import AutoInt, KernelType, RegionType, TissueType, auto_as_none, config_option
from kin_cli.errors import UsageError

if TYPE_CHECKING:
    from kin_cli.settings import Settings

_FILE = click.Path(path_type=Path)


class ShardType(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.2 on
    """``3/16``, or ``auto/16`` in an array job of Slurm, PBS, Grid Engine or LSF."""

    name = "i/n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002
        """Parse the part."""
        return value if isinstance(value, Shard) else Shard.parse(str(value), os.environ)


def translation_options(command: Any) -> Any:
    """Add every option of a translation but the output, and ``--config``."""
    command = config_option(command)
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def settings_from(slide: Path, options: dict[str, Any]) -> Settings:
    """The settings of a translation from the command's options."""
    from kin_cli.settings import (
        ComputeSettings,
        NormSettings,
        OutputSettings,
        Settings,
        SourceSettings,
        default_output,
    )

    if options["level"] is not None and options["mpp"] is not None:
        raise UsageError("--level and --mpp exclude each other")
    source = {name: options[name] for name in ("level", "mpp", "source_mpp", "region", "tissue", "on_read_error")}
    written = ("compression", "quality", "subsampling", "icc", "background", "overwrite", "skip_existing", "report")
    output = {name: options[name] for name in written}
    return Settings(
        source=SourceSettings(slide=slide, **source),
        model=options["model"] or bundled_generator(),
        output=OutputSettings(path=options["output"] or default_output(slide), **output),
        norm=NormSettings(**_norm_options(options)),
        compute=ComputeSettings(
            device=options["device"],
            precision=options["precision"],
            compile=options["compile"],
            workers=options["workers"],
            batch_size=auto_as_none(options["batch_size"]),
        ),
        table=options.get("table"),
    )


def _norm_options(options: dict[str, Any]) -> dict[str, Any]:
    """``--seamless`` and ``--authors`` are defaults for the options they stand for: a flag given beside them wins."""
    method = options["method"] or "kin"
    halo, interpolation = options["halo"], options["interpolation"]
    if options["seamless"]:
        if method == "in":
            raise UsageError("--method in has tile borders by definition", "--seamless goes with kin, dn and tin")
        halo = "auto" if halo is None else halo
        interpolation = interpolation or (None if method == "tin" else "bilinear")
    correction, eps = options["correction"], options["eps"]
    if options["authors"]:
        correction = 1 if correction is None else correction
        # Their KIN layer has no epsilon, their TIN layer keeps InstanceNorm's.
        eps = 0.0 if eps is None and method != "tin" else eps
    return {
        "method": method,
        "kernel": options["kernel"],
        "interpolation": interpolation,
        "patch_px": options["patch_size"],
        "window_px": auto_as_none(options["window"]),
        "halo_px": auto_as_none(0 if halo is None else halo),
        "correction": correction or 0,
        "eps": eps,
        "thumbnail": options["thumbnail"],
        "measure_px": options["measure_size"],
    }


_OPTIONS = (
    click.option("-m", "--model", type=_FILE, help="Generator: .pth or .safetensors.  [default: in the box]"),
    click.option(
        "--method", type=click.Choice(["in", "kin", "dn", "tin"]), help="Normalisation preset.  [default: kin]"
    ),
    click.option("--kernel", type=KernelType(), help="1, constant:n, gaussian:n[:std], global.  [default: gaussian:7]"),
    click.option("--interpolation", type=click.Choice(["nearest", "bilinear"]), help="How the table is read."),
    click.option("--seamless", is_flag=True, help="No visible tile borders: --halo auto --interpolation bilinear."),
    click.option("--halo", type=AutoInt(), help="Real pixels around a window, or auto.  [default: 0]"),
    click.option("--window", type=AutoInt(), help="What the network sees at once, or auto.  [default: auto]"),
    click.option("--patch-size", type=int, default=512, show_default=True, help="Pixels that share statistics."),
    click.option(
        "--measure-size", type=int, help="Pass 1 looks at the middle of each patch only: faster.  [default: all of it]"
    ),
    click.option("--authors", is_flag=True, help="The released code's convention: --correction 1 --eps 0."),
    click.option("--correction", type=click.IntRange(0, 1), help="Variance: 0 biased, 1 unbiased.  [default: 0]"),
    click.option("--eps", type=float, help="Added to the variance.  [default: each layer's own]"),
    click.option("--thumbnail", type=_FILE, help="Image that TIN takes its statistics from."),
    click.option("--tissue", type=TissueType(), default="auto", show_default=True, help="Or a mask: PNG, GeoJSON."),
    click.option(
        "--background",
        type=click.Choice(["fill", "keep", "white"]),
        default="fill",
        show_default=True,
        help="Cells without tissue: the generator's glass, the source, or white.",
    ),
    click.option("--level", type=click.IntRange(0), help="Pyramid level to translate.  [default: 0]"),
    click.option("--mpp", type=float, help="Translate at this many µm per pixel instead."),
    click.option("--source-mpp", type=float, help="µm per pixel of the slide, where the file is wrong or silent."),
    click.option("--region", type=RegionType(), help="Only this part, in pixels of that level."),
    click.option("--compression", type=click.Choice(["jpeg", "deflate"]), default="jpeg", show_default=True),
    click.option("--quality", type=click.IntRange(1, 100), default=85, show_default=True, help="JPEG quality."),
    click.option("--subsampling", type=click.Choice(["420", "422", "444"]), default="420", show_default=True),
    click.option(
        "--icc",
        type=click.Choice(["keep", "drop"]),
        default="keep",
        show_default=True,
        help="The source's colour profile.",
    ),
    click.option(
        "--device",
        "--devices",
        "device",
        default="auto",
        show_default=True,
        help="cpu, cuda, cuda:1, several with commas, or cuda:all.",
    ),
    click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), default="auto", show_default=True),
    click.option(
        "--compile",
        type=click.Choice(["auto", "on", "off"]),
        default="auto",
        show_default=True,
        help="Fused kernels by torch.compile; auto: on a GPU with 256 patches or more.",
    ),
    click.option("-b", "--batch-size", type=AutoInt(), help="Windows at a time.  [default: auto]"),
    click.option(
        "-j", "--workers", "--num-workers", type=click.IntRange(1), help="Threads.  [default: the cores we have]"
    ),
    click.option("--overwrite", is_flag=True, help="Replace the output and unfinished work of other settings."),
    click.option("--skip-existing", is_flag=True, help="Leave outputs that are verified and have these very settings."),
    click.option("--report", is_flag=True, help="Also OUTPUT.report.html: before and after, seams, settings, times."),
    click.option(
        "--on-read-error",
        type=click.Choice(["fail", "fill"]),
        default="fail",
        show_default=True,
        help="Parts that cannot be read: stop, or fill them with background, count them and exit 1.",
    ),
)


def bundled_generator() -> Path:
    """The generator that comes with the program, with a note on stderr that it is used."""
    from kin_cli.models.checkpoint import NOTICE, bundled_model

    click.echo(f"kin: {NOTICE}", err=True)
    return bundled_model()
