"""``kin translate``: one slide in, a translated pyramid out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kin_cli.commands.figures import describe_plan
from kin_cli.commands.parameters import (
    AutoInt,
    KernelType,
    RegionType,
    TissueType,
    auto_as_none,
    config_option,
)
from kin_cli.commands.progress import ConsoleReporter
from kin_cli.errors import UsageError

if TYPE_CHECKING:
    from kin_cli.settings import Settings

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("slide", type=_FILE)
@click.option("-o", "--output", type=_FILE, help="Output: .ome.tif (default: SLIDE.kin.ome.tif), .tif, .png or .jpg.")
@click.option("-m", "--model", type=_FILE, help="Generator checkpoint: .pth or .safetensors.")
@click.option("--method", type=click.Choice(["in", "kin", "dn", "tin"]), help="Normalisation preset.  [default: kin]")
@click.option("--kernel", type=KernelType(), help="1, constant:n, gaussian:n[:std], global.  [default: gaussian:7]")
@click.option("--interpolation", type=click.Choice(["nearest", "bilinear"]), help="How the table is read.")
@click.option("--seamless", is_flag=True, help="No visible tile borders: --halo auto --interpolation bilinear.")
@click.option("--halo", type=AutoInt(), help="Real pixels around a window, or auto.  [default: 0]")
@click.option("--window", type=AutoInt(), help="What the network sees at once, or auto.  [default: auto]")
@click.option("--patch-size", type=int, default=512, show_default=True, help="Pixels that share statistics.")
@click.option("--authors", is_flag=True, help="The released code's convention: --correction 1 --eps 0.")
@click.option("--correction", type=click.IntRange(0, 1), help="Variance: 0 biased, 1 unbiased.  [default: 0]")
@click.option("--eps", type=float, help="Added to the variance.  [default: each layer's own]")
@click.option("--thumbnail", type=_FILE, help="Image that TIN takes its statistics from.")
@click.option("--tissue", type=TissueType(), default="auto", show_default=True, help="Or a mask: PNG, GeoJSON.")
@click.option(
    "--background",
    type=click.Choice(["fill", "keep", "white"]),
    default="fill",
    show_default=True,
    help="Cells without tissue: the generator's glass, the source, or white.",
)
@click.option("--level", type=click.IntRange(0), help="Pyramid level to translate.  [default: 0]")
@click.option("--mpp", type=float, help="Translate at this many µm per pixel instead.")
@click.option("--source-mpp", type=float, help="µm per pixel of the slide, where the file is wrong or silent.")
@click.option("--region", type=RegionType(), help="Only this part, in pixels of that level.")
@click.option("--compression", type=click.Choice(["jpeg", "deflate"]), default="jpeg", show_default=True)
@click.option("--quality", type=click.IntRange(1, 100), default=85, show_default=True, help="JPEG quality.")
@click.option("--subsampling", type=click.Choice(["420", "422", "444"]), default="420", show_default=True)
@click.option(
    "--icc", type=click.Choice(["keep", "drop"]), default="keep", show_default=True, help="The source's colour profile."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 …")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), default="auto", show_default=True)
@click.option("-b", "--batch-size", type=AutoInt(), help="Windows at a time.  [default: auto]")
@click.option("-j", "--workers", "--num-workers", type=click.IntRange(1), help="Threads.  [default: the cores we have]")
@click.option("--overwrite", is_flag=True, help="Replace the output and unfinished work of other settings.")
@click.option("--dry-run", is_flag=True, help="Show the plan and exit.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan or the run record as JSON.")
@config_option
def translate(slide: Path, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Translate SLIDE: any slide that OpenSlide opens, a TIFF, or a photograph.

    Work that was interrupted is continued by the same command.
    """
    settings = settings_from(slide, options)
    # Imported here because torch takes seconds, and a wrong option should not.
    if dry_run:
        from kin_cli.plan import make_plan

        plan = make_plan(settings)
        with plan.view.slide:
            click.echo(json.dumps(plan.summary(), indent=1) if as_json else describe_plan(plan))
        return
    from kin_cli.translate import translate as run

    record = run(settings, ConsoleReporter())
    if as_json:
        click.echo(json.dumps(record, indent=1, ensure_ascii=False))
    else:
        click.echo(str(settings.output.path))


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

    if options["model"] is None:
        raise UsageError("no generator was given", "name a checkpoint with --model")
    if options["level"] is not None and options["mpp"] is not None:
        raise UsageError("--level and --mpp exclude each other")
    source = {name: options[name] for name in ("level", "mpp", "source_mpp", "region", "tissue")}
    output = {
        name: options[name] for name in ("compression", "quality", "subsampling", "icc", "background", "overwrite")
    }
    return Settings(
        source=SourceSettings(slide=slide, **source),
        model=options["model"],
        output=OutputSettings(path=options["output"] or default_output(slide), **output),
        norm=NormSettings(**_norm_options(options)),
        compute=ComputeSettings(
            device=options["device"],
            precision=options["precision"],
            workers=options["workers"],
            batch_size=auto_as_none(options["batch_size"]),
        ),
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
    }
