"""``kin register``: where every point of a slide lies in a serial section."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from kin_cli.commands.parameters import (
    FILE,
    TissueType,
    examples,
    json_option,
    overwrite_option,
    tissue_option,
    workers_option,
)
from kin_cli.commands.progress import ConsoleProgress
from kin_cli.commands.streams import json_text, show, tell_output
from kin_cli.errors import UsageError

if TYPE_CHECKING:
    from kin_cli.registration.landmarks import LandmarkErrors
    from kin_cli.registration.run import Registered
    from kin_cli.registration.transform import Registration

_PICTURE_UM = 8.0
_PICTURE_SIDE = 4096


@cloup.command(
    short_help="Register a serial section to a slide.",
    epilog=examples(
        "kin register he.svs ihc.svs -o pair.json --picture pair.png",
        "kin register he.svs ihc.svs -o pair.json --landmarks he.csv ihc.csv",
    ),
)
@click.argument("source", type=FILE)
@click.argument("real", type=FILE)
@cloup.option("-o", "--output", type=FILE, required=True, help="The registration, a .json file.")
@cloup.option("--source-mpp", type=float, help="µm per pixel of SOURCE, if its file states none or a wrong one.")
@cloup.option("--real-mpp", type=float, help="The same of REAL; one of the two is enough, the other is found.")
@tissue_option
@cloup.option("--real-tissue", type=TissueType(), default="auto", show_default=True, help="The same for REAL.")
@cloup.option("--mirrored", is_flag=True, help="REAL shows the other side of the section: left and right exchanged.")
@cloup.option("--elastic/--affine", default=True, show_default=True, help="Bend the pieces, or move them only.")
@cloup.option(
    "--landmarks", type=FILE, nargs=2, help="CSV files of landmarks in SOURCE and REAL: reports the error at them."
)
@cloup.option("--picture", type=FILE, help="Also write a checkerboard and a curtain of both to this PNG file.")
@cloup.option(
    "--unknown",
    type=click.Choice(["background", "black"]),
    default="background",
    show_default=True,
    help="Colour in --warped of what is not registered: the background of REAL, or black.",
)
@cloup.option("--warped", type=FILE, help="Also write REAL as SOURCE would show it: .tif, .ome.tif.")
@workers_option
@json_option
@overwrite_option
def register(source: Path, real: Path, output: Path, as_json: bool, overwrite: bool, **options: Any) -> None:
    """Find out where every point of the slide SOURCE lies in REAL, a serial section in another stain.

    The pieces of tissue may lie in another order and at any angle; each is found, then moved and bent until both
    sections agree best (rigid, affine and B-spline maps; mutual information). Look at --picture before using it.
    """
    _check(source, real, output, options, overwrite=overwrite)
    from dataclasses import replace

    from kin_cli.evaluation.settings import SlideChoice
    from kin_cli.registration.landmarks import landmark_errors
    from kin_cli.registration.run import RegisterSettings
    from kin_cli.registration.run import register as run
    from kin_cli.registration.transform import contents

    choices = SlideChoice(source, source_mpp=options["source_mpp"]), SlideChoice(real, source_mpp=options["real_mpp"])
    if options["landmarks"]:
        _check_landmarks(options["landmarks"], choices)
    settings = RegisterSettings(
        *choices, options["tissue"], options["real_tissue"], mirrored=options["mirrored"], elastic=options["elastic"]
    )
    progress = ConsoleProgress()
    found = run(settings, progress)
    for note in found.notes:
        progress.note(note)
    sides = found.registration.source, found.registration.real  # with what was found of pixel sizes
    choices = replace(choices[0], source_mpp=sides[0].mpp), replace(choices[1], source_mpp=sides[1].mpp)
    errors = landmark_errors(found.registration, options["landmarks"]) if options["landmarks"] else None
    files = contents(found.registration, output)
    if options["picture"]:
        files[options["picture"]] = _picture(found.registration, choices)
    from kin_cli.outputs import write_outputs

    write_outputs(files, overwrite=overwrite)
    if options["warped"]:
        _warp(found.registration, choices, options, overwrite=overwrite)
    if as_json:
        record = {**found.registration.as_dict(), "notes": list(found.notes)}
        show(json_text({**record, **({"landmarks": errors.as_dict()} if errors else {})}))
    else:
        show("\n".join([*_pieces(found), *(_landmarks(errors) if errors else [])]))
        tell_output(str(output))


def _check(source: Path, real: Path, output: Path, options: dict[str, Any], *, overwrite: bool) -> None:
    """Raise, before any work, if an output has a wrong name or cannot be written."""
    from kin_cli.outputs import check_files, file_inputs, slide_inputs
    from kin_cli.registration.elastic import simple_itk
    from kin_cli.registration.transform import files_of

    path, beside = files_of(output)
    if path.suffix.lower() != ".json":
        raise UsageError(f"{path}: no known ending of a registration", "write .json")
    for option, endings in (("picture", (".png",)), ("warped", (".tif", ".tiff"))):
        if options[option] is not None and options[option].suffix.lower() not in endings:
            raise UsageError(f"{options[option]}: no known ending", f"write {endings[0]}")
    inputs = [
        *slide_inputs(source, "the source"),
        *slide_inputs(real, "the real slide"),
        *file_inputs((options["tissue"], "the tissue mask"), (options["real_tissue"], "the tissue mask")),
        *((file, "a file of landmarks") for file in options["landmarks"] or ()),
    ]
    written = [("-o", path), ("-o", beside), ("--picture", options["picture"]), ("--warped", options["warped"])]
    check_files(written, inputs, overwrite=overwrite)
    simple_itk()


def _check_landmarks(files: tuple[Path, Path], choices: Any) -> None:
    """Raise, before any work, if the landmarks cannot be used with these slides."""
    from contextlib import ExitStack
    from math import nan

    from kin_cli.evaluation.tiles import opened
    from kin_cli.registration.landmarks import paired_landmarks
    from kin_cli.registration.transform import Side

    with ExitStack() as stack:
        slides = [stack.enter_context(opened(choice)).slide for choice in choices]
        sides = [Side(slide.path, slide.levels[0], slide.mpp or nan) for slide in slides]
    paired_landmarks(files, (sides[0], sides[1]))


def _picture(registration: Registration, choices: Any) -> bytes:
    import io
    from contextlib import ExitStack
    from dataclasses import replace

    from kin_cli.concurrency import available_cores
    from kin_cli.evaluation.tiles import opened
    from kin_cli.registration.warp import background_colour, overview_pair, picture, registered_view

    side = registration.source
    um = max(_PICTURE_UM, max(side.size.width, side.size.height) * side.mpp / _PICTURE_SIDE, side.mpp)
    with ExitStack() as stack:
        source = stack.enter_context(opened(replace(choices[0], mpp=um)))
        real = stack.enter_context(opened(choices[1]))
        view = registered_view(registration, source, real, background_colour(real))
        before, after, _ = overview_pair(view, _PICTURE_SIDE + 1, workers=available_cores())
    encoded = io.BytesIO()
    picture(before, after, um).save(encoded, "PNG")
    return encoded.getvalue()


def _warp(registration: Registration, choices: Any, options: dict[str, Any], *, overwrite: bool) -> None:
    from contextlib import ExitStack

    from kin_cli import __version__
    from kin_cli.evaluation.tiles import opened
    from kin_cli.registration.warp import background_colour, registered_view
    from kin_cli.sample import write_picture
    from kin_cli.settings import OutputSettings

    with ExitStack() as stack:
        source, real = (stack.enter_context(opened(choice)) for choice in choices)
        black = options["unknown"] == "black"
        white = background_colour(real)
        view = registered_view(registration, source, real, 0 * white if black else white)
        write_picture(
            OutputSettings(options["warped"], overwrite=overwrite),
            view.size,
            view.read,
            mpp=source.mpp,
            made="warp",
            by={"kin": __version__, "registered": registration.as_dict(), "unknown": options["unknown"]},
            workers=options["workers"],
            progress=ConsoleProgress(),
        )


def _pieces(found: Registered) -> list[str]:
    """A line for every piece, and the error."""
    lines = ["piece   area mm²   turned   agreement   covered"]
    for number, piece in enumerate(found.registration.pieces, start=1):
        about = piece.about
        fate = (
            f"{piece.degrees:7.1f}°   {about['agreement']:9.2f}   {about['covered']:7.2f}"
            if piece.found
            else "  not found"
        )
        lines.append(f"{number:>5}   {about['area_mm2']:8.2f}  {fate}")
    error = found.registration.error
    if error is None:
        lines.append("error: not known")
    else:
        lines.append(
            f"error: median {error['median']:.0f} µm, 90 % below {error['p90']:.0f} µm ({error['windows']:.0f} windows)"
        )
    return lines


def _landmarks(errors: LandmarkErrors) -> list[str]:
    record: Any = errors.as_dict()
    lines = [f"{record['landmarks']} landmarks            median      90 %   maximum"]
    for name in ("initial", "registered"):
        for kind, unit in (("tre_um", "TRE, µm"), ("rtre_percent", "rTRE, %")):
            values = record[name][kind]
            numbers = "".join(f"{values[part]:10.3f}" for part in ("median", "p90", "max"))
            lines.append(f"{name:<11} {unit:<9}{numbers}")
    return lines
