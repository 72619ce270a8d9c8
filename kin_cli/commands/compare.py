"""``kin compare``: the same slide by IN, TIN, KIN and seamless, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kin_cli.commands.progress import ConsoleReporter
from kin_cli.commands.variants import (
    base_settings,
    comparison_options,
    output_options,
    prepared_folder,
    shared_options,
    variant,
    write_csv,
    yardstick_from,
)

if TYPE_CHECKING:
    from kin_cli.compare.run import Comparison
    from kin_cli.compare.settings import CompareSettings, Variant
    from kin_cli.settings import Settings

_FILE = click.Path(path_type=Path)


@shared_options
@click.command()
@click.argument("slide", type=_FILE)
@click.option("-o", "--output", type=_FILE, required=True, help="The picture: .png, .pdf or .svg.")
@click.option(
    "--kernels", default="gaussian:7", show_default=True, help="Comma-separated, a column each: 1,constant:3."
)
@click.option("--close-ups", type=click.IntRange(0, 12), default=3, show_default=True, help="Rows of close-ups.")
@click.option("--thumbnail", type=_FILE, help="Image that TIN takes its statistics from.")
@comparison_options
@output_options
def compare(slide: Path, output: Path, **options: Any) -> None:
    """Show SLIDE by IN, TIN, KIN and seamless side by side, with the figures of each: the paper's Figure 4.

    The close-ups are the corners of the patch grid with the worst seams by IN, the same in every column. Statistics are
    measured once. What was interrupted is continued by the same command.
    """
    from kin_cli.compare.pictures import comparison_sheet
    from kin_cli.compare.settings import CompareSettings, Look

    folder = prepared_folder(output, options["keep"], overwrite=options["overwrite"])
    base = base_settings(slide, options, folder=folder)
    settings = CompareSettings(
        base=base,
        variants=tuple(_variants(base, options)),
        folder=folder,
        keep=options["keep"] is not None,
        look=Look(options["close_ups"], options["close_up"]),
        yardstick=yardstick_from(options),
    )
    finish(settings, comparison_sheet, output=output, options=options)


def finish(
    settings: CompareSettings, sheet: Callable[[Comparison], Any], *, output: Path, options: dict[str, Any]
) -> None:
    """Run a comparison, write its picture and what else was asked for, and print the figures."""
    from kin_cli.compare.pictures import csv_rows, figures_text
    from kin_cli.compare.run import clean_up
    from kin_cli.compare.run import compare as run
    from kin_cli.plots import save_figure

    found = run(settings, ConsoleReporter())
    save_figure(sheet(found), output)
    if options["csv_file"] is not None:
        write_csv(options["csv_file"], csv_rows(found))
    clean_up(settings)
    if options["as_json"]:
        click.echo(json.dumps(found.as_dict(), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        click.echo(f"{figures_text(found)}\n{output}")


def _variants(base: Settings, options: dict[str, Any]) -> list[Variant]:
    """The columns; IN first, since its seams choose the places."""
    columns: list[tuple[str, str, dict[str, Any]]] = [
        ("in", "IN", {"method": "in", "thumbnail": None}),
        ("tin", "TIN", {"method": "tin"}),
    ]
    for kernel in kernels_from(options["kernels"]):
        chosen = {"method": "kin", "kernel": kernel, "thumbnail": None}
        columns.append((f"kin-{kernel}".replace(":", "-"), "KIN {kernel}", chosen))
    columns.append(("seamless", "seamless, {kernel}", {"method": "kin", "seamless": True, "thumbnail": None}))
    return [variant(base, options, flags=flags, name=name, title=title) for name, title, flags in columns]


def kernels_from(text: str) -> list[Any]:
    """Kernels of a comma-separated list, each once."""
    from kin_cli.norm.kernel import Kernel

    return list(dict.fromkeys(Kernel.parse(part) for part in text.split(",")))
