"""One translation from start to end: plan, measure, smooth, apply, fill the background, build the pyramid, write."""

from __future__ import annotations

from pathlib import Path
from typing import Any, overload

from torch import nn

from kin_cli.errors import UsageError
from kin_cli.job import Job, skipped
from kin_cli.plan import Plan, make_plan
from kin_cli.progress import LoggedProgress, Progress
from kin_cli.settings import Settings, settings_of


@overload
def translate(settings: Settings, progress: Progress, /) -> dict[str, object]: ...


@overload
def translate(
    slide: Path | str,
    output: Path | str | None = None,
    /,
    *,
    generator: nn.Module | Path | str,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, object]: ...


def translate(
    slide: Any,
    output: Any = None,
    /,
    *,
    generator: nn.Module | Path | str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, object]:
    """Translate one slide and return the run record, which is also written beside the output.

    Called with ``Settings`` and a ``Progress``, or with the paths of slide and output and a ``generator``: any
    ``torch.nn.Module`` that turns images (1, 3, H, W) in -1 to 1 into images of the same shape and range, or the path
    of a checkpoint. ``options`` are those of the command with underscores: ``seamless=True, patch_size=512,
    kernel="gaussian:7", input_range=(0, 1)``. The module itself is not changed; the same weights and code count as the
    same generator when unfinished work is continued. Notes go to Python's ``logging``.

    Interrupted work is continued. Memory does not grow with the slide: see the bounds of each stage and
    ``Plan.host_bytes``. Raises a ``KinError`` on any failure; the output appears only when it is complete and verified.
    """
    if isinstance(slide, Settings):
        settings, progress = slide, output
    elif generator is None:
        raise UsageError("translate needs a generator", "a torch.nn.Module, or the path of a checkpoint")
    else:
        settings = settings_of(slide, output, generator=generator, **options)
    progress = progress or LoggedProgress()
    plan = make_plan(settings)
    with plan.identity, plan.view.slide:
        return skipped(plan, progress) or carry_out(plan, progress)


def carry_out(plan: Plan, progress: Progress) -> dict[str, object]:
    """Carry out a plan and return the run record."""
    for note in plan.notes():
        progress.note(note)
    with Job.begin(plan, progress) as job:
        record = job.left_over()
        if record is None:
            progress.note(plan.headline())
            progress.outlook(plan.outlook())
            table = job.statistics(plan.measured_cells, progress)
            _ = job.trust  # now, because its note may be a reason to stop
            sink = job.sink()
            job.apply(table, sink, progress)
            record = job.finish(sink, progress)
        job.clean_up()
    return record
