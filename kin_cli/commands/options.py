"""The options of a translation, which several commands share, and the settings made from them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from kin_cli.batch.shard import Shard
from kin_cli.commands.parameters import (
    FILE,
    AutoInt,
    KernelType,
    ModelType,
    PercentType,
    RangeType,
    RegionType,
    auto_as_none,
    batch_size_option,
    compile_option,
    config_file,
    config_option,
    overwrite_work_option,
    precision_option,
    series_option,
    tissue_option,
)
from kin_cli.commands.progress import ConsoleProgress
from kin_cli.errors import UsageError

if TYPE_CHECKING:
    from kin_cli.settings import Settings

MODEL_HELP = (
    "Generator: a .pth or .safetensors file, or a name that kin models lists.  [default: the bundled one, H&E to PAS]"
)
entry_option = cloup.option(
    "--entry", help="Entry of a training bundle that holds the generator, if it holds several, such as netG_A2B."
)
norm_option = cloup.option(
    "--norm",
    "model_norm",
    type=click.Choice(["instance", "batch", "none"]),
    help="Norm layers that the generator was trained with.  [default: as its file tells]",
)
network_options = (
    cloup.option(
        "--network",
        help="A network of your own, whose weights --model holds: FILE.py:NAME, package.module:NAME, or a name that an"
        " installed package brings. Its code is run.",
    ),
    cloup.option(
        "--network-args", help="""Arguments of its constructor, a JSON object: '{"ngf": 64}'.  [default: none]"""
    ),
    cloup.option(
        "--input-range",
        type=RangeType(),
        help="Numbers of black and white in the generator's input and output.  [default: -1,1]",
    ),
)
_COMMON = (
    cloup.option("-m", "--model", type=ModelType(), help=MODEL_HELP),
    cloup.option(
        "--kernel",
        type=KernelType(),
        help="Kernel that smooths the statistics: 1, constant:n, gaussian:n[:std] or global.  [default: gaussian:7]",
    ),
    cloup.option("--mpp", type=float, help="Resample the slide to this many µm per pixel, instead of --level."),
    tissue_option,
    cloup.option(
        "--device",
        "--devices",
        "device",
        default="auto",
        show_default=True,
        help="Device of the network: auto, cpu, cuda, cuda:1, several separated by commas, or cuda:all.",
    ),
    overwrite_work_option,
    cloup.option(
        "--skip-existing", is_flag=True, help="Skip slides whose output exists, is sound and has the same settings."
    ),
    cloup.option(
        "--report", is_flag=True, help="Also write OUTPUT.report.html: before and after, seams, settings and times."
    ),
)
_NORMALIZATION = (
    cloup.option(
        "--method",
        type=click.Choice(["in", "kin", "dn", "tin"]),
        help="Normalization: instance, kernelized, dense or thumbnail instance normalization.  [default: kin]",
    ),
    cloup.option(
        "--seamless/--paper",
        default=None,
        help="Leave no visible borders between patches; or compute as published: --window as the patch size, --halo 0,"
        " --interpolation nearest.  [default: seamless, but not with --authors]",
    ),
    cloup.option(
        "--interpolation",
        type=click.Choice(["nearest", "bilinear"]),
        help="Statistics of a pixel: those of its patch, or interpolated between patch centres."
        "  [default: bilinear, with --paper nearest]",
    ),
    cloup.option(
        "--halo",
        type=AutoInt(),
        help="Width of the real pixels read around every window, px; auto: as far as the network looks."
        "  [default: auto, with --paper and --method in 0]",
    ),
    cloup.option(
        "--window",
        type=AutoInt(),
        help="Side of the square that the network sees at once, px, a multiple of the patch size.  [default: auto]",
    ),
    cloup.option(
        "--patch-size",
        type=int,
        default=512,
        show_default=True,
        help="Side of the patches that statistics are measured in, px.",
    ),
    cloup.option(
        "--measure-size",
        type=int,
        help="Measure the statistics in only this central square of each patch, px; faster.  [default: whole patch]",
    ),
    cloup.option(
        "--authors",
        is_flag=True,
        help="Compute as the KIN authors' code does: --correction 1 --eps 0; tin: the thumbnail squashed to one patch.",
    ),
    cloup.option("--correction", type=click.IntRange(0, 1), help="Variance: 0 biased, 1 unbiased.  [default: 0]"),
    cloup.option("--eps", type=float, help="Constant added to the variance.  [default: each layer's own]"),
    cloup.option(
        "--thumbnail",
        type=FILE,
        help="Image that --method tin takes its statistics from.  [default: the slide, scaled to one patch]",
    ),
)
_SLIDE = (
    cloup.option("--level", type=click.IntRange(0), help="Pyramid level of the slide to translate.  [default: 0]"),
    cloup.option("--source-mpp", type=float, help="The slide's µm per pixel, if its file says nothing or is wrong."),
    series_option,
    cloup.option(
        "--region", type=RegionType(), help="Translate only this rectangle, in pixels of the translated level."
    ),
    cloup.option(
        "--background",
        type=click.Choice(["fill", "keep", "white"]),
        default="fill",
        show_default=True,
        help="Tiles without tissue: fill with the generator's background colour, keep the slide's pixels, or white.",
    ),
    cloup.option(
        "--on-read-error",
        type=click.Choice(["fail", "fill"]),
        default="fail",
        show_default=True,
        help="Unreadable parts of the slide: fail, or fill them with background, count them and exit with code 1.",
    ),
)
_TRUST = (
    cloup.option(
        "--trust/--no-trust",
        "trust",
        default=None,
        help="Also write OUTPUT.trust.png and .geojson: where the slide is unlike the generator's training patches."
        "  [default: if the generator's file tells what those were like]",
    ),
    cloup.option(
        "--trust-below",
        type=PercentType(),
        help="Trust percentile below which a patch counts as unlike the training; given with --background keep, such"
        " patches are not translated.  [default: 1%]",
    ),
    cloup.option(
        "--stain-match",
        type=click.Choice(["macenko", "reinhard"]),
        help="Bring the slide to the colours that the generator knows, by one of two methods.",
    ),
)
_GENERATOR = (
    entry_option,
    norm_option,
    *network_options,
)
_OUTPUT = (
    cloup.option(
        "--compression",
        type=click.Choice(["jpeg", "deflate"]),
        default="jpeg",
        show_default=True,
        help="Compression of the output; deflate is lossless.",
    ),
    cloup.option("--quality", type=click.IntRange(1, 100), default=85, show_default=True, help="JPEG quality."),
    cloup.option(
        "--subsampling",
        type=click.Choice(["420", "422", "444"]),
        default="420",
        show_default=True,
        help="JPEG chroma subsampling; 444 is none.",
    ),
    cloup.option(
        "--icc",
        type=click.Choice(["keep", "drop"]),
        default="keep",
        show_default=True,
        help="Keep the slide's ICC colour profile in the output, or drop it.",
    ),
)
_MACHINE = (
    precision_option,
    compile_option,
    batch_size_option,
    cloup.option(
        "-j",
        "--workers",
        "--num-workers",
        type=click.IntRange(1),
        help="Number of threads that read and write.  [default: all cores, at most 8]",
    ),
)


def with_network_options(command: Any) -> Any:
    """Add ``network_options``."""
    for option in reversed(network_options):
        command = option(command)
    return command


class ShardType(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.2 on
    """``3/16``, or ``auto/16`` in an array job of Slurm, PBS, Grid Engine or LSF."""

    name = "i/n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002
        """Parse the shard."""
        return value if isinstance(value, Shard) else Shard.parse(str(value), os.environ)


def translation_options(*common: Any, jobs: Sequence[Any] = ()) -> Callable[[Any], Any]:
    """Add all options of a translation except the output, and ``--config``, in groups.

    ``common`` are a command's own options, listed first; ``jobs`` those about parts of the work and records.
    """
    groups = (
        ("Common options", (*common, *_COMMON)),
        ("Normalization", _NORMALIZATION),
        ("What is read", _SLIDE),
        ("Trust and colours", _TRUST),
        ("Generator file", _GENERATOR),
        ("Output file", _OUTPUT),
        ("Speed and memory", _MACHINE),
        ("Jobs, records and settings", (*jobs, config_option)),
    )

    def decorate(command: Any) -> Any:
        for title, options in reversed(groups):
            command = cloup.option_group(title, *options)(command)
        return command

    return decorate


def settings_from(slide: Path, options: dict[str, Any]) -> Settings:
    """Make the settings of a translation from the values of ``translation_options`` and ``--output``, ``--table``."""
    from kin_cli.settings import (
        ComputeSettings,
        NormSettings,
        OutputSettings,
        Settings,
        SourceSettings,
        TrustSettings,
        default_output,
    )

    if options["level"] is not None and options["mpp"] is not None:
        raise UsageError("--level and --mpp exclude each other")
    read = ("level", "mpp", "source_mpp", "series", "region", "tissue", "on_read_error", "stain_match")
    source = {name: options[name] for name in read}
    written = ("compression", "quality", "subsampling", "icc", "background", "overwrite", "skip_existing", "report")
    output = {name: options[name] for name in written}
    return Settings(
        source=SourceSettings(slide=slide, **source),
        model=options["model"] or (None if options["network"] else bundled_generator()),
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
        entry=options["entry"],
        model_norm=options["model_norm"],
        **network_settings(options),
        config=config_file(),
        trust=TrustSettings.of(options["trust"], options["trust_below"], background=options["background"]),
    )


def network_settings(options: dict[str, Any]) -> dict[str, Any]:
    """The fields of ``Settings`` for a network of one's own, from the values of ``network_options``."""
    from kin_cli.models.named import FULL_RANGE, NetworkChoice

    target, arguments = options["network"], options["network_args"]
    if arguments is not None and target is None:
        raise UsageError("--network-args needs --network", "they are the arguments of its constructor")
    network = None if target is None else NetworkChoice(target, arguments or "{}")
    if network is not None:
        network.values  # noqa: B018 - refused before torch is loaded
    return {"network": network, "input_range": options["input_range"] or FULL_RANGE}


def _norm_options(options: dict[str, Any]) -> dict[str, Any]:
    from kin_cli.settings import presets

    return {
        **presets(options),
        "kernel": options["kernel"],
        "patch_px": options["patch_size"],
        "thumbnail": options["thumbnail"],
        "measure_px": options["measure_size"],
    }


def bundled_generator() -> Path:
    """Return the file of the bundled generator, after a note on stderr that it is used."""
    from kin_cli.models.checkpoint import NOTICE, bundled_model

    ConsoleProgress().note(NOTICE)
    return bundled_model()
