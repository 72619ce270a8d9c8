"""One slide, many jobs: each pass in shares of rows, on a file system that all jobs see, and the assembly.

All jobs fill the same work folder, each its own shard of the stores. The file is written from the stores in canonical
order, so on equal hardware it equals that of a single process byte for byte.
"""

from __future__ import annotations

from kin_cli.batch.shard import Shard
from kin_cli.errors import OutputError
from kin_cli.job import Job, skipped
from kin_cli.plan import make_plan
from kin_cli.progress import Progress
from kin_cli.settings import Settings


def measure_rows(settings: Settings, shard: Shard, *, progress: Progress) -> None:
    """Pass 1 for a share of the patches with tissue: consecutive rows with about equal numbers of them."""
    plan = make_plan(settings)
    with plan.view.slide, Job.begin(plan, shard=f"measure-{shard}") as job:
        rows = shard.rows((plan.table_weights > 0).sum(axis=1).tolist())
        job.statistics([cell for cell in plan.measured_cells if cell.row in rows], progress)


def apply_rows(settings: Settings, shard: Shard, *, progress: Progress) -> None:
    """Pass 2 for a share of the tiles; ``OutputError`` unless every patch has been measured."""
    plan = make_plan(settings)
    with plan.view.slide, Job.begin(plan, shard=f"apply-{shard}") as job:
        if absent := job.unmeasured():
            raise OutputError(
                f"{settings.output.path}: {absent} of {len(plan.measured_cells)} patches are not measured yet",
                "finish --pass measure for all shards first",
            )
        sink = job.sink(shard.rows(plan.windows.tiles_by_block_row))
        job.apply(job.statistics([], progress), sink, progress)


def assemble(settings: Settings, progress: Progress) -> dict[str, object]:
    """Write the output from finished rows and return the run record; ``OutputError`` unless every tile is there."""
    plan = make_plan(settings)
    with plan.view.slide:
        record = skipped(plan, progress)
        if record is not None:
            return record
        with Job.begin(plan) as job:
            record = job.left_over()
            if record is None:
                sink = job.sink()
                absent = sum(len(block.tiles) for block in plan.windows.blocks(sink.done))
                if absent:
                    raise OutputError(
                        f"{settings.output.path}: {absent} of {plan.windows.translated_tiles} tiles are not there yet",
                        "finish --pass apply for all shards first",
                    )
                record = job.finish(sink, progress)
            job.clean_up()
    return record
