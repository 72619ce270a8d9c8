"""``kin analyse``: how the patches' statistics vary over a slide and differ from those of a thumbnail."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from kin_cli.commands.parameters import FILE, KernelType, examples
from kin_cli.commands.progress import ConsoleProgress
from kin_cli.commands.streams import json_text, show
from kin_cli.commands.variants import (
    base_settings,
    check_written,
    csv_bytes,
    output_options,
    prepared_folder,
    shared_options,
)
from kin_cli.errors import OutputError
from kin_cli.store.files import working_folder

if TYPE_CHECKING:
    from kin_cli.figures.analysis import Analysis


@cloup.command(
    short_help="Draw how similar the patches' statistics are.",
    epilog=examples("kin analyse slide.svs -o statistics.png"),
)
@click.argument("slide", type=FILE)
@cloup.option_group(
    "Figure",
    cloup.option("-o", "--output", type=FILE, required=True, help="File for the figure (.png, .pdf, .svg), or folder."),
    cloup.option("--kernel", type=KernelType(), help="Kernel whose neighbourhood is compared.  [default: gaussian:7]"),
    cloup.option(
        "--patches",
        type=click.IntRange(2),
        default=500,
        show_default=True,
        help="Number of patches, drawn at random, that are compared by distance.",
    ),
    cloup.option("--seed", type=int, default=0, show_default=True, help="Random seed for sampling the patches."),
    cloup.option(
        "--reach",
        type=click.IntRange(1),
        default=5000,
        show_default=True,
        help="Largest distance between two patches, px.",
    ),
)
@output_options
@shared_options
def analyse(slide: Path, output: Path, **options: Any) -> None:
    """Draw how similar the statistics of SLIDE's patches are: the paper's Figures S1 and S2.

    The figure shows cosine similarities of means and standard deviations in each block of layers: of two patches by
    their distance, and of a patch with the thumbnail that TIN uses, with the average of all patches and with its
    neighbourhood. Only patches that are at least half tissue count. If OUTPUT is a folder, it gets statistics.png, .csv
    and .json.
    """
    if output.suffix and not output.is_dir():
        figure, beside = output, []
    else:
        if os.path.lexists(output) and not output.is_dir():
            raise OutputError(f"{output}: is no folder, and no ending says which figure to write", "write .png")
        figure, beside = output / "statistics.png", [output / "statistics.csv", output / "statistics.json"]
    with working_folder(output) if beside else nullcontext():
        found = _analysed(slide, figure, beside, options)
    show(json_text(found.as_dict()) if options["as_json"] else f"{_text(found)}\n{figure}")


def _analysed(slide: Path, figure: Path, beside: list[Path], options: dict[str, Any]) -> Analysis:
    """Run an analysis, and write its figure, the file of ``--csv``, and ``beside`` the figure a .csv and a .json."""
    folder, overwrite = prepared_folder(figure, None), options["overwrite"]
    table = options["table"] or folder / "table"
    base = base_settings(slide, {**options, "table": table}, folder=folder)
    written = [*(("-o", path) for path in (figure, *beside)), ("--csv", options["csv_file"])]
    check_written(base, written, options, folder=folder)
    from kin_cli.figures.analysis import AnalysisSettings
    from kin_cli.figures.analysis import analyse as run
    from kin_cli.figures.folder import clear, figure_work
    from kin_cli.figures.plots import analysis_figure, encoded_figure
    from kin_cli.outputs import write_outputs

    progress = ConsoleProgress()
    with figure_work(folder, base, overwrite=overwrite):
        settings = AnalysisSettings(base, table, options["patches"], options["seed"], options["reach"])
        found = run(settings, progress)
        contents = {file: csv_bytes(found.rows()) for file in (options["csv_file"], *beside[:1]) if file is not None}
        if beside:
            contents[beside[1]] = f"{json_text(found.as_dict())}\n".encode()
        write_outputs({**contents, figure: encoded_figure(analysis_figure(found), figure)}, overwrite=overwrite)
        clear(folder, note=progress.note)
    return found


def _text(found: Analysis) -> str:
    """Return a table of the median similarities, a line for each statistic and block."""
    names = ["", *(f"{replacement.name}" for replacement in found.replacements)]
    lines = [names]
    for s, statistic in enumerate(("mean", "std")):
        for b, block in enumerate(found.blocks):
            middle = [f"{replacement.quantiles[2, s, b]:.4f}" for replacement in found.replacements]
            lines.append([f"{statistic}, {block.name}", *middle])
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)
