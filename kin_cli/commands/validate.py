"""``kin validate``: a translation against the real stain of a serial section."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from kin_cli.commands.parameters import (
    FILE,
    ModelType,
    consistency_option,
    csv_option,
    examples,
    json_option,
    overwrite_option,
    places_option,
    shifted_option,
    tissue_option,
    workers_option,
)
from kin_cli.commands.progress import ConsoleProgress
from kin_cli.commands.streams import json_text, show
from kin_cli.commands.variants import csv_bytes
from kin_cli.errors import UsageError

if TYPE_CHECKING:
    from kin_cli.evaluation.consistency import Mismatch
    from kin_cli.evaluation.retranslation import Consistency
    from kin_cli.slide.tissue import TissueMask
    from kin_cli.slide.view import SlideView
    from kin_cli.validation.run import Validation, ValidationSettings
    from kin_cli.validation.scores import Score


@cloup.command(
    short_help="Compare a translation with the real stain.",
    epilog=examples(
        "kin validate translated.ome.tif --against ihc.svs --source he.svs --stain dab",
        "kin validate translated.ome.tif --against pas.svs --registration pair.json --stain pas --report report.html",
        "kin validate translated.ome.tif",
    ),
)
@click.argument("translated", type=FILE)
@cloup.option("--against", type=FILE, help="Real slide: a serial section in the stain that is wanted.")
@consistency_option
@places_option
@cloup.option(
    "-m",
    "--model",
    type=ModelType(),
    help="Generator of that sample.  [default: the one that TRANSLATED names]",
)
@cloup.option("--device", default="auto", show_default=True, help="Device of that sample: auto, cpu, cuda.")
@shifted_option
@cloup.option(
    "--registration",
    type=FILE,
    help="File of kin register (source and real slide), or an affine matrix of QuPath or VALIS.  [default: made now]",
)
@cloup.option(
    "--source",
    type=FILE,
    help="Slide that was translated: registered, and recoloured for comparison; its tissue counts.",
)
@cloup.option(
    "--stain", default="dab", show_default=True, help="Stain to measure: dab, pas, magenta, or R,G,B of its colour."
)
@cloup.option("--source-mpp", type=float, help="µm per pixel of TRANSLATED and source, if their files state none.")
@cloup.option("--real-mpp", type=float, help="µm per pixel of the real slide, if its file states none.")
@tissue_option
@cloup.option("--seed", type=int, default=0, show_default=True, help="Random seed of intervals and of chance.")
@cloup.option("--report", type=FILE, help="Also write a page with pictures, scatter plots and maps: .html.")
@cloup.option("--geojson", type=FILE, help="Also write the areas of 128 µm for QuPath: .geojson.")
@workers_option
@json_option
@csv_option
@overwrite_option
def validate(translated: Path, as_json: bool, overwrite: bool, **options: Any) -> None:
    """Compare TRANSLATED with the real stain, in areas of 32 to 256 µm of the tissue that both show.

    Every figure has a 95 % interval, and beside it stand what chance (areas shuffled) and the source, merely
    recoloured, reach: what is no better than these is no success. Areas finer than the registration's own error are
    marked with ~.

    Without a real slide: how far a translation depends on where its patches lie. A sample of the slide, which
    TRANSLATED names, is translated again by IN, KIN and seamless, on the patch grid and half a patch further.
    """
    if options["against"] is None:
        _consistency(translated, options, as_json=as_json, overwrite=overwrite)
        return
    if options["consistency"] is not None:
        raise UsageError("--consistency and --against exclude each other", "two commands, one for each")
    settings = _settings(translated, options)
    _check(settings, options, overwrite=overwrite)
    from kin_cli.outputs import write_outputs
    from kin_cli.validation.run import validate as run

    progress = ConsoleProgress()
    found = run(settings, progress)
    for note in found.notes:
        progress.note(note)
    files: dict[Path, bytes] = {}
    if options["csv_file"] is not None:
        files[options["csv_file"]] = csv_bytes(_rows(found))
    if options["geojson"] is not None:
        from kin_cli.evaluation.tiles import opened
        from kin_cli.validation.page import areas_as_geojson

        with opened(settings.translated) as view:
            files[options["geojson"]] = areas_as_geojson(found, view)
    if options["report"] is not None:
        from kin_cli.validation.page import page

        files[options["report"]] = page(found).encode(errors="replace")
    write_outputs(files, overwrite=overwrite)
    show(json_text(found.as_dict()) if as_json else _table(found))


def _consistency(translated: Path, options: dict[str, Any], *, as_json: bool, overwrite: bool) -> None:
    """Report how far the translation depends on its patches: translate a sample again, or compare with a second one."""
    unused = [name for name in ("report", "geojson", "registration") if options[name] is not None]
    if unused:
        raise UsageError(f"--{unused[0]} needs --against", "name the real slide")
    if options["shifted"] is None:
        _check_csv(translated, options, overwrite=overwrite)
        again = consistency_of(translated, options, ConsoleProgress())
        if options["csv_file"] is not None:
            from kin_cli.outputs import write_outputs

            write_outputs({options["csv_file"]: csv_bytes(again.rows())}, overwrite=overwrite)
        show(json_text({"slide": str(translated), **again.as_dict()}) if as_json else "\n".join(again.in_words()))
        return
    if options["csv_file"] is not None or options["consistency"] is not None:
        name = "--csv" if options["csv_file"] is not None else "--consistency"
        raise UsageError(f"{name} and --shifted exclude each other", "without --shifted a sample is translated again")
    from contextlib import ExitStack

    from kin_cli.evaluation.settings import SlideChoice, source_choice
    from kin_cli.evaluation.tiles import check_same_size, opened
    from kin_cli.pyramid.provenance import provenance
    from kin_cli.slide.tissue import tissue_mask

    progress = ConsoleProgress()
    with ExitStack() as stack:
        view = stack.enter_context(opened(SlideChoice(translated)))
        shown = view  # where tissue is looked for; a translation may paint glass
        if options["source"] is not None:
            choice = source_choice(provenance(translated), options["source"], note=progress.note)
            shown = stack.enter_context(opened(choice))
            check_same_size(view, shown)
        found = mismatch_of(view, options, tissue_mask(shown, options["tissue"]), progress)
    show(json_text({"slide": str(translated), "mismatch": found.as_dict()}) if as_json else found.in_words())


def _check_csv(translated: Path, options: dict[str, Any], *, overwrite: bool) -> None:
    from kin_cli.outputs import check_files, file_inputs, slide_inputs

    inputs = [
        *slide_inputs(translated, "the translation"),
        *slide_inputs(options["source"], "the source"),
        *file_inputs((options["tissue"], "the tissue mask"), (options["model"], "the generator")),
    ]
    check_files([("--csv", options["csv_file"])], inputs, overwrite=overwrite)


def consistency_of(translated: Path, options: dict[str, Any], progress: ConsoleProgress) -> Consistency:
    """The mismatch of a sample of a translation that is translated again, on two grids."""
    from kin_cli.errors import InputError
    from kin_cli.evaluation.retranslation import METHODS, Retranslation, measure_consistency
    from kin_cli.pyramid.provenance import provenance
    from kin_cli.slide.files import check_file

    check_file(translated)
    methods = options["consistency"] or ",".join(METHODS)
    wanted = Retranslation(
        options["source"],
        options["model"],
        tuple(dict.fromkeys(name.strip().lower() for name in methods.split(","))),
        options["places"],
        options["seed"],
        options["tissue"],
        options["device"],
        options["workers"],
    )
    made = provenance(translated)
    if made is None:
        raise InputError(
            f"{translated}: does not tell how it was made", "only outputs of kin translate can be translated again"
        )
    return measure_consistency(made, wanted, progress)


def mismatch_of(view: SlideView, options: dict[str, Any], mask: TissueMask, progress: ConsoleProgress) -> Mismatch:
    """The mismatch, in the tissue of ``mask``, of a translation with the one that ``--shifted`` names."""
    from kin_cli.concurrency import available_cores
    from kin_cli.evaluation.consistency import grid_offset, measure_mismatch
    from kin_cli.evaluation.settings import SlideChoice
    from kin_cli.evaluation.tiles import opened
    from kin_cli.pyramid.provenance import provenance

    with opened(SlideChoice(options["shifted"])) as other:
        offset = grid_offset(view, other, (provenance(view.slide.path), provenance(other.slide.path)))
        workers = options["workers"] or available_cores()
        return measure_mismatch(view, other, offset, mask, progress=progress, workers=workers)


def _settings(translated: Path, options: dict[str, Any]) -> ValidationSettings:
    from dataclasses import replace

    from kin_cli.evaluation.settings import SlideChoice, source_choice
    from kin_cli.pyramid.provenance import provenance
    from kin_cli.validation.run import ValidationSettings
    from kin_cli.validation.stains import parse_stain

    parse_stain(options["stain"])
    mpp, source = options["source_mpp"], None
    if options["source"] is not None:
        source = source_choice(provenance(translated), options["source"], note=ConsoleProgress().note)
        source = replace(source, source_mpp=mpp or source.source_mpp)
    return ValidationSettings(
        translated=SlideChoice(translated, source_mpp=mpp),
        real=SlideChoice(options["against"], source_mpp=options["real_mpp"]),
        source=source,
        registration=options["registration"],
        stain=options["stain"],
        tissue=options["tissue"],
        seed=options["seed"],
        workers=options["workers"],
    )


def _check(settings: ValidationSettings, options: dict[str, Any], *, overwrite: bool) -> None:
    """Raise, before any work, if an output has a wrong name or cannot be written."""
    from kin_cli.outputs import check_files, file_inputs, slide_inputs

    for name, endings in (("report", (".html", ".htm")), ("geojson", (".geojson", ".json"))):
        if options[name] is not None and options[name].suffix.lower() not in endings:
            raise UsageError(f"{options[name]}: no known ending", f"write {endings[0]}")
    source = None if settings.source is None else settings.source.path
    inputs = [
        *slide_inputs(settings.translated.path, "the translation"),
        *slide_inputs(settings.real.path, "the real slide"),
        *slide_inputs(source, "the source"),
        *file_inputs((settings.registration, "the registration"), (settings.tissue, "the tissue mask")),
    ]
    written = [("--csv", options["csv_file"]), ("--report", options["report"]), ("--geojson", options["geojson"])]
    check_files(written, inputs, overwrite=overwrite)


def _table(found: Validation) -> str:
    from kin_cli.validation.scores import verdict

    stains, error = found.stains, found.registration.error
    lines = [
        verdict(found.scores),
        f"stain {stains.name}: {_vector(stains.stain)}, counterstain {_vector(stains.counterstain)}"
        f" (optical density of R, G, B); stained above {found.rules.stained:.3f}",
        "error of the registration: not known"
        if error is None
        else f"error of the registration: median {error['median']:.0f} µm, 90 % below {error['p90']:.0f} µm",
    ]
    um = 0
    for score in found.scores:
        if score.um != um:
            um = score.um
            mark = " ~ finer than the registration's error" if score.finer else ""
            lines += ["", f"areas of {um} µm ({score.areas}){mark}"]
            lines.append(f"  {'':<22}{'value':>9}  {'95 % interval':<18}{'chance':>9}{'recoloured':>12}")
        lines.append(_line(score))
    if found.abstention is not None:
        from kin_cli.validation.abstention import points

        curve = found.abstention
        lines += ["", f"agreement of areas of 128 µm if the least believable are left out (chance {curve.chance:.3f})"]
        for at, kept, low, high in points(curve):
            lines.append(f"  {100 * at:3.0f} % flagged{'':<9}{kept:>9.3f}  chance {low:.3f} to {high:.3f}")
        lines.append(f"  mean gain {curve.gain:+.3f}, chance does as well in {100 * curve.p_value:.0f} % of draws")
    return "\n".join(lines)


def _vector(values: tuple[float, float, float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


def _line(score: Score) -> str:
    interval = "" if score.interval is None else f"{number(score.interval[0])} to {number(score.interval[1])}"
    mark = "~" if score.finer else " "
    return (
        f"{mark} {score.name:<22}{number(score.value):>9}  {interval:<18}"
        f"{number(score.chance):>9}{number(score.recoloured):>12}"
    ).rstrip()


def number(value: float | None) -> str:
    """A figure with three digits after the point, or fewer if it is large; none if it is not defined."""
    if value is None or not math.isfinite(value):
        return "none"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def _rows(found: Validation) -> list[list[object]]:
    head: list[object] = ["area_um", "figure", "value", "low", "high", "chance", "recoloured", "areas"]
    rows = [[*head, "finer_than_registration", "false_positive_rate"]]
    for score in found.scores:
        low, high = score.interval or (None, None)
        values = (score.value, low, high, score.chance, score.recoloured)
        rows.append([score.um, score.name, *values, score.areas, int(score.finer), None])
    for curve in found.roc:  # its points: the value is the true positive rate
        name, blank = f"roc_{curve.slide}", [None] * 6
        pairs = zip(curve.true_positive.tolist(), curve.false_positive.tolist(), strict=True)
        rows += [[curve.um, name, round(true, 5), *blank, round(false, 5)] for true, false in pairs]
    return rows
