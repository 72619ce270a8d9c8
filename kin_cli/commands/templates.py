"""``kin templates``: job scripts to adapt, written where the user wants them."""

from __future__ import annotations

from pathlib import Path

import click
import cloup

from kin_cli.commands.parameters import examples, overwrite_option
from kin_cli.commands.streams import tell_output
from kin_cli.errors import OutputError

_SETS = {"slurm": Path(__file__).resolve().parents[1] / "slurm"}


@cloup.command(
    short_help="Write job scripts to adapt, for Slurm.",
    epilog=examples("kin templates slurm -o jobs/", "sbatch jobs/slurm_array.sbatch slides/ translated/"),
)
@click.argument("kind", type=click.Choice(sorted(_SETS)))
@cloup.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Folder for the files, made if it is missing.  [default: the working folder]",
)
@overwrite_option
def templates(kind: str, folder: Path, overwrite: bool) -> None:
    """Write the job scripts of KIND, ready to run and with comments on what to adapt.

    slurm: an array job over a folder of slides, the chain of jobs for one large slide, and the status of all shards.
    """
    from kin_cli.outputs import refuse_existing, write_outputs
    from kin_cli.store.files import os_errors_as_output_errors

    contents = {folder / file.name: file for file in sorted(_SETS[kind].iterdir()) if file.is_file()}
    refuse_existing(contents, overwrite=overwrite)
    if not folder.parent.is_dir():
        raise OutputError(f"{folder.parent}: no such folder", "create it, or choose another with -o")
    with os_errors_as_output_errors(folder):
        folder.mkdir(exist_ok=True)
    write_outputs({path: file.read_bytes() for path, file in contents.items()}, overwrite=overwrite)
    for path in contents:
        with os_errors_as_output_errors(path):
            path.chmod(path.stat().st_mode | 0o111)
        tell_output(str(path))
