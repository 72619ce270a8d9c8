"""One translation from start to end: plan, measure, smooth, apply, fill the background, build the pyramid, write."""

from __future__ import annotations

from kin_cli.job import Job, skipped
from kin_cli.plan import Plan, make_plan
from kin_cli.progress import Progress
from kin_cli.settings import Settings


def translate(settings: Settings, progress: Progress) -> dict[str, object]:
    """Translate one slide and return the run record, which is also written beside the output.

    Interrupted work is continued. Memory does not grow with the slide: see the bounds of each stage and
    ``Plan.host_bytes``. Raises a ``KinError`` on any failure; the output appears only when it is complete and verified.
    """
    return translate_planned(make_plan(settings), progress)


def translate_planned(plan: Plan, progress: Progress) -> dict[str, object]:
    """Do what ``translate`` does with a plan that is made, and close its slide."""
    with plan.identity, plan.view.slide:
        return skipped(plan, progress) or carry_out(plan, progress)


def carry_out(plan: Plan, progress: Progress) -> dict[str, object]:
    """Carry out a plan and return the run record."""
    with Job.begin(plan, progress) as job:
        record = job.left_over()
        if record is None:
            for note in plan.notes():  # not before: a refusal is one line
                progress.note(note)
            progress.note(plan.headline())
            progress.outlook(plan.outlook())
            table = job.statistics(plan.measured_cells, progress)
            _ = job.trust  # now, because its note may be a reason to stop
            sink = job.sink()
            job.apply(table, sink, progress)
            record = job.finish(sink, progress)
        job.clean_up()
    return record
