"""``kin seams``: whether, where and how much the borders between patches show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from kin_cli.commands.parameters import (
    FILE,
    ModelType,
    consistency_option,
    examples,
    json_option,
    overwrite_option,
    places_option,
    shifted_option,
    source_level_option,
    source_region_option,
    tissue_option,
    workers_option,
)
from kin_cli.commands.progress import ConsoleProgress
from kin_cli.commands.streams import json_text, show
from kin_cli.errors import UsageError

if TYPE_CHECKING:
    from kin_cli.evaluation.seams import SlideSeams
    from kin_cli.metrics.seams import SeamResult
    from kin_cli.pyramid.provenance import Provenance
    from kin_cli.slide.tissue import TissueMask
    from kin_cli.slide.view import SlideView

_LISTED = 10  # number of borders in the list of the worst
_MAP_PX = 1600  # longer side of the map


@cloup.command(
    short_help="Measure visible borders between patches.",
    epilog=examples("kin seams translated.ome.tif --source slide.svs --heatmap seams.png"),
)
@click.argument("slide", type=FILE)
@cloup.option("--source", type=FILE, help="Slide that SLIDE was translated from, as the control; recommended.")
@source_level_option
@source_region_option
@cloup.option(
    "--patch-size",
    type=int,
    help="Side of the patches that SLIDE was translated with, px.  [default: as SLIDE tells, otherwise 512]",
)
@cloup.option(
    "--origin",
    type=(int, int),
    default=(0, 0),
    show_default=True,
    help="Upper left corner of the first patch, x y, px.",
)
@tissue_option
@shifted_option
@consistency_option
@places_option
@cloup.option("-m", "--model", type=ModelType(), help="Generator of that sample.  [default: the one that SLIDE names]")
@cloup.option("--heatmap", type=FILE, help="Also write a map of all patch borders to this PNG file.")
@cloup.option("--geojson", type=FILE, help="Also write the 200 worst borders to this GeoJSON file, for QuPath.")
@workers_option
@json_option
@overwrite_option
def seams(
    slide: Path, heatmap: Path | None, geojson: Path | None, as_json: bool, overwrite: bool, **options: Any
) -> None:
    """Measure the seams of SLIDE: the step at every border between two patches, against the texture beside it.

    R is the step relative to the texture, 1 without seams; compare it between translations of one slide only. R* is R
    divided by the R of the source. The excess is the step without the texture: below 0.5 ΔE it is invisible, above
    2.3 ΔE obvious.

    \b
    step              difference in colour of the two pixels at a border, averaged along it (ΔE)
    step_luma         the same in luma, which JPEG chroma subsampling does not change (8-bit)
    ramp16, ramp64    gradual change across a border: colour 4 to 8 and 16 to 32 px from it (ΔE)
    line              a line along a border: the 4 pixels at it against those around them (ΔE)
    fine              fine texture that does not continue across a border (8-bit)
    """
    from contextlib import ExitStack

    _check_files(slide, [("--heatmap", heatmap), ("--geojson", geojson)], options, overwrite=overwrite)
    from kin_cli.concurrency import available_cores
    from kin_cli.evaluation.seams import in_words, measure_slide_seams
    from kin_cli.evaluation.settings import SlideChoice, seam_choice, source_choice
    from kin_cli.evaluation.tiles import opened
    from kin_cli.pyramid.provenance import provenance
    from kin_cli.slide.tissue import tissue_mask

    progress, of_grid = ConsoleProgress(), list[str]()  # told beside the results, so that an error stays one line
    with ExitStack() as stack:
        view, source, made = stack.enter_context(opened(SlideChoice(slide))), None, provenance(slide)
        grid = seam_choice(slide, made, patch_px=options["patch_size"], origin=options["origin"], note=of_grid.append)
        if options["source"] is not None:
            level, region = options["source_level"], options["source_region"]
            choice = source_choice(made, options["source"], level=level, region=region, note=progress.note)
            source = stack.enter_context(opened(choice))
        mask = tissue_mask(source or view, options["tissue"])
        for note in mask.notes:
            progress.note(note)
        found = measure_slide_seams(
            view,
            grid,
            source=source,
            mask=mask,
            progress=progress,
            workers=options["workers"] or available_cores(),
        )
        for note in of_grid:
            progress.note(note)
        record, lines = _grids(slide, view, options, mask, progress)
        _write_places(found, view, heatmap=heatmap, geojson=geojson, overwrite=overwrite)
    if as_json:
        show(json_text({"slide": str(slide), **found.as_dict(), **record}))
    else:
        show("\n".join([in_words(found), *_remedy(found, made), "", *_values(found), *_worst(found), *lines]))


def _grids(
    slide: Path, view: SlideView, options: dict[str, Any], mask: TissueMask, progress: ConsoleProgress
) -> tuple[dict[str, Any], list[str]]:
    """How far the patch grid decides, if it was asked for: for JSON, and as lines."""
    from kin_cli.commands.validate import consistency_of, mismatch_of

    record: dict[str, Any] = {}
    lines = []
    if options["shifted"] is not None:
        mismatch = mismatch_of(view, options, mask, progress)
        record["mismatch"] = mismatch.as_dict()
        lines.append(mismatch.in_words())
    if options["consistency"] is not None:
        consistency = consistency_of(slide, {**options, "seed": 0, "device": "auto"}, progress)
        record["consistency"] = consistency.as_dict()
        lines += consistency.in_words()
    return record, lines


def _check_files(
    slide: Path, written: list[tuple[str, Path | None]], options: dict[str, Any], *, overwrite: bool
) -> None:
    """Raise, before any work, if the map or the GeoJSON file cannot be written."""
    from kin_cli.outputs import check_files, file_inputs, slide_inputs

    heatmap = written[0][1]
    if heatmap is not None and heatmap.suffix.lower() not in ("", ".png"):
        raise UsageError(f"{heatmap}: no known ending of a map", "write .png")
    inputs = [
        *slide_inputs(slide, "the slide"),
        *slide_inputs(options["source"], "the source slide"),
        *slide_inputs(options["shifted"], "the shifted translation"),
        *file_inputs((options["tissue"], "the tissue mask")),
    ]
    check_files(written, inputs, overwrite=overwrite)


def _write_places(
    found: SlideSeams, view: SlideView, *, heatmap: Path | None, geojson: Path | None, overwrite: bool
) -> None:
    """Write where the borders are, as a picture and as GeoJSON."""
    import io

    from kin_cli.evaluation.seams import seam_map, worst_as_geojson
    from kin_cli.outputs import write_outputs
    from kin_cli.slide.view import overview

    contents = {} if geojson is None else {geojson: worst_as_geojson(found, view)}
    if heatmap is not None:
        encoded = io.BytesIO()
        seam_map(found, overview(view, _MAP_PX), mpp=view.mpp).save(encoded, "PNG")
        contents[heatmap] = encoded.getvalue()
    write_outputs(contents, overwrite=overwrite)


def _remedy(found: SlideSeams, made: Provenance | None) -> list[str]:
    """The flag that would have left no borders, if they show and the file tells that it was not given."""
    from kin_cli.evaluation.seams import verdict
    from kin_cli.settings import border_warning

    halo = None if made is None else made.value("halo")
    if made is None or not isinstance(halo, int) or verdict(found.result, found.unit) == "not visible":
        return []
    method, interpolation, kernel = (str(made.value(name)) for name in ("method", "interpolation", "kernel"))
    told = border_warning(method, interpolation, kernel, halo_px=halo, reach_px=max(1, halo))
    return [] if told is None else [f"note: {told}"]


def _values(found: SlideSeams) -> list[str]:
    """Return the headline statistic by direction, then the other statistics over both directions."""
    from kin_cli.metrics.seams import UNITS

    summary = found.summary
    head = f"{'':<22}{'R':>7}" if summary.table.source is None else f"{'':<22}{'R*':>7}{'R':>8}{'source':>8}"
    lines = [f"{head}  {'95 % interval':<16} {'excess':<12} borders"]
    for direction in summary.results:
        name = f"{found.statistic} {direction}"
        lines.append(_line(name, summary.result(found.statistic, direction), found.unit))
    for statistic, result in summary.results["both"].items():
        if statistic != found.statistic:
            lines.append(_line(f"{statistic} both", result, UNITS[statistic]))
    if found.note is not None:
        lines.append(f"note: {found.note}")
    return lines


def _line(name: str, result: SeamResult, unit: str) -> str:
    from kin_cli.evaluation.seams import TOO_FEW, interval_text

    ratios = f"{_number(result.headline):>7}"
    if result.source_ratio is not None:
        ratios += f"{_number(result.ratio):>8}{_number(result.source_ratio):>8}"
    interval = interval_text(result)
    if result.too_few:
        ratios, interval = f"{'–':>7}".ljust(len(ratios)), TOO_FEW
    excess = "none" if result.excess is None else f"{result.excess:.2f} {unit}"
    return f"{name:<22}{ratios}  {interval:<16} {excess:<12} {result.n}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _worst(found: SlideSeams) -> list[str]:
    worst = found.summary.worst(found.statistic, _LISTED)
    if not worst:
        return []
    lines = [f"worst borders ({found.statistic}, {found.unit}; x, y of the upper or left end, px):"]
    for number, line in enumerate(worst, start=1):
        place = f"{line.x},{line.y}"
        lines.append(
            f"{number:>3}  {place:<14} {line.direction:<11} excess {line.excess:.2f}, texture {line.reference:.2f}"
        )
    return lines
