"""``kin bench``: the speed of every stage of a translation on this machine, beside the limits of the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import cloup

from kin_cli.commands.options import MODEL_HELP, bundled_generator
from kin_cli.commands.parameters import (
    FILE,
    ModelType,
    SizeType,
    auto_as_none,
    batch_size_option,
    compile_option,
    examples,
    json_option,
    precision_option,
    workers_option,
)
from kin_cli.commands.progress import ConsoleProgress
from kin_cli.commands.streams import json_text, show
from kin_cli.errors import UsageError
from kin_cli.geometry import Size

if TYPE_CHECKING:
    from kin_cli.bench.run import BenchSettings


@cloup.command(short_help="Measure the speed of this machine.", epilog=examples("kin bench --quick"))
@cloup.option("-m", "--model", type=ModelType(), help=MODEL_HELP)
@cloup.option(
    "--architecture",
    type=click.Choice(["cut", "cyclegan", "urust"]),
    help="Architecture of a random generator, instead of --model."
    "  [default: none; cut if --width or --blocks is given]",
)
@cloup.option("--width", type=int, help="Width of the random generator.  [default: 64]")
@cloup.option("--blocks", type=int, help="Number of residual blocks of the random generator.  [default: 9]")
@cloup.option(
    "--slide", type=FILE, help="Use the middle of this slide.  [default: a synthetic slide, as kin sample makes]"
)
@cloup.option(
    "--size",
    type=SizeType(),
    default="1536",
    show_default=True,
    help="Size of the part that is used, px: 1536 or 2048x1024.",
)
@cloup.option(
    "--patch-size",
    type=int,
    default=512,
    show_default=True,
    help="Side of the patches that statistics are measured in, px.",
)
@cloup.option(
    "--measure-size",
    type=int,
    help="Measure the statistics in only this central square of each patch, px.  [default: whole patch]",
)
@cloup.option(
    "--device",
    default="auto",
    show_default=True,
    help="Device of the network: auto, cpu, cuda, cuda:1, or several separated by commas.",
)
@precision_option
@compile_option
@batch_size_option
@workers_option
@cloup.option(
    "--repeats",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="How often every stage is measured; the median is shown.",
)
@cloup.option("--quick", is_flag=True, help="Measure every stage once and briefly, without seamless windows.")
@json_option
def bench(as_json: bool, **options: Any) -> None:
    """Measure the speed of this machine: reading, both passes, encoding, pyramid levels, and a whole translation.

    For comparison, also measures the device's limits (a matrix product and the generator's main convolution) and a
    plain loop over patches: batch 1, float32, one PNG file for each.
    """
    settings = _settings(options)
    from kin_cli.bench.run import bench as run
    from kin_cli.bench.table import table

    result = run(settings, ConsoleProgress()).as_dict()
    show(json_text(result) if as_json else table(result))


def _settings(options: dict[str, Any]) -> BenchSettings:
    from kin_cli.bench.run import BenchSettings, RandomGenerator
    from kin_cli.settings import ComputeSettings

    random = {name: options[name] for name in ("architecture", "width", "blocks") if options[name] is not None}
    if random and options["model"] is not None:
        raise UsageError(f"--model and --{next(iter(random))} exclude each other", "a model has its own architecture")
    size: Size = options["size"]
    return BenchSettings(
        model=RandomGenerator(**random) if random else options["model"] or bundled_generator(),
        slide=options["slide"],
        size=size,
        patch_px=options["patch_size"],
        measure_px=options["measure_size"],
        compute=ComputeSettings(
            device=options["device"],
            precision=options["precision"],
            compile=options["compile"],
            batch_size=auto_as_none(options["batch_size"]),
            workers=options["workers"],
        ),
        repeats=options["repeats"],
        quick=options["quick"],
    )
