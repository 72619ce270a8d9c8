"""The seam metric on whole slides: which grid, which statistic, tissue only, tile by tile."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from kin_cli.evaluation.settings import SeamChoice
from kin_cli.evaluation.storage import seam_grid
from kin_cli.evaluation.views import check_same_size
from kin_cli.metrics.seam_figures import SeamFigure
from kin_cli.metrics.seam_lines import UNITS
from kin_cli.metrics.seams import SeamMeter, SeamReport
from kin_cli.pipeline.reporting import Reporter
from kin_cli.pipeline.stages import prefetch
from kin_cli.slide.mask import TissueMask
from kin_cli.slide.view import SlideView

_LUMA_NOTE = (
    "the file stores tiled JPEG with subsampled chroma on this very grid, which looks like seams in colour: "
    "trust step_luma, or measure a lossless output"
)


@dataclass(frozen=True, eq=False)
class SlideSeams:
    """The seams of a slide, the statistic to look at first, and what the reader must know."""

    report: SeamReport
    statistic: str
    note: str | None

    @property
    def figure(self) -> SeamFigure:
        """The headline: both directions."""
        return self.report.figure(self.statistic)

    @property
    def unit(self) -> str:
        """Unit of the headline's excess."""
        return UNITS[self.statistic]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; the worst boundaries are those of the headline's statistic."""
        worst = [asdict(line) for line in self.report.worst(self.statistic)]
        return {"headline": self.statistic, "note": self.note, **self.report.as_dict(), "worst": worst}


def measure_slide_seams(
    view: SlideView,
    choice: SeamChoice,
    *,
    source: SlideView | None,
    mask: TissueMask,
    reporter: Reporter,
    workers: int,
) -> SlideSeams:
    """Measure a slide, with its source as the control where there is one. Memory bound: see ``SeamMeter``.

    Raises:
        UsageError: tiles under 64 px.
        InputError: the source has another size.
    """
    views = [view] if source is None else [view, source]
    check_same_size(view, views[-1])
    grid, luma_only = seam_grid(views, choice.tile_px, choice.origin)
    meter = SeamMeter(grid, view.read, source=None if source is None else source.read, mask=mask)
    blocks = list(meter.blocks())
    parts = []
    with reporter.stage("seams", sum(map(len, blocks))) as advance:
        for block, part in zip(blocks, prefetch(meter.measure, blocks, workers=workers, ahead=workers), strict=True):
            parts.append(part)
            advance(len(block))
    statistic, note = ("step_luma", _LUMA_NOTE) if luma_only else ("step", None)
    return SlideSeams(meter.report(parts), statistic, note)
