"""``kin translate``: one slide in, a translated pyramid out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kin_cli.commands.info import describe_plan
from kin_cli.commands.options import ShardType, settings_from, translation_options
from kin_cli.commands.progress import ConsoleProgress
from kin_cli.errors import UsageError

if TYPE_CHECKING:
    from kin_cli.batch.shard import Shard
    from kin_cli.settings import Settings

_FILE = click.Path(path_type=Path)
_FILE = click.Path(path_type=Path)


# FROM commands.translate: ``kin translate``: one slide in, a translated pyramid out.


@click.command()
@click.argument("slide", type=_FILE)
@click.option("-o", "--output", type=_FILE, help="Output: .ome.tif (default: SLIDE.kin.ome.tif), .tif, .png or .jpg.")
@click.option("--dry-run", is_flag=True, help="Show the plan and exit.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan or the run record as JSON.")
@click.option("--pass", "only_pass", type=click.Choice(["measure", "apply"]), help="Only this pass (see kin assemble).")
@click.option("--shard", type=ShardType(), help="Of that pass only part i of n; auto/n in an array job.")
@click.option(
    "--table",
    type=_FILE,
    help="Folder that keeps what pass 1 measures, for other kernels and outputs: made if missing, reused if there.",
)
@translation_options
def translate(
    slide: Path, dry_run: bool, as_json: bool, only_pass: str | None, shard: Shard | None, **options: Any
) -> int:
    """Translate SLIDE: any slide that OpenSlide opens, a TIFF, or a photograph.

    Work that was interrupted is continued by the same command.
    """
    settings = settings_from(slide, options)
    if shard is not None and only_pass is None:
        raise UsageError("--shard needs a pass", "--pass measure for all shards, then --pass apply, then kin assemble")
    # Imported late because torch takes seconds, and a wrong option should not.
    if dry_run:
        _show_plan(settings, as_json)
    elif only_pass is not None:
        _one_pass(settings, only_pass, shard)
    else:
        from kin_cli.translate import translate as run

        return show_record(run(settings, ConsoleProgress()), settings, as_json)
    return 0


def show_record(record: dict[str, Any], settings: Settings, as_json: bool) -> int:
    """Print the record or the output's name, and make the report if there is to be one.

    Returns the exit code, 1 where parts of the slide could not be read.
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
    from kin_cli.batch.one_slide import apply_rows, measure_rows
    from kin_cli.batch.shard import Shard

    if settings.output.overwrite:
        raise UsageError("--overwrite and --pass exclude each other", "remove the output and its work folder first")
    work = measure_rows if name == "measure" else apply_rows
    work(settings, shard or Shard(1, 1), progress=ConsoleProgress())


# FROM commands.assemble: ``kin assemble``: the file from the finished rows of a slide that several jobs translated.


@click.command()
@click.argument("slide", type=_FILE)
@click.option("-o", "--output", type=_FILE, help="As given to kin translate.")
@click.option("--json", "as_json", is_flag=True, help="Print the run record as JSON.")
@translation_options
def assemble(slide: Path, as_json: bool, **options: Any) -> int:
    """Write the output of SLIDE, whose passes were run as `kin translate --shard i/n --pass measure` and `--pass apply`.

    Give the same options as there. The file is the same, byte for byte, as that of one process on equal hardware.
    """
    settings = settings_from(slide, options)
    if settings.output.overwrite:
        raise UsageError("--overwrite makes no sense here", "remove the old output before the passes")
    from kin_cli.batch.one_slide import assemble as run

    return show_record(run(settings, ConsoleProgress()), settings, as_json)
