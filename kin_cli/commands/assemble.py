"""``kin assemble``: the file from the finished rows of a slide that several jobs translated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kin_cli.commands.options import settings_from, translation_options
from kin_cli.commands.progress import ConsoleReporter
from kin_cli.commands.translate import show_record
from kin_cli.errors import UsageError

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("slide", type=_FILE)
@click.option("-o", "--output", type=_FILE, help="As given to kin translate.")
@click.option("--json", "as_json", is_flag=True, help="Print the run record as JSON.")
@translation_options
def assemble(slide: Path, as_json: bool, **options: Any) -> int:
    """Write the output of SLIDE, whose passes were run as `kin translate --rows i/n --pass measure` and `--pass apply`.

    Give the same options as there. The file is the same, byte for byte, as that of one process on equal hardware.
    """
    settings = settings_from(slide, options)
    if settings.output.overwrite:
        raise UsageError("--overwrite makes no sense here", "remove the old output before the passes")
    from kin_cli.batch.rows import assemble as run

    return show_record(run(settings, ConsoleReporter()), settings, as_json)
