"""What ``compare``, ``sweep`` and ``analyse`` share: some options of a translation, and settings of its variants."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kin_cli.commands.options import bundled_generator, settings_from, translation_options
from kin_cli.store.files import os_errors_as_output_errors, work_folder, write_atomic

if TYPE_CHECKING:
    from kin_cli.figures.compare import Variant, Yardstick
    from kin_cli.settings import Settings

_FILE = click.Path(path_type=Path)
_SHARED = (
    *("model", "patch_size", "authors", "correction", "eps", "tissue", "background", "level", "mpp", "source_mpp"),
    *("region", "device", "precision", "compile", "batch_size", "workers"),
)
# Lossless: JPEG whose chroma is subsampled fakes seams where its tiles end.
_OUTPUT = {"compression": "deflate", "icc": "drop", "skip_existing": True}


def shared_options(command: click.Command) -> click.Command:
    """Add those options of a translation that all variants have in common, behind the command's own."""
    known = {param.name: param for param in _translation().params}
    command.params += [known[name] for name in _SHARED]
    return command


def output_options(function: Any) -> Any:
    """Add what every such command can keep and print."""
    return _decorated(
        function,
        click.option("--table", type=_FILE, help="Folder that keeps what pass 1 measures; see kin translate."),
        click.option("--overwrite", is_flag=True, help="Discard unfinished work of other settings."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        click.option("--csv", "csv_file", type=_FILE, help="Also write the figures to this file."),
    )


def comparison_options(function: Any) -> Any:
    """Add what is shown, measured and kept of translations."""
    return _decorated(
        function,
        click.option("--close-up", type=click.IntRange(16), help="Side of a close-up, px.  [default: a patch]"),
        click.option(
            "--metrics", help="Beside seams, as in kin evaluate.  [default: ssim,sobel,piqe and by reference]"
        ),
        click.option("--reference", type=_FILE, help="A real slide of the target stain: histogram, FID, NIQE."),
        click.option("--inception", type=_FILE, envvar="KIN_INCEPTION", help="Weights for FID."),
        click.option(
            "--tiles", type=click.IntRange(1), default=200, show_default=True, help="Tiles measured beside the seams."
        ),
        click.option("--seed", type=int, default=0, show_default=True, help="Of the choice of tiles."),
        click.option("--keep", type=_FILE, help="Folder to keep the translations in, and to reuse those there."),
    )


def _translation() -> click.Command:
    return click.command("translation")(translation_options(lambda: None))


def _defaults() -> dict[str, Any]:
    """Every option of a translation as it is where nothing is said."""
    return {**_translation().make_context("translation", []).params, **_OUTPUT}


def _decorated(function: Any, *options: Callable[[Any], Any]) -> Any:
    for option in reversed(options):
        function = option(function)
    return function


def base_settings(slide: Path, options: dict[str, Any], *, folder: Path) -> Settings:
    """The translation that all variants start from; fills in the model, so that its note is said once."""
    options["model"] = options["model"] or bundled_generator()
    return settings_from(slide, {**_defaults(), **options, "output": folder / "base.tif"})


def variant(base: Settings, options: dict[str, Any], *, flags: dict[str, Any], name: str, title: str) -> Variant:
    """A variant by its ``flags`` of ``kin translate``; ``title`` may hold ``{kernel}``."""
    from kin_cli.figures.compare import Variant

    given = {**_defaults(), **options, **flags, "table": None, "output": base.output.path}
    norm = settings_from(base.source.slide, given).norm
    return Variant(name, title.format(kernel=norm.effective_kernel), norm)


def prepared_folder(output: Path, keep: Path | None, *, overwrite: bool) -> Path:
    """Where table and translations lie meanwhile: the folder to keep, or a work folder beside the output.

    Checks first that a picture can be drawn and written there.
    """
    from kin_cli.figures.plots import check_figure_file

    check_figure_file(output)
    if keep is not None:
        return keep
    # not the name of the work folder of a translation to this very file
    folder = work_folder(output.with_name(f"{output.name}.compare"))
    if overwrite and folder.exists():
        with os_errors_as_output_errors(folder):
            shutil.rmtree(folder)
    return folder


def yardstick_from(options: dict[str, Any]) -> Yardstick:
    """What is measured beside the seams."""
    from kin_cli.figures.compare import Yardstick

    names = options["metrics"]
    metrics = None if names is None else tuple(name.strip() for name in names.lower().split(","))
    return Yardstick(metrics, options["reference"], options["inception"], options["tiles"], options["seed"])


def write_csv(file: Path, rows: Sequence[Sequence[object]]) -> None:
    """Write rows; None is an empty cell, a float is written in full."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(file, text.getvalue())


def write_text(file: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    with os_errors_as_output_errors(file):
        write_atomic(file, text.encode())
