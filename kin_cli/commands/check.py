"""``kin check``: is a finished file sound, tile by tile?"""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True)
def check(files: tuple[Path, ...]) -> int:
    """Read every tile of every level of each FILE; exit 1 if one is damaged or missing."""
    from kin_cli.pyramid.check import check_file

    bad = 0
    for file in files:
        problems = check_file(file)
        bad += bool(problems)
        for problem in problems:
            click.echo(f"{file}: {problem}")
        if not problems:
            click.echo(f"{file}: sound")
    return 1 if bad else 0
