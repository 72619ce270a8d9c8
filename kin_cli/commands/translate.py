"""``kin translate``: translate one slide. ``kin assemble``: finish a slide that several scheduler jobs translated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kin_cli.commands.info import describe_plan
from kin_cli.commands.options import ShardType, settings_from, translation_options
from kin_cli.commands.parameters import FILE
from kin_cli.commands.progress import ConsoleProgress
from kin_cli.errors import UsageError

if TYPE_CHECKING:
    from kin_cli.batch.shard import Shard
    from kin_cli.settings import Settings


@click.command()
@click.argument("slide", type=FILE)
@click.option(
    "-o", "--output", type=FILE, help="Output: .ome.tif, .tif, .png or .jpg.  [default: SLIDE.kin.ome.tif beside SLIDE]"
)
@click.option("--dry-run", is_flag=True, help="Show the plan (patches, memory, disk), translate nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the run record, or the plan of --dry-run, as JSON.")
@click.option(
    "--pass", "only_pass", type=click.Choice(["measure", "apply"]), help="Run only this pass; see kin assemble."
)
@click.option("--shard", type=ShardType(), help="Run only shard i of n of the pass: 3/16, or auto/16 in an array job.")
@click.option(
    "--table",
    type=FILE,
    help="Folder that keeps the statistics of pass 1 for other kernels and outputs; made if missing, else reused.",
)
@translation_options
def translate(
    slide: Path, dry_run: bool, as_json: bool, only_pass: str | None, shard: Shard | None, **options: Any
) -> int:
    """Translate SLIDE: any slide that OpenSlide opens, a TIFF, or a photograph.

    After an interruption the same command continues.
    """
    settings = settings_from(slide, options)
    if shard is not None and only_pass is None:
        raise UsageError("--shard needs a pass", "--pass measure for all shards, then --pass apply, then kin assemble")
    # Importing torch takes seconds, so it comes after all checks of options.
    if dry_run:
        _show_plan(settings, as_json)
    elif only_pass is not None:
        _one_pass(settings, only_pass, shard)
    else:
        from kin_cli.translate import translate as run

        return show_record(run(settings, ConsoleProgress()), settings, as_json)
    return 0


def show_record(record: dict[str, Any], settings: Settings, as_json: bool) -> int:
    """Print the record as JSON or the output's name, and write the report if the settings ask for it.

    Returns the exit code: 1 if parts of the slide were unreadable, otherwise 0.
    """
    click.echo(json.dumps(record, indent=1, ensure_ascii=False) if as_json else str(settings.output.path))
    if settings.output.report:
        from kin_cli.report.page import report_if_asked

        report_if_asked(settings, record, ConsoleProgress())
    unread = record["unreadable"]
    if unread["tiles"] or unread["patches"]:
        click.echo(
            f"kin: {settings.source.slide}: parts of {unread['tiles']} tiles could not be read and were filled;"
            f" {unread['patches']} patches were left out of the statistics",
            err=True,
        )
        return 1
    return 0


def _show_plan(settings: Settings, as_json: bool) -> None:
    from kin_cli.plan import make_plan

    plan = make_plan(settings)
    with plan.view.slide:
        click.echo(json.dumps(plan.summary(), indent=1) if as_json else describe_plan(plan))


def _one_pass(settings: Settings, name: str, shard: Shard | None) -> None:
    from kin_cli.batch.one_slide import apply_shard, measure_shard
    from kin_cli.batch.shard import Shard

    if settings.output.overwrite:
        raise UsageError("--overwrite and --pass exclude each other", "remove the output and its work folder first")
    run = measure_shard if name == "measure" else apply_shard
    run(settings, shard or Shard(1, 1), progress=ConsoleProgress())


@click.command()
@click.argument("slide", type=FILE)
@click.option("-o", "--output", type=FILE, help="Output, the same as for kin translate.")
@click.option("--json", "as_json", is_flag=True, help="Print the run record as JSON.")
@translation_options
def assemble(slide: Path, as_json: bool, **options: Any) -> int:
    """Write the output of SLIDE after all shards of both passes have run.

    The passes are `kin translate --pass measure --shard i/n` and `kin translate --pass apply --shard i/n`. Give the
    same options as there. On equal hardware the file is the same, byte for byte, as that of one process.
    """
    settings = settings_from(slide, options)
    if settings.output.overwrite:
        raise UsageError("--overwrite has no meaning for kin assemble", "remove the old output before the passes")
    from kin_cli.batch.one_slide import assemble as run

    return show_record(run(settings, ConsoleProgress()), settings, as_json)
