"""``kin evaluate``: quality metrics of a slide, alone, against a real slide and against its source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from kin_cli.commands.parameters import (
    FILE,
    RegionType,
    csv_option,
    examples,
    inception_option,
    json_option,
    overwrite_option,
    tissue_option,
    workers_option,
)
from kin_cli.commands.progress import ConsoleProgress
from kin_cli.commands.streams import json_text, show
from kin_cli.commands.variants import csv_bytes

if TYPE_CHECKING:
    from kin_cli.evaluation.run import Evaluation
    from kin_cli.evaluation.settings import EvaluationSettings

_ARROWS = {"lower": "↓", "higher": "↑", "": ""}


@cloup.command(
    short_help="Measure the quality of a slide.",
    epilog=examples(
        "kin evaluate translated.ome.tif --source slide.svs --reference real.svs --json",
    ),
)
@click.argument("slide", type=FILE)
@cloup.option(
    "--reference", type=FILE, help="Real slide of the target stain, for FID and histogram; NIQE is fitted to it."
)
@cloup.option(
    "--source", type=FILE, help="Slide that SLIDE was translated from, for SSIM and FSIM; the control of the seams."
)
@cloup.option("--source-level", type=click.IntRange(0), help="Pyramid level of the source that was translated.")
@cloup.option(
    "--source-region", type=RegionType(), help="Rectangle of the source that was translated, in pixels of that level."
)
@cloup.option(
    "--metrics",
    help="Metrics, separated by commas: fid,histogram,sobel,piqe,niqe,ssim,fsim,seams.  [default: all possible]",
)
@cloup.option(
    "--tiles", type=click.IntRange(1), help="Number of tiles with tissue to measure, drawn at random.  [default: all]"
)
@cloup.option("--seed", type=int, default=0, show_default=True, help="Random seed for sampling the tiles.")
@cloup.option("--tile-size", type=int, default=512, show_default=True, help="Side of the tiles that are measured, px.")
@cloup.option(
    "--patch-size",
    type=int,
    default=512,
    show_default=True,
    help="Side of the patches that SLIDE was translated with, px; seams are measured at their borders.",
)
@tissue_option
@cloup.option("--mpp", type=float, help="Resample all slides to this many µm per pixel first.")
@cloup.option("--authors", is_flag=True, help="Also compute the metrics as the KIN authors' code does.")
@inception_option
@cloup.option(
    "--niqe-model", type=FILE, help="File with a model for NIQE: .mat or .npz.  [default: fitted to the reference]"
)
@cloup.option(
    "--device", default="auto", show_default=True, help="Device of the FID network: auto, cpu, cuda or cuda:1."
)
@workers_option
@json_option
@csv_option
@overwrite_option
def evaluate(slide: Path, as_json: bool, csv_file: Path | None, overwrite: bool, **options: Any) -> None:
    """Measure the quality of SLIDE in its tissue.

    \b
    fid, histogram             against a real slide (--reference)
    ssim, fsim                 against the slide it was translated from (--source)
    sobel, piqe, niqe, seams   of SLIDE alone; seams also against the source
    """
    from kin_cli.outputs import check_files, write_outputs

    settings = _settings(slide, options)
    check_files([("--csv", csv_file)], _inputs(settings), overwrite=overwrite)
    from kin_cli.evaluation.run import evaluate as run

    found = run(settings, ConsoleProgress())
    if csv_file is not None:
        write_outputs({csv_file: csv_bytes(_rows(found))}, overwrite=overwrite)
    if as_json:
        show(json_text(found.as_dict()))
    else:
        show(_table(found))


def _settings(slide: Path, options: dict[str, Any]) -> EvaluationSettings:
    from kin_cli.evaluation.settings import EvaluationSettings, Sampling, SeamChoice, SlideChoice

    metrics, mpp = options["metrics"], options["mpp"]
    source = options["source"]
    return EvaluationSettings(
        slide=SlideChoice(slide, mpp=mpp),
        reference=None if options["reference"] is None else SlideChoice(options["reference"], mpp=mpp),
        source=None
        if source is None
        else SlideChoice(source, level=options["source_level"], mpp=mpp, region=options["source_region"]),
        metrics=None if metrics is None else tuple(name.strip() for name in metrics.lower().split(",")),
        sampling=Sampling(options["tiles"], options["seed"], options["tile_size"], options["tissue"]),
        seams=SeamChoice(options["patch_size"]),
        authors=options["authors"],
        inception=options["inception"],
        niqe_model=options["niqe_model"],
        device=options["device"],
        workers=options["workers"],
    )


def _inputs(settings: EvaluationSettings) -> Iterator[tuple[Path, str]]:
    """Every file that an evaluation reads, with what it is, in words."""
    from kin_cli.outputs import file_inputs, slide_inputs

    yield from slide_inputs(settings.slide.path, "the slide")
    for choice, what in ((settings.reference, "the reference slide"), (settings.source, "the source slide")):
        yield from slide_inputs(None if choice is None else choice.path, what)
    yield from file_inputs(
        (settings.sampling.tissue, "the tissue mask"),
        (settings.inception, "the file of Inception weights"),
        (settings.niqe_model, "the NIQE model"),
    )


def _table(found: Evaluation) -> str:
    names = max(len(value.metric) for value in found.values)
    lines = []
    for value in found.values:
        number = "none" if value.value is None else f"{value.value:.4f}"
        lines.append(f"{value.metric:<{names}}  {_ARROWS[value.better]:1} {number:>10}  {value.detail}".rstrip())
    return "\n".join(lines)


def _rows(found: Evaluation) -> list[list[object]]:
    slide = found.settings.slide.path
    values: list[list[object]] = [
        [slide, value.metric, value.value, value.better, value.detail] for value in found.values
    ]
    return [["slide", "metric", "value", "better", "detail"], *values]
