"""The seam metric over a whole image at once."""

from __future__ import annotations

from kin_cli.geometry import Size
from kin_cli.metrics.seams import Reader, SeamGrid, SeamMeter, SeamSummary
from kin_cli.slide.tissue import TissueMask


def measure_seams(
    read: Reader,
    size: Size,
    *,
    patch_px: int,
    origin: tuple[int, int] = (0, 0),
    source: Reader | None = None,
    phase: int = 16,
    mask: TissueMask | None = None,
) -> SeamSummary:
    """Measure the seams of an image of ``size`` that was processed in patches; see ``SeamGrid`` and ``SeamMeter``."""
    meter = SeamMeter(SeamGrid(size, patch_px, origin, phase), read, source=source, mask=mask)
    return meter.summary(map(meter.measure, meter.blocks()))
