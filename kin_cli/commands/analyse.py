"""``kin analyse``: how the patches' statistics vary over a slide and differ from those of a thumbnail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kin_cli.commands.parameters import FILE, KernelType
from kin_cli.commands.progress import ConsoleProgress
from kin_cli.commands.variants import (
    base_settings,
    output_options,
    prepared_folder,
    shared_options,
    write_csv,
    write_text,
)
from kin_cli.store.files import os_errors_as_output_errors, working_folder

if TYPE_CHECKING:
    from kin_cli.figures.analysis import Analysis


@shared_options
@click.command()
@click.argument("slide", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="File for the figure (.png, .pdf, .svg), or folder.")
@click.option("--kernel", type=KernelType(), help="Kernel whose neighbourhood is compared.  [default: gaussian:7]")
@click.option(
    "--patches",
    type=click.IntRange(2),
    default=500,
    show_default=True,
    help="Number of patches, drawn at random, that are compared by distance.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed for sampling the patches.")
@click.option(
    "--reach", type=click.IntRange(1), default=5000, show_default=True, help="Largest distance between two patches, px."
)
@output_options
def analyse(slide: Path, output: Path, **options: Any) -> None:
    """Draw how similar the statistics of SLIDE's patches are: the paper's Figures S1 and S2.

    The figure shows cosine similarities of means and standard deviations in each block of layers: of two patches by
    their distance, and of a patch with the thumbnail that TIN uses, with the average of all patches and with its
    neighbourhood. Only patches that are at least half tissue count. If OUTPUT is a folder, it gets statistics.png, .csv
    and .json.
    """
    from kin_cli.figures.analysis import AnalysisSettings
    from kin_cli.figures.analysis import analyse as run
    from kin_cli.figures.plots import analysis_figure, save_figure

    stem = None
    if output.is_dir() or not output.suffix:
        with os_errors_as_output_errors(output):
            output.mkdir(exist_ok=True)
        stem, output = output / "statistics", output / "statistics.png"
    folder = prepared_folder(output, None, overwrite=options["overwrite"])
    with working_folder(folder):
        table = options["table"] or folder / "table"
        base = base_settings(slide, {**options, "table": table}, folder=folder)
        settings = AnalysisSettings(base, table, options["patches"], options["seed"], options["reach"])
        found = run(settings, ConsoleProgress())
        save_figure(analysis_figure(found), output)
    record = json.dumps(found.as_dict(), indent=1, ensure_ascii=False, allow_nan=False)
    if options["csv_file"] is not None:
        write_csv(options["csv_file"], found.rows())
    if stem is not None:
        write_csv(stem.with_suffix(".csv"), found.rows())
        write_text(stem.with_suffix(".json"), record + "\n")
    with os_errors_as_output_errors(folder):
        shutil.rmtree(folder)
    click.echo(record if options["as_json"] else f"{_text(found)}\n{output}")


def _text(found: Analysis) -> str:
    """Return a table of the median similarities, a line for each statistic and block."""
    names = ["", *(f"{standin.name}" for standin in found.standins)]
    lines = [names]
    for s, statistic in enumerate(("mean", "std")):
        for b, block in enumerate(found.blocks):
            middle = [f"{standin.quantiles[2, s, b]:.4f}" for standin in found.standins]
            lines.append([f"{statistic}, {block.name}", *middle])
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)
