"""``kin compare``: a slide by IN, TIN, KIN and seamless. ``kin sweep``: a slide by kernels of all kinds and sizes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from kin_cli.commands.parameters import FILE, examples
from kin_cli.commands.progress import ConsoleProgress
from kin_cli.commands.streams import json_text, show
from kin_cli.commands.variants import (
    base_settings,
    check_written,
    comparison_options,
    csv_bytes,
    metric_options_from,
    output_options,
    prepared_folder,
    shared_options,
    variant,
)
from kin_cli.errors import UsageError

if TYPE_CHECKING:
    from kin_cli.figures.compare import CompareSettings, Comparison, Variant
    from kin_cli.settings import Settings

_INFINITE = ("inf", "∞", "global")
_FIGURE_HELP = "File for the figure: .png, .pdf or .svg."


@cloup.command(
    short_help="Draw IN, TIN, KIN and seamless side by side.",
    epilog=examples("kin compare slide.svs -m latest_net_G.pth -o figure.png --kernels constant:3,gaussian:7"),
)
@click.argument("slide", type=FILE)
@cloup.option_group(
    "Figure",
    cloup.option("-o", "--output", type=FILE, required=True, help=_FIGURE_HELP),
    cloup.option(
        "--kernels",
        default="gaussian:7",
        show_default=True,
        help="Kernels of the KIN columns, separated by commas: 1,constant:3.",
    ),
    cloup.option("--close-ups", type=click.IntRange(0, 12), default=3, show_default=True, help="Number of close-ups."),
    cloup.option(
        "--thumbnail",
        type=FILE,
        help="Image that TIN takes its statistics from.  [default: the slide, scaled to one patch]",
    ),
)
@comparison_options
@output_options
@shared_options
def compare(slide: Path, output: Path, **options: Any) -> None:
    """Draw translations of SLIDE by IN, TIN, KIN and seamless side by side, with metrics: the paper's Figure 4.

    The close-ups show the corners of the patch grid with the worst seams under IN, the same in every column. Statistics
    are measured once. After an interruption the same command continues.
    """
    folder = prepared_folder(output, options["keep"])
    base = base_settings(slide, options, folder=folder)
    check_written(base, [("-o", output), ("--csv", options["csv_file"])], options, folder=folder)
    from kin_cli.figures.compare import CompareSettings, FigureOptions
    from kin_cli.figures.sheet import comparison_sheet

    settings = CompareSettings(
        base=base,
        variants=tuple(_variants(base, options)),
        folder=folder,
        keep=options["keep"] is not None,
        figure=FigureOptions(options["close_ups"], options["close_up_size"]),
        metrics=metric_options_from(options),
    )
    finish(settings, comparison_sheet, output=output, options=options)


def finish(
    settings: CompareSettings, sheet: Callable[[Comparison], Any], *, output: Path, options: dict[str, Any]
) -> None:
    """Run a comparison, save its figure and the other files asked for, and print the metrics."""
    from kin_cli.figures.compare import clean_up, translation_of
    from kin_cli.figures.compare import compare as run
    from kin_cli.figures.folder import figure_work
    from kin_cli.figures.plots import encoded_figure
    from kin_cli.figures.sheet import csv_rows, values_text
    from kin_cli.outputs import check_outputs, write_outputs

    progress, table, overwrite = ConsoleProgress(), options["csv_file"], options["overwrite"]
    work = nullcontext() if settings.keep else figure_work(settings.folder, settings.base, overwrite=overwrite)
    with work:
        if settings.folder.is_dir():
            for variant in settings.variants:
                check_outputs(translation_of(settings, variant))
        found = run(settings, progress)
        rows = {} if table is None else {table: csv_bytes(csv_rows(found))}
        write_outputs({**rows, output: encoded_figure(sheet(found), output)}, overwrite=overwrite)
        clean_up(settings, progress)
    show(json_text(found.as_dict()) if options["as_json"] else f"{values_text(found)}\n{output}")


def _variants(base: Settings, options: dict[str, Any]) -> list[Variant]:
    """Return the columns. IN comes first, since its seams decide where the close-ups are."""
    columns: list[tuple[str, str, dict[str, Any]]] = [
        ("in", "IN", {"method": "in", "seamless": False, "thumbnail": None}),
        ("tin", "TIN", {"method": "tin", "seamless": False}),
    ]
    for kernel in kernels_from(options["kernels"]):
        chosen = {"method": "kin", "kernel": kernel, "seamless": False, "thumbnail": None}
        columns.append((f"kin-{kernel}".replace(":", "-"), "KIN {kernel}", chosen))
    columns.append(("seamless", "seamless, {kernel}", {"method": "kin", "seamless": True, "thumbnail": None}))
    return [variant(base, options, flags=flags, name=name, title=title) for name, title, flags in columns]


def kernels_from(text: str) -> list[Any]:
    """Parse a comma-separated list of kernels; duplicates are dropped."""
    from kin_cli.norm.kernel import Kernel

    return list(dict.fromkeys(Kernel.parse(part) for part in text.split(",")))


@cloup.command(
    short_help="Draw kernels of every kind and size.",
    epilog=examples("kin sweep slide.svs -m latest_net_G.pth -o kernels.png --csv kernels.csv"),
)
@click.argument("slide", type=FILE)
@cloup.option_group(
    "Figure",
    cloup.option("-o", "--output", type=FILE, required=True, help=_FIGURE_HELP),
    cloup.option(
        "--kinds",
        default="constant,gaussian",
        show_default=True,
        help="Kinds of kernels, separated by commas; one row for each.",
    ),
    cloup.option(
        "--sizes",
        default="1,3,7,11,inf",
        show_default=True,
        help="Kernel sizes, odd or inf, separated by commas; one column for each.",
    ),
    cloup.option("--seamless", is_flag=True, help="Translate every kernel without borders, instead of with --paper."),
)
@comparison_options
@output_options
@shared_options
def sweep(slide: Path, output: Path, **options: Any) -> None:
    """Draw translations of SLIDE by kernels of every kind and size, with metrics: the paper's Figures S8 and S9.

    For either kind, size 1 uses each patch's own statistics and inf their average over the slide. The close-up shows
    the corner of the patch grid with the worst seams under the first size. Statistics are measured once.
    """
    kinds = kinds_from(options["kinds"], options["sizes"])
    folder = prepared_folder(output, options["keep"])
    base = base_settings(slide, options, folder=folder)
    check_written(base, [("-o", output), ("--csv", options["csv_file"])], options, folder=folder)
    from kin_cli.figures.compare import CompareSettings, FigureOptions
    from kin_cli.figures.sheet import sweep_sheet

    settings = CompareSettings(
        base=base,
        variants=tuple(_sweep_variants(base, options, kinds=kinds)),
        folder=folder,
        keep=options["keep"] is not None,
        figure=FigureOptions(1, options["close_up_size"], overview_px=700),
        metrics=metric_options_from(options),
    )
    sections = [(kind, [_name(text) for text in texts]) for kind, texts in kinds.items()]
    finish(settings, lambda found: sweep_sheet(found, sections), output=output, options=options)


def kinds_from(kinds: str, sizes: str) -> dict[str, list[str]]:
    """Return the kernels of each kind, as text. Raises ``UsageError`` for an unknown kind."""
    found: dict[str, list[str]] = {}
    for kind in (part.strip().lower() for part in kinds.split(",")):
        if kind not in ("constant", "gaussian"):
            raise UsageError(f"there is no kind of kernel '{kind}'", "there are constant and gaussian")
        found[kind] = list(dict.fromkeys(_kernel(kind, size.strip().lower()) for size in sizes.split(",")))
    return found


def _kernel(kind: str, size: str) -> str:
    from kin_cli.norm.kernel import Kernel

    if size in _INFINITE:
        return "global"
    # a kernel of size 1 has no kind
    return str(Kernel.parse(f"{kind}:{size}"))


def _name(kernel: str) -> str:
    return f"kernel-{kernel}".replace(":", "-")


def _sweep_variants(base: Settings, options: dict[str, Any], *, kinds: dict[str, list[str]]) -> list[Variant]:
    from kin_cli.norm.kernel import Kernel

    titles = {"1": "1: every patch alone", "global": "∞: average of all"}
    kernels = dict.fromkeys(text for texts in kinds.values() for text in texts)
    return [
        variant(
            base,
            options,
            flags={"method": "kin", "kernel": Kernel.parse(text), "seamless": options["seamless"]},
            name=_name(text),
            title=titles.get(text, "{kernel}"),
        )
        for text in kernels
    ]
