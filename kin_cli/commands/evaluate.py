"""``kin evaluate``: quality in figures, of a slide alone, against a real one, and against its source."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kin_cli.commands.parameters import RegionType, TissueType
from kin_cli.commands.progress import ConsoleProgress

if TYPE_CHECKING:
    from kin_cli.evaluation.run import Evaluation
    from kin_cli.evaluation.settings import EvaluationSettings

_FILE = click.Path(path_type=Path)
_ARROWS = {"lower": "↓", "higher": "↑", "": ""}


@click.command()
@click.argument("slide", type=_FILE)
@click.option(
    "--reference", type=_FILE, help="A real slide of the target stain: FID, histogram, and NIQE fitted to it."
)
@click.option("--source", type=_FILE, help="What SLIDE was translated from: SSIM, FSIM, and the control of the seams.")
@click.option("--source-level", type=click.IntRange(0), help="Level of the source that was translated.")
@click.option("--source-region", type=RegionType(), help="Part of it that was translated.")
@click.option("--metrics", help="Comma-separated: fid,histogram,sobel,piqe,niqe,ssim,fsim,seams.  [default: all]")
@click.option(
    "--tiles", type=click.IntRange(1), help="Measure this many tiles with tissue, drawn at random.  [default: all]"
)
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed for sampling the tiles.")
@click.option("--tile-size", type=int, default=512, show_default=True, help="Side of the tiles that are measured, px.")
@click.option(
    "--patch-size",
    type=int,
    default=512,
    show_default=True,
    help="Side of the patches that SLIDE was translated in (seams), px.",
)
@click.option("--tissue", type=TissueType(), default="auto", show_default=True, help="Or a mask: PNG, GeoJSON.")
@click.option("--mpp", type=float, help="Compare at this many µm per pixel.")
@click.option("--authors", is_flag=True, help="Also what the KIN authors' code computes under these names.")
@click.option("--inception", type=_FILE, envvar="KIN_INCEPTION", help="Weights for FID.")
@click.option("--niqe-model", type=_FILE, help="Model for NIQE: .mat or .npz.  [default: fitted to the reference]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 …")
@click.option("-j", "--workers", type=click.IntRange(1), help="Threads.  [default: the cores we have]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--csv", "csv_file", type=_FILE, help="Also write the figures to this file.")
def evaluate(slide: Path, as_json: bool, csv_file: Path | None, **options: Any) -> None:
    """Measure the quality of SLIDE, tissue only.

    \b
    fid, histogram   against a real slide (--reference)
    ssim, fsim       against what was translated (--source)
    sobel, piqe, niqe, seams   alone; seams also against the source
    """
    from kin_cli.evaluation.run import evaluate as run

    found = run(_settings(slide, options), ConsoleProgress())
    if csv_file is not None:
        _write_csv(csv_file, found)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        click.echo(_table(found))


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


def _table(found: Evaluation) -> str:
    names = max(len(figure.metric) for figure in found.figures)
    lines = []
    for figure in found.figures:
        value = "none" if figure.value is None else f"{figure.value:.4f}"
        lines.append(f"{figure.metric:<{names}}  {_ARROWS[figure.better]:1} {value:>10}  {figure.detail}".rstrip())
    return "\n".join(lines)


def _write_csv(file: Path, found: Evaluation) -> None:
    from kin_cli.store.files import os_errors_as_output_errors, write_atomic

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["slide", "metric", "value", "better", "detail"])
    for figure in found.figures:
        value = "" if figure.value is None else repr(figure.value)
        writer.writerow([found.settings.slide.path, figure.metric, value, figure.better, figure.detail])
    with os_errors_as_output_errors(file):
        write_atomic(file, text.getvalue().encode())
