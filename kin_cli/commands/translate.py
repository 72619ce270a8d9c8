"""``kin translate``: translate one slide. ``kin assemble``: finish a slide that several scheduler jobs translated."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from kin_cli.commands.info import describe_plan
from kin_cli.commands.options import ShardType, settings_from, translation_options
from kin_cli.commands.parameters import FILE, examples
from kin_cli.commands.progress import ConsoleProgress
from kin_cli.commands.streams import json_text, show, tell_output
from kin_cli.errors import InputError, UsageError
from kin_cli.signals import last_work, more_work
from kin_cli.slide.files import check_file

if TYPE_CHECKING:
    from kin_cli.batch.shard import Shard
    from kin_cli.settings import Settings


@cloup.command(
    short_help="Translate one slide or photograph.",
    epilog=examples(
        "kin translate slide.svs --kernel gaussian:7 -m latest_net_G.pth",
        "kin translate slide.svs -m latest_net_G.pth -o out.ome.tif --mpp 0.5 --device cuda",
        "kin translate slide.svs -m latest_net_G.pth --dry-run",
    ),
    context_settings={"allow_extra_args": True},
)
@click.argument("slide", type=FILE)
@translation_options(
    cloup.option(
        "-o",
        "--output",
        type=FILE,
        help="Output: .ome.tif, .tif, .png or .jpg.  [default: SLIDE.kin.ome.tif beside SLIDE]",
    ),
    cloup.option("--dry-run", is_flag=True, help="Show the plan (patches, memory, disk), translate nothing."),
    jobs=(
        cloup.option(
            "--pass", "only_pass", type=click.Choice(["measure", "apply"]), help="Run only this pass; see kin assemble."
        ),
        cloup.option(
            "--shard", type=ShardType(), help="Run only shard i of n of the pass: 3/16, or auto/16 in an array job."
        ),
        cloup.option(
            "--table",
            type=FILE,
            help="Folder that keeps the statistics of pass 1 for other kernels and outputs; made if missing, else"
            " reused.",
        ),
        cloup.option(
            "--json", "as_json", is_flag=True, help="Print the run record, or the plan of --dry-run, as JSON."
        ),
    ),
)
def translate(
    slide: Path, dry_run: bool, as_json: bool, only_pass: str | None, shard: Shard | None, **options: Any
) -> int:
    """Translate SLIDE: any slide that OpenSlide opens, a TIFF, or a photograph.

    After an interruption the same command continues.
    """
    _refuse_several(slide)
    check_file(slide)
    settings = _settings(slide, options)
    if shard is not None and only_pass is None:
        raise UsageError("--shard needs a pass", "--pass measure for all shards, then --pass apply, then kin assemble")
    # Importing torch takes seconds, so it comes after all checks of options.
    if dry_run:
        _show_plan(settings, as_json)
    elif only_pass is not None:
        _one_pass(settings, only_pass, shard)
    else:
        from kin_cli.translation import translate as run

        progress = ConsoleProgress()
        settings = _goes_on(settings, progress)
        last_work()
        return show_record(run(settings, progress), settings, as_json)
    return 0


def _refuse_several(slide: Path) -> None:
    """Raise ``UsageError`` for several slides, ``InputError`` for a folder of slides: those are for ``kin batch``."""
    more = click.get_current_context().args
    if more:
        named = f"kin batch {slide.name} {Path(more[0]).name}{' …' if len(more) > 1 else ''} -o FOLDER"
        raise UsageError(f"{len(more) + 1} slides were given, kin translate takes one", f"translate all: {named}")
    if slide.is_dir() and not any(slide.glob("*.dcm")) and not (slide.parent / f"{slide.name}.mrxs").is_file():
        raise InputError(f"{slide}: a folder, not a slide", f"translate all slides in it: kin batch {slide} -o FOLDER")


def _settings(slide: Path, options: dict[str, Any]) -> Settings:
    """The settings that the options make, refused if an output or a table would lie in a work folder."""
    from kin_cli.outputs import refuse_work_folders

    settings = settings_from(slide, options)
    refuse_work_folders(settings.output.path, settings.table)
    return settings


def _goes_on(settings: Settings, progress: ConsoleProgress) -> Settings:
    """The settings that verify a finished output and make what is missing, where the same command made the output.

    A scheduler can start a job anew that has just finished; a signal can end a run between its output and its report.
    """
    output = settings.output
    restarts = os.environ.get("SLURM_RESTART_COUNT", "")
    if restarts.isdecimal() and int(restarts) > 0 and output.path.is_file() and not output.overwrite:
        progress.note(f"{output.path} exists, and this job was started anew: it is verified")
        return replace(settings, output=replace(output, skip_existing=True))
    return _with_missing_report(settings, progress)


def _with_missing_report(settings: Settings, progress: ConsoleProgress) -> Settings:
    """The settings that verify a finished output and make only its report, if just that is missing."""
    output = settings.output
    if not output.report or output.overwrite or output.skip_existing or not output.path.is_file():
        return settings
    from kin_cli.report.page import is_report_of
    from kin_cli.store.files import read_regular

    try:
        record = json.loads(read_regular(output.record_path))
    except (OSError, ValueError, RecursionError):
        return settings
    if not isinstance(record, dict) or is_report_of(record, output.report_path):
        return settings
    progress.note(f"{output.path} exists: if it is what these settings make, only its report is made")
    return replace(settings, output=replace(output, skip_existing=True))


def show_record(record: dict[str, Any], settings: Settings, as_json: bool) -> int:
    """Print the record as JSON or the output's name, and write the report if the settings ask for it.

    Returns the exit code: 1 if the output is complete but not as it should be, see ``flaws``; otherwise 0. The output
    is there even if nobody reads stdout.
    """
    tell_output(json_text(record) if as_json else str(settings.output.path))
    if settings.output.report:
        more_work()
        from kin_cli.report.page import report_if_asked

        report_if_asked(settings, record, ConsoleProgress())
    from kin_cli.passes.quality import flaws

    found = flaws(record)
    for flaw in found:
        click.echo(f"kin: {settings.source.slide}: {flaw}", err=True)
    return 1 if found else 0


def _show_plan(settings: Settings, as_json: bool) -> None:
    from kin_cli.plan import make_plan

    plan = make_plan(settings)
    with plan.view.slide:
        from kin_cli.bench.stages import estimated_seconds

        seconds = estimated_seconds(plan)
        if as_json:
            show(json_text({**plan.summary(), "estimated_seconds": round(seconds, 1)}))
        else:
            show(describe_plan(plan, seconds))


def _one_pass(settings: Settings, name: str, shard: Shard | None) -> None:
    from kin_cli.batch.one_slide import apply_shard, measure_shard
    from kin_cli.batch.shard import Shard

    if settings.output.overwrite:
        raise UsageError("--overwrite and --pass exclude each other", "remove the output and its work folder first")
    run = measure_shard if name == "measure" else apply_shard
    run(settings, shard or Shard(1, 1), progress=ConsoleProgress())


@cloup.command(
    short_help="Finish a slide translated in shards.",
    epilog=examples("kin assemble slide.svs -m latest_net_G.pth -o out.ome.tif"),
)
@click.argument("slide", type=FILE)
@translation_options(
    cloup.option("-o", "--output", type=FILE, help="Output, the same as for kin translate."),
    jobs=(cloup.option("--json", "as_json", is_flag=True, help="Print the run record as JSON."),),
)
def assemble(slide: Path, as_json: bool, **options: Any) -> int:
    """Write the output of SLIDE after all shards of both passes have run.

    The passes are `kin translate --pass measure --shard i/n` and `kin translate --pass apply --shard i/n`. Give the
    same options as there. On equal hardware the file is the same, byte for byte, as that of one process.
    """
    check_file(slide)
    settings = _settings(slide, options)
    if settings.output.overwrite:
        raise UsageError("--overwrite has no meaning for kin assemble", "remove the old output before the passes")
    from kin_cli.batch.one_slide import assemble as run

    progress = ConsoleProgress()
    settings = _goes_on(settings, progress)
    last_work()
    return show_record(run(settings, progress), settings, as_json)
