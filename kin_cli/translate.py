"""The story of a translation: plan, measure, smooth, apply, fill the background, build the pyramid, write."""

from __future__ import annotations

from kin_cli.job import Job, skipped
from kin_cli.plan import Plan, make_plan
from kin_cli.progress import Reporter
from kin_cli.settings import Settings


def translate(settings: Settings, reporter: Reporter) -> dict[str, object]:
    """Translate one slide and return the run record, which is also written beside the output.

    Work that was interrupted is continued. Memory is constant in the slide's size: see the bounds of each stage and
    ``Plan.host_bytes``. Raises a KinError where anything is wrong; the output appears only when complete and verified.
    """
    plan = make_plan(settings)
    with plan.view.slide:
        return skipped(plan, reporter) or carry_out(plan, reporter)


def carry_out(plan: Plan, reporter: Reporter) -> dict[str, object]:
    """Do what the plan says."""
    for warning in plan.warnings():
        reporter.note(warning)
    with Job.begin(plan) as job:
        record = job.left_over()
        if record is None:
            painter = job.painter()
            table = job.statistics(plan.measured_cells, reporter)
            job.apply(table, painter, reporter)
            record = job.finish(painter, reporter)
        job.clean_up()
    return record
