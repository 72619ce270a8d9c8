"""``kin batch``: translate many slides, one after another; a slide that fails does not stop the others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from kin_cli.batch.shard import Shard
from kin_cli.commands.options import ShardType, bundled_generator, settings_from, translation_options
from kin_cli.commands.parameters import examples
from kin_cli.commands.progress import BatchProgress
from kin_cli.commands.streams import json_text, show, tell_output
from kin_cli.errors import Stopped, UsageError

if TYPE_CHECKING:
    from kin_cli.batch.tasks import SlideTask, Worklist
    from kin_cli.settings import Settings

_PATH = click.Path(path_type=Path)


@cloup.command(
    short_help="Translate many slides, one after another.",
    epilog=examples(
        "kin batch slides/ --recursive -o translated/ --skip-existing",
        "kin batch --manifest slides.csv -o translated/ --shard 3/16",
    ),
)
@click.argument("inputs", type=_PATH, nargs=-1, metavar="[INPUT]...")
@translation_options(
    cloup.option("-o", "--output", "folder", type=_PATH, required=True, help="Folder for the outputs."),
    cloup.option("--manifest", type=_PATH, help="CSV file that lists the slides: columns wsi[,mpp,output,model,mask]."),
    cloup.option(
        "--recursive", is_flag=True, help="Search sub-folders, too; outputs go to sub-folders of the same names."
    ),
    cloup.option(
        "--ext",
        multiple=True,
        help="Search for files with this ending, such as svs; may be repeated.  [default: all slide formats]",
    ),
    cloup.option("--dry-run", is_flag=True, help="List the slides and their outputs, translate nothing."),
    jobs=(
        cloup.option(
            "--shard",
            type=ShardType(),
            help="Translate only shard i of n, every n-th slide from the i-th on: 3/16, or auto/16 in an array job.",
        ),
        cloup.option("--json", "as_json", is_flag=True, help="Print the outcome of all slides as JSON."),
    ),
)
def batch(
    inputs: tuple[Path, ...], folder: Path, shard: Shard | None, dry_run: bool, as_json: bool, **options: Any
) -> int:
    """Translate every slide of INPUT (files and folders) or of a manifest.

    The outcome of each slide is in OUTPUT/kin-batch/status.csv and .json (status-3-of-16.csv for shard 3 of 16). The
    exit code is 1 if any slide failed or could not be read. Command line, versions and outcome of each batch stay in
    OUTPUT/kin-batch/runs. With --skip-existing the same command continues after an interruption.
    """
    from kin_cli.batch.run import INCOMPLETE, SlideBatch, run_batch
    from kin_cli.batch.tasks import refuse_collisions
    from kin_cli.outputs import refuse_work_folders

    refuse_work_folders(folder)
    search = {name: options.pop(name) for name in ("manifest", "recursive", "ext")}
    worklist = _worklist(inputs, folder, **search)
    tasks, left_out = worklist.tasks, [*worklist.notes, *worklist.unreadable]
    if dry_run:
        refuse_collisions(tasks, manifest=search["manifest"])
        for note in left_out:
            click.echo(f"kin: {note}", err=True)
        for task in shard.of(tasks) if shard else tasks:
            show(f"{task.slide} → {task.output}")
        return 1 if worklist.unreadable else 0

    def settings(task: SlideTask) -> Settings:
        own = {"output": task.output, "source_mpp": task.source_mpp, "model": task.model, "tissue": task.mask}
        return settings_from(task.slide, options | {name: value for name, value in own.items() if value is not None})

    if options["model"] is None and options["network"] is None and any(task.model is None for task in tasks):
        options["model"] = bundled_generator()
    _refuse_absent(options["model"], options["tissue"], *(task.model for task in tasks))
    command = ["kin", *(click.get_current_context().obj or ())]
    try:
        status = run_batch(
            SlideBatch(tasks, settings, folder, shard, command, left_out, search["manifest"]), BatchProgress()
        )
    except Stopped as stop:
        again = "the same command" if options["skip_existing"] else "the same command with --skip-existing"
        raise Stopped(stop.message, f"{again} continues where it stopped", exit_code=stop.exit_code) from None
    counts = status.counts()
    text = ", ".join(f"{count} {name}" for name, count in counts.items())
    tell_output(json_text(status.summary()) if as_json else f"{status.paths[0]}: {text}")
    return 1 if worklist.unreadable or counts.keys() & INCOMPLETE else 0


def _worklist(inputs: tuple[Path, ...], folder: Path, *, manifest: Path | None, recursive: bool, ext: Any) -> Worklist:
    from kin_cli.batch.manifest import read_manifest
    from kin_cli.batch.search import Search, find_tasks

    if manifest is None:
        if not inputs:
            raise UsageError("no slide was given", "name files or folders, or a --manifest")
        return find_tasks(inputs, folder, Search.of(ext, recursive=recursive))
    if len(inputs) > 1 or (inputs and not inputs[0].is_dir()):
        raise UsageError("--manifest goes with at most one folder, the one that holds its slides")
    return read_manifest(manifest, slides=inputs[0] if inputs else None, outputs=folder)


def _refuse_absent(*files: Path | str | None) -> None:
    for file in {file for file in files if isinstance(file, Path)}:
        if not file.exists():
            raise UsageError(f"{file}: no such file", "check --model and --tissue, or the manifest")
