"""``kin sample``: write a synthetic slide for trying out the other commands."""

from __future__ import annotations

from pathlib import Path

import click
import cloup

from kin_cli.commands.parameters import SizeType, examples, overwrite_work_option
from kin_cli.commands.progress import ConsoleProgress
from kin_cli.commands.streams import tell_output
from kin_cli.geometry import Size


@cloup.command(
    short_help="Write a synthetic slide.",
    epilog=examples(
        "kin sample slide.tif --size 4096",
    ),
)
@click.argument("output", type=click.Path(path_type=Path))
@cloup.option(
    "--size", type=SizeType(), default="8192", show_default=True, help="Size of the slide in pixels: 8192 or 8192x4096."
)
@cloup.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Random seed; each gives another slide."
)
@cloup.option("-j", "--workers", type=click.IntRange(1), help="Number of threads.  [default: one per core, at most 8]")
@overwrite_work_option
def sample(output: Path, size: Size, seed: int, workers: int | None, overwrite: bool) -> None:
    """Write a synthetic, H&E-like slide (0.5 µm per pixel) to OUTPUT: .tif, .ome.tif, .png or .jpg."""
    from kin_cli.sample import write_sample
    from kin_cli.settings import OutputSettings

    settings = OutputSettings(output, overwrite=overwrite)
    write_sample(settings, size, seed=seed, workers=workers, progress=ConsoleProgress())
    tell_output(str(output))
