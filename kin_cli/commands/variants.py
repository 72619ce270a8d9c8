"""What ``compare``, ``sweep`` and ``analyse`` share: options, settings of the variants, and files of results."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from kin_cli.commands.options import bundled_generator, settings_from, translation_options
from kin_cli.commands.parameters import (
    FILE,
    csv_option,
    features_option,
    inception_option,
    json_option,
    overwrite_work_option,
)
from kin_cli.errors import OutputError, UsageError
from kin_cli.store.files import real

if TYPE_CHECKING:
    from kin_cli.figures.compare import MetricOptions, Variant
    from kin_cli.settings import Settings

_SHARED = (
    *(
        "model",
        "entry",
        "model_norm",
        "network",
        "network_args",
        "input_range",
        "patch_size",
        "authors",
        "correction",
        "eps",
        "tissue",
        "background",
    ),
    *("level", "mpp", "source_mpp", "series", "region", "device", "precision", "compile", "batch_size", "workers"),
)
# Lossless: JPEG with subsampled chroma would show seams at the edges of the file's tiles.
_OUTPUT = {"compression": "deflate", "icc": "drop", "skip_existing": True, "trust": False}


def shared_options(function: Any) -> Any:
    """Add the options of a translation that are the same for all variants. Apply it first: they are listed last."""
    known = {param.name: param for param in _translation().params}
    function.__click_params__ = [known[name] for name in reversed(_SHARED)]
    return function


def output_options(function: Any) -> Any:
    """Add the options for the files that a command keeps and for what it prints."""
    return cloup.option_group(
        "What is kept and printed",
        cloup.option(
            "--table",
            type=FILE,
            help="Folder that keeps the statistics of pass 1; made if missing, else reused, also by kin translate.",
        ),
        overwrite_work_option,
        json_option,
        csv_option,
    )(function)


def comparison_options(function: Any) -> Any:
    """Add the options of what is drawn, measured and kept of the translations."""
    return cloup.option_group(
        "What is drawn and measured",
        cloup.option(
            "--close-up-size", type=click.IntRange(16), help="Side of a close-up, px.  [default: the patch size]"
        ),
        cloup.option(
            "--metrics",
            help="Metrics besides seams, separated by commas, as in kin evaluate."
            "  [default: ssim,sobel,piqe, with --reference histogram, with --inception fid and kid,"
            " with --features kid]",
        ),
        cloup.option(
            "--reference", type=FILE, help="Real slide of the target stain, for histogram, FID, KID and NIQE."
        ),
        inception_option,
        features_option,
        cloup.option(
            "--tiles",
            type=click.IntRange(1),
            default=200,
            show_default=True,
            help="Number of tiles with tissue, drawn at random, for the metrics other than seams.",
        ),
        cloup.option("--seed", type=int, default=0, show_default=True, help="Random seed for sampling the tiles."),
        cloup.option("--keep", type=FILE, help="Folder that keeps the translations; those in it are reused."),
    )(function)


def _translation() -> click.Command:
    return cloup.command("translation")(translation_options()(lambda: None))


def _defaults() -> dict[str, Any]:
    """Return the default of every option of a translation, except that the output is lossless."""
    return {**_translation().make_context("translation", []).params, **_OUTPUT}


def base_settings(slide: Path, options: dict[str, Any], *, folder: Path) -> Settings:
    """Return the settings that all variants start from. Sets ``options["model"]``, so that its note is printed once."""
    if options["network"] is None:
        options["model"] = options["model"] or bundled_generator()
    return settings_from(slide, {**_defaults(), **options, "thumbnail": None, "output": folder / "base.tif"})


def variant(base: Settings, options: dict[str, Any], *, flags: dict[str, Any], name: str, title: str) -> Variant:
    """Return a variant with the given ``flags`` of ``kin translate``; ``{kernel}`` in ``title`` is replaced."""
    from kin_cli.figures.compare import Variant

    given = {**_defaults(), **options, **flags, "table": None, "output": base.output.path}
    norm = settings_from(base.source.slide, given).norm
    return Variant(name, title.format(kernel=norm.effective_kernel), norm)


def prepared_folder(output: Path, keep: Path | None) -> Path:
    """Return the folder for table and translations: ``keep``, or a work folder beside the output.

    Checks first that a figure can be drawn and written to ``output``.
    """
    from kin_cli.figures.folder import work_folder_of
    from kin_cli.figures.plots import check_figure_file

    check_figure_file(output)
    if keep is not None and keep.exists() and not keep.is_dir():
        raise OutputError(f"{keep}: is not a folder", "name a folder with --keep, a new one or one made before")
    return keep or work_folder_of(output)


def check_written(
    base: Settings, written: Sequence[tuple[str, Path | None]], options: dict[str, Any], *, folder: Path
) -> None:
    """Raise, before any work, unless the figure and the other files can be written: pairs of option and path.

    ``folder`` is that of ``prepared_folder``.
    """
    from kin_cli.outputs import check_files, file_inputs, inputs_of, refuse_same, slide_inputs
    from kin_cli.store.work import refuse_other_folder

    thumbnail, reference = options.get("thumbnail"), options.get("reference")
    inputs = [
        *inputs_of(base),
        *slide_inputs(reference, "the reference slide"),
        *file_inputs((thumbnail, "the thumbnail"), (options.get("inception"), "the file of Inception weights")),
    ]
    check_files(written, inputs, overwrite=options["overwrite"])
    folders = [(option, options.get(option[2:])) for option in ("--table", "--keep")]
    if options.get("table") is not None:
        refuse_other_folder(options["table"], "table")
    given = [(option, path) for option, path in (*written, *folders) if path is not None]
    refuse_same(given)
    for option, path in given:
        if options.get("keep") is None and real(folder) in real(path).parents:
            raise UsageError(f"{path}: is in the folder of unfinished work", f"choose another place with {option}")
    for path, what in inputs:
        if options.get("keep") is None and real(folder) in real(path).parents:
            raise UsageError(f"{path}: {what} is in the folder of unfinished work", "move it elsewhere")


def metric_options_from(options: dict[str, Any]) -> MetricOptions:
    """Return what is measured besides the seams."""
    from kin_cli.figures.compare import MetricOptions

    names = options["metrics"]
    metrics = None if names is None else tuple(name.strip() for name in names.lower().split(","))
    reference, inception, features = options["reference"], options["inception"], options["features"]
    return MetricOptions(metrics, reference, inception, features, options["tiles"], options["seed"])


def csv_bytes(rows: Sequence[Sequence[object]]) -> bytes:
    """Rows as a CSV file; None becomes an empty field, floats keep all digits, file names their bytes."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(errors="surrogateescape")
