"""``kin bench``: what this machine gives, and what holds it back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kin_cli.commands.options import bundled_generator
from kin_cli.commands.parameters import AutoInt, SizeType, auto_as_none
from kin_cli.commands.progress import ConsoleProgress
from kin_cli.errors import UsageError
from kin_cli.geometry import Size

if TYPE_CHECKING:
    from kin_cli.bench.run import BenchSettings

_FILE = click.Path(path_type=Path)


@click.command()
@click.option("-m", "--model", type=_FILE, help="Generator: .pth or .safetensors.  [default: in the box]")
@click.option(
    "--architecture",
    type=click.Choice(["cut", "cyclegan", "urust"]),
    help="A random generator instead.  [default: cut]",
)
@click.option("--width", type=int, help="Width of a random generator.  [default: 64]")
@click.option("--blocks", type=int, help="Residual blocks of a random generator.  [default: 9]")
@click.option("--slide", type=_FILE, help="Use the middle of this slide.  [default: made up, as kin sample does]")
@click.option("--size", type=SizeType(), default="1536", show_default=True, help="Pixels of the slide that are used.")
@click.option("--patch-size", type=int, default=512, show_default=True, help="Pixels that share statistics.")
@click.option("--measure-size", type=int, help="The middle of each patch that pass 1 looks at.  [default: all of it]")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, or several with commas.")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), default="auto", show_default=True)
@click.option("--compile", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True)
@click.option("-b", "--batch-size", type=AutoInt(), help="Windows at a time.  [default: auto]")
@click.option("-j", "--workers", type=click.IntRange(1), help="Threads.  [default: the cores we have]")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Of everything; medians count.")
@click.option("--quick", is_flag=True, help="One short repeat, without the seamless windows.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(as_json: bool, **options: Any) -> None:
    """Measure this machine: reading, both passes, encoding, levels, and a translation as a whole.

    Beside them the rates of a matrix product and of the generator's main convolution, which are the limit, and a plain
    loop: patch after patch, batch 1, float32, a PNG each.
    """
    settings = _settings(options)
    from kin_cli.bench.run import bench as run
    from kin_cli.bench.table import table

    result = run(settings, ConsoleProgress()).as_dict()
    click.echo(json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) if as_json else table(result))


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
