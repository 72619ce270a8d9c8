"""``kin sweep``: kernels of every kind and size, the ablation of the paper's Figures S8 and S9."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kin_cli.commands.compare import finish
from kin_cli.commands.variants import (
    base_settings,
    comparison_options,
    output_options,
    prepared_folder,
    shared_options,
    variant,
    yardstick_from,
)
from kin_cli.errors import UsageError

if TYPE_CHECKING:
    from kin_cli.compare.settings import Variant
    from kin_cli.settings import Settings

_FILE = click.Path(path_type=Path)
_ENDLESS = ("inf", "∞", "global")


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
    from kin_cli.compare.pictures import sweep_sheet
    from kin_cli.compare.settings import CompareSettings, Look

    kinds = kinds_from(options["kinds"], options["sizes"])
    folder = prepared_folder(output, options["keep"], overwrite=options["overwrite"])
    base = base_settings(slide, options, folder=folder)
    settings = CompareSettings(
        base=base,
        variants=tuple(_variants(base, options, kinds=kinds)),
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


def _variants(base: Settings, options: dict[str, Any], *, kinds: dict[str, list[str]]) -> list[Variant]:
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
