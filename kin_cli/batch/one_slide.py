"""One slide translated by several scheduler jobs: each pass in shards, then the assembly.

All jobs see one file system and fill the same work folder, each a shard of its own in the stores. The file is written
from the stores in canonical order, so on equal hardware it equals the file of a single process byte for byte.
"""

from __future__ import annotations

from kin_cli.batch.shard import Shard
from kin_cli.errors import OutputError
from kin_cli.job import Job, skipped
from kin_cli.plan import make_plan
from kin_cli.progress import Progress
from kin_cli.settings import Settings


def measure_shard(settings: Settings, shard: Shard, *, progress: Progress) -> None:
    """Run pass 1 on one shard: consecutive rows of the patch grid; shards hold about equally many tissue patches."""
    plan = make_plan(settings)
    with plan.identity, plan.view.slide, Job.begin(plan, progress, shard=f"measure-{shard}") as job:
        rows = shard.rows((plan.table_weights > 0).sum(axis=1).tolist())
        job.statistics([cell for cell in plan.measured_cells if cell.row in rows], progress)


def apply_shard(settings: Settings, shard: Shard, *, progress: Progress) -> None:
    """Run pass 2 on one shard: consecutive rows of blocks; shards hold about equally many tiles.

    Raises ``OutputError`` unless every patch has been measured.
    """
    plan = make_plan(settings)
    with plan.identity, plan.view.slide, Job.begin(plan, progress, shard=f"apply-{shard}") as job:
        if absent := job.unmeasured():
            raise OutputError(
                f"{settings.output.path}: {absent} of {len(plan.measured_cells)} patches are not measured yet",
                "finish --pass measure for all shards first",
            )
        sink = job.sink(shard.rows(job.windows.tiles_by_block_row))
        job.apply(job.statistics([], progress), sink, progress)


def assemble(settings: Settings, progress: Progress) -> dict[str, object]:
    """Write the output from the finished shards and return the run record.

    Raises ``OutputError`` unless every tile has been translated.
    """
    plan = make_plan(settings)
    with plan.identity, plan.view.slide:
        record = skipped(plan, progress)
        if record is not None:
            return record
        with Job.begin(plan, progress) as job:
            record = job.left_over()
            if record is None:
                sink = job.sink()
                absent = sum(len(block.tiles) for block in job.windows.blocks(sink.done))
                if absent:
                    raise OutputError(
                        f"{settings.output.path}: {absent} of {job.windows.translated_tiles} tiles are not there yet",
                        "finish --pass apply for all shards first",
                    )
                record = job.finish(sink, progress)
            job.clean_up()
    return record
