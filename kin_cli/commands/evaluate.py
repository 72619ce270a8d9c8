"""``kin evaluate``: quality metrics of a slide, alone, against a real slide and against its source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from kin_cli.commands.parameters import (
    FILE,
    csv_option,
    examples,
    features_option,
    inception_option,
    json_option,
    overwrite_option,
    source_level_option,
    source_region_option,
    tissue_option,
    workers_option,
)
from kin_cli.commands.progress import ConsoleProgress
from kin_cli.commands.streams import json_text, show
from kin_cli.commands.variants import csv_bytes
from kin_cli.slide.files import check_file

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
    "--reference", type=FILE, help="Real slide of the target stain, for FID, KID and histogram; NIQE is fitted to it."
)
@cloup.option(
    "--source", type=FILE, help="Slide that SLIDE was translated from, for SSIM and FSIM; the control of the seams."
)
@source_level_option
@source_region_option
@cloup.option(
    "--metrics",
    help="Metrics, separated by commas: fid,kid,histogram,sobel,piqe,niqe,ssim,fsim,seams.  [default: all possible]",
)
@cloup.option(
    "--tiles", type=click.IntRange(1), help="Number of tiles with tissue to measure, drawn at random.  [default: all]"
)
@cloup.option("--seed", type=int, default=0, show_default=True, help="Random seed for sampling the tiles.")
@cloup.option("--tile-size", type=int, default=512, show_default=True, help="Side of the tiles that are measured, px.")
@cloup.option(
    "--patch-size",
    type=int,
    help="Side of the patches that SLIDE was translated with, px; seams are measured at their borders."
    "  [default: as SLIDE tells, otherwise 512]",
)
@tissue_option
@cloup.option("--mpp", type=float, help="Resample all slides to this many µm per pixel first.")
@cloup.option("--authors", is_flag=True, help="Also compute the metrics as the KIN authors' code does.")
@inception_option
@features_option
@cloup.option(
    "--niqe-model", type=FILE, help="File with a model for NIQE: .mat or .npz.  [default: fitted to the reference]"
)
@cloup.option(
    "--device",
    default="auto",
    show_default=True,
    help="Device of the network of FID and KID: auto, cpu, cuda or cuda:1.",
)
@workers_option
@json_option
@csv_option
@overwrite_option
def evaluate(slide: Path, as_json: bool, csv_file: Path | None, overwrite: bool, **options: Any) -> None:
    """Measure the quality of SLIDE in its tissue.

    \b
    fid, kid, histogram        against a real slide (--reference)
    ssim, fsim                 against the slide it was translated from (--source)
    sobel, piqe, niqe, seams   of SLIDE alone; seams also against the source
    """
    from kin_cli.outputs import check_files, write_outputs

    check_file(slide)
    progress, of_grid = ConsoleProgress(), list[str]()  # told beside the results, so that an error stays one line
    settings = _settings(slide, options, note=progress.note, note_grid=of_grid.append)
    check_files([("--csv", csv_file)], _inputs(settings), overwrite=overwrite)
    from kin_cli.evaluation.run import evaluate as run

    found = run(settings, progress)
    for note in of_grid if found.seams is not None else ():
        progress.note(note)
    if csv_file is not None:
        write_outputs({csv_file: csv_bytes(_rows(found))}, overwrite=overwrite)
    if as_json:
        show(json_text(found.as_dict()))
    else:
        show(_table(found))


def _settings(
    slide: Path, options: dict[str, Any], *, note: Callable[[str], None], note_grid: Callable[[str], None]
) -> EvaluationSettings:
    from kin_cli.evaluation.settings import EvaluationSettings, Sampling, SlideChoice, seam_choice, source_choice
    from kin_cli.pyramid.provenance import provenance

    mpp, source, made = options["mpp"], options["source"], provenance(slide)
    metrics = None if options["metrics"] is None else tuple(map(str.strip, options["metrics"].lower().split(",")))
    level, region = options["source_level"], options["source_region"]
    return EvaluationSettings(
        slide=SlideChoice(slide, mpp=mpp),
        reference=None if options["reference"] is None else SlideChoice(options["reference"], mpp=mpp),
        source=None if source is None else source_choice(made, source, level=level, region=region, mpp=mpp, note=note),
        metrics=metrics,
        sampling=Sampling(options["tiles"], options["seed"], options["tile_size"], options["tissue"]),
        seams=seam_choice(slide, made, patch_px=options["patch_size"], note=note_grid),
        authors=options["authors"],
        inception=options["inception"],
        features=options["features"],
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
