"""``kin seams``: are the borders of the patches visible, where, and how much?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kin_cli.commands.parameters import RegionType, TissueType
from kin_cli.commands.progress import ConsoleProgress

if TYPE_CHECKING:
    from kin_cli.evaluation.seams import SlideSeams
    from kin_cli.metrics.seams import SeamResult

_FILE = click.Path(path_type=Path)
_LISTED = 10
_MAP_PX = 1600


@click.command()
@click.argument("slide", type=_FILE)
@click.option("--source", type=_FILE, help="What SLIDE was translated from, the control; recommended.")
@click.option("--source-level", type=click.IntRange(0), help="Level of the source that was translated.")
@click.option("--source-region", type=RegionType(), help="Part of it that was translated.")
@click.option(
    "--patch-size",
    type=int,
    default=512,
    show_default=True,
    help="Side of the patches that SLIDE was translated in, px.",
)
@click.option("--origin", type=(int, int), default=(0, 0), show_default=True, help="x y of the first patch's corner.")
@click.option("--tissue", type=TissueType(), default="auto", show_default=True, help="Or a mask: PNG, GeoJSON.")
@click.option("--heatmap", type=_FILE, help="Write a map of all boundaries to this PNG.")
@click.option("-j", "--workers", type=click.IntRange(1), help="Threads.  [default: the cores we have]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def seams(slide: Path, heatmap: Path | None, as_json: bool, **options: Any) -> None:
    """Measure the seams of SLIDE: every boundary between patches against the texture beside it.

    R is 1 without seams and relative to the texture: compare it on one slide. R* is R over that of the source. The
    excess is the seam itself: under 0.5 ΔE it is invisible, over 2.3 obvious.
    """
    from contextlib import ExitStack

    from kin_cli.concurrency import available_cores
    from kin_cli.evaluation.seams import measure_slide_seams
    from kin_cli.evaluation.settings import SeamChoice, SlideChoice
    from kin_cli.evaluation.tiles import opened
    from kin_cli.slide.mask_file import tissue_mask

    with ExitStack() as stack:
        view, source = stack.enter_context(opened(SlideChoice(slide))), None
        if options["source"] is not None:
            choice = SlideChoice(options["source"], level=options["source_level"], region=options["source_region"])
            source = stack.enter_context(opened(choice))
        found = measure_slide_seams(
            view,
            SeamChoice(options["patch_size"], options["origin"]),
            source=source,
            mask=tissue_mask(source or view, options["tissue"]),
            progress=ConsoleProgress(),
            workers=options["workers"] or available_cores(),
        )
        if heatmap is not None:
            from kin_cli.slide.view import overview

            _write_map(heatmap, found, overview(view, _MAP_PX))
    if as_json:
        click.echo(json.dumps({"slide": str(slide), **found.as_dict()}, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        click.echo("\n".join([*_figures(found), *_worst(found)]))


def _write_map(file: Path, found: SlideSeams, thumbnail: Any) -> None:
    import io

    from kin_cli.evaluation.seams import seam_map
    from kin_cli.store.files import os_errors_as_output_errors, write_atomic

    encoded = io.BytesIO()
    seam_map(found, thumbnail).save(encoded, "PNG")
    with os_errors_as_output_errors(file):
        write_atomic(file, encoded.getvalue())


def _figures(found: SlideSeams) -> list[str]:
    """The headline by direction, then the other statistics over both."""
    from kin_cli.metrics.seams import UNITS

    report = found.report
    head = f"{'':<22}{'R':>7}" if report.table.source is None else f"{'':<22}{'R*':>7}{'R':>8}{'source':>8}"
    lines = [f"{head}  {'95 % interval':<16} {'excess':<12} boundaries"]
    for direction in report.figures:
        name = f"{found.statistic} {direction}"
        lines.append(_line(name, report.figure(found.statistic, direction), found.unit))
    for statistic, figure in report.figures["both"].items():
        if statistic != found.statistic:
            lines.append(_line(f"{statistic} both", figure, UNITS[statistic]))
    if found.note is not None:
        lines.append(f"note: {found.note}")
    return lines


def _line(name: str, figure: SeamResult, unit: str) -> str:
    ratios = f"{_number(figure.headline):>7}"
    if figure.source_ratio is not None:
        ratios += f"{_number(figure.ratio):>8}{_number(figure.source_ratio):>8}"
    interval = "none" if figure.interval is None else f"{figure.interval[0]:.3f} to {figure.interval[1]:.3f}"
    excess = "none" if figure.excess is None else f"{figure.excess:.2f} {unit}"
    return f"{name:<22}{ratios}  {interval:<16} {excess:<12} {figure.n}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _worst(found: SlideSeams) -> list[str]:
    worst = found.report.worst(found.statistic, _LISTED)
    if not worst:
        return []
    lines = [f"worst boundaries ({found.statistic}, {found.unit}; x, y of the upper or left end, px):"]
    for number, line in enumerate(worst, start=1):
        place = f"{line.x},{line.y}"
        lines.append(
            f"{number:>3}  {place:<14} {line.direction:<11} excess {line.excess:.2f}, texture {line.reference:.2f}"
        )
    return lines
