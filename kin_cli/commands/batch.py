"""``kin batch``: many slides, one after another; one bad slide never stops the others."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kin_cli.batch.shard import Shard
from kin_cli.commands.options import ShardType, bundled_generator, settings_from, translation_options
from kin_cli.errors import Stopped, UsageError
from kin_cli.signals import interruptible

if TYPE_CHECKING:
    from kin_cli.batch.jobs import SlideTask
    from kin_cli.progress import Advance
    from kin_cli.settings import Settings

_PATH = click.Path(path_type=Path)
_LINE_EVERY_SECONDS = 60.0


@click.command()
@click.argument("inputs", type=_PATH, nargs=-1, metavar="INPUT...")
@click.option("-o", "--output", "folder", type=_PATH, required=True, help="Folder of the outputs.")
@click.option("--manifest", type=_PATH, help="CSV with the columns wsi[,mpp,output,model,mask].")
@click.option("--recursive", is_flag=True, help="Search sub-folders; the outputs are in the same sub-folders.")
@click.option("--ext", multiple=True, help="Take files of this ending, such as svs.  [default: those of slides]")
@click.option("--shard", type=ShardType(), help="Every n-th slide, from the i-th on: 3/16; auto/16 in an array job.")
@click.option("--dry-run", is_flag=True, help="List the slides and their outputs and exit.")
@click.option("--json", "as_json", is_flag=True, help="Print the status as JSON at the end.")
@translation_options
def batch(
    inputs: tuple[Path, ...], folder: Path, shard: Shard | None, dry_run: bool, as_json: bool, **options: Any
) -> int:
    """Translate every slide of INPUT (files and folders) or of a manifest.

    What became of each slide is in OUTPUT/kin-batch/status.csv and .json (status-3-of-16 for a part). The exit code is
    1 if any slide failed. With --skip-existing the same command goes on after any interruption.
    """
    from kin_cli.batch.run import SlideBatch, run_batch

    search = {name: options.pop(name) for name in ("manifest", "recursive", "ext")}
    jobs = _jobs(inputs, folder, **search)
    if dry_run:
        for job in shard.of(jobs) if shard else jobs:
            click.echo(f"{job.slide} → {job.output}")
        return 0

    def settings(job: SlideTask) -> Settings:
        own = {"output": job.output, "source_mpp": job.source_mpp, "model": job.model, "tissue": job.mask}
        return settings_from(job.slide, options | {name: value for name, value in own.items() if value is not None})

    if options["model"] is None and any(job.model is None for job in jobs):
        options["model"] = bundled_generator()
    _refuse_absent([options["model"], *(job.model for job in jobs)])
    try:
        status = run_batch(SlideBatch(jobs, settings, folder, shard), BatchProgress())
    except Stopped as stop:
        again = "the same command" if options["skip_existing"] else "the same command with --skip-existing"
        raise Stopped(stop.message, f"{again} continues where it stopped", exit_code=stop.exit_code) from None
    counts = status.counts()
    text = ", ".join(f"{count} {name}" for name, count in counts.items())
    click.echo(json.dumps(status.summary(), indent=1, ensure_ascii=False) if as_json else f"{status.paths[0]}: {text}")
    return 1 if counts.keys() & {"failed", "filled"} else 0


def _jobs(
    inputs: tuple[Path, ...], folder: Path, *, manifest: Path | None, recursive: bool, ext: Any
) -> list[SlideTask]:
    from kin_cli.batch.jobs import Search, find_tasks, read_manifest

    if manifest is None:
        if not inputs:
            raise UsageError("no slide was given", "name files or folders, or a --manifest")
        return find_tasks(inputs, folder, Search.of(ext, recursive=recursive))
    if len(inputs) > 1 or (inputs and not inputs[0].is_dir()):
        raise UsageError("--manifest goes with at most one folder, where its slides lie")
    listed = read_manifest(manifest, slides=inputs[0] if inputs else None, outputs=folder)
    if listed.ignored:
        click.echo(f"kin: {manifest}: columns without a meaning here: {', '.join(listed.ignored)}", err=True)
    return list(listed.jobs)


def _refuse_absent(models: list[Path | None]) -> None:
    for model in {model for model in models if model is not None}:
        if not model.exists():
            raise UsageError(f"{model}: no such file", "name a checkpoint with --model, or in the manifest")


class BatchProgress:
    """One bar over the slides and one within the slide on a terminal, otherwise a line a slide and one a minute."""

    def __init__(self) -> None:
        self._depth = 0

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "tiles") -> Iterator[Advance]:
        """Show one stage; the outermost stays."""
        self._depth += 1
        try:
            if sys.stderr.isatty():
                from tqdm import tqdm

                outer = self._depth == 1
                with tqdm(total=total, desc=f"{name:>10}", unit=f" {unit}", exit_now=outer, dynamic_ncols=True) as bar:
                    yield interruptible(lambda count, _detail="": bar.update(count))
            else:
                yield interruptible(_Lines(name, total, unit).advance)
        finally:
            self._depth -= 1

    def note(self, message: str) -> None:
        """Print one line above the bars."""
        if sys.stderr.isatty():
            from tqdm import tqdm

            tqdm.write(f"kin: {message}", file=sys.stderr)
        else:
            click.echo(f"kin: {message}", err=True)


class _Lines:
    """Progress as a line now and then; slides have lines of their own."""

    def __init__(self, name: str, total: int, unit: str) -> None:
        self._name, self._total, self._unit, self._done = name, total, unit, 0
        self._last = time.monotonic()

    def advance(self, count: int, _detail: str = "", /) -> None:
        self._done += count
        if time.monotonic() - self._last > _LINE_EVERY_SECONDS and self._unit != "slides":
            self._last = time.monotonic()
            click.echo(f"kin: {self._name} {self._done}/{self._total} {self._unit}", err=True)
