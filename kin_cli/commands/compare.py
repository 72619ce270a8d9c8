"""``kin compare``: the same slide by IN, TIN, KIN and seamless, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kin_cli.commands.progress import ConsoleProgress
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
from kin_cli.errors import UsageError

if TYPE_CHECKING:
    from kin_cli.figures.compare import CompareSettings, Comparison, Variant
    from kin_cli.settings import Settings

_FILE = click.Path(path_type=Path)
_FILE = click.Path(path_type=Path)
_ENDLESS = ("inf", "∞", "global")


# FROM commands.compare: ``kin compare``: the same slide by IN, TIN, KIN and seamless, side by side.


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
    from kin_cli.figures.compare import CompareSettings, Look
    from kin_cli.figures.sheet import comparison_sheet

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
    from kin_cli.figures.compare import clean_up
    from kin_cli.figures.compare import compare as run
    from kin_cli.figures.plots import save_figure
    from kin_cli.figures.sheet import csv_rows, figures_text

    found = run(settings, ConsoleProgress())
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


# FROM commands.sweep: ``kin sweep``: kernels of every kind and size, the ablation of the paper's Figures S8 and S9.


@shared_options
@click.command()
@click.argument("slide", type=_FILE)
@click.option("-o", "--output", type=_FILE, required=True, help="The picture: .png, .pdf or .svg.")
@click.option("--kinds", default="constant,gaussian", show_default=True, help="Comma-separated, a row each.")
@click.option("--sizes", default="1,3,7,11,inf", show_default=True, help="Comma-separated, a column each; odd or inf.")
@click.option("--seamless", is_flag=True, help="Every kernel with --seamless.")
@comparison_options
@output_options
def sweep(slide: Path, output: Path, **options: Any) -> None:
    """Show SLIDE by kernels of every kind and size, with the figures of each: the paper's Figures S8 and S9.

    Size 1 is every patch by itself and inf the average of the whole table, of whatever kind. The close-up is the corner
    of the patch grid with the worst seams by the first size. Statistics are measured once.
    """
    from kin_cli.figures.compare import CompareSettings, Look
    from kin_cli.figures.sheet import sweep_sheet

    kinds = kinds_from(options["kinds"], options["sizes"])
    folder = prepared_folder(output, options["keep"], overwrite=options["overwrite"])
    base = base_settings(slide, options, folder=folder)
    settings = CompareSettings(
        base=base,
        variants=tuple(_sweep_variants(base, options, kinds=kinds)),
        folder=folder,
        keep=options["keep"] is not None,
        look=Look(1, options["close_up"], overview_px=700),
        yardstick=yardstick_from(options),
    )
    sections = [(kind, [_name(text) for text in texts]) for kind, texts in kinds.items()]
    finish(settings, lambda found: sweep_sheet(found, sections), output=output, options=options)


def kinds_from(kinds: str, sizes: str) -> dict[str, list[str]]:
    """The kernels of each kind, as texts."""
    found: dict[str, list[str]] = {}
    for kind in (part.strip().lower() for part in kinds.split(",")):
        if kind not in ("constant", "gaussian"):
            raise UsageError(f"there is no kind of kernel '{kind}'", "there are constant and gaussian")
        found[kind] = list(dict.fromkeys(_kernel(kind, size.strip().lower()) for size in sizes.split(",")))
    return found


def _kernel(kind: str, size: str) -> str:
    from kin_cli.norm.kernel import Kernel

    if size in _ENDLESS:
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
