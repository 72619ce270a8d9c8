"""TIN: one set of statistics for the whole slide, taken from a thumbnail (Thumbnail Instance Normalization)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kin_cli.passes.engine import Engine
from kin_cli.slide.opening import open_slide
from kin_cli.slide.view import SlideView, open_view, overview

_LARGEST_PX = 2048


def thumbnail_statistics(view: SlideView, file: Path | None, *, engine: Engine, patch_px: int) -> NDArray[np.float32]:
    """Means and scales of a thumbnail, shape (2, ΣC).

    The thumbnail is the slide scaled to ``patch_px`` on its longer side, its aspect kept, or the given image file as
    it is (reduced to 2048 px where larger). Its sides are reflected up to a multiple of the patch size's granularity.
    """
    if file is None:
        pixels = overview(view, max_side=patch_px)
    else:
        with open_slide(file) as image:
            pixels = overview(open_view(image), max_side=_LARGEST_PX)
    height, width = pixels.shape[:2]
    step = engine.stride
    padding = ((0, -height % step), (0, -width % step), (0, 0))
    stats: NDArray[np.float32] = engine.measure(
        [np.pad(pixels, padding, mode="reflect" if min(height, width) > 1 else "edge")]
    )[0]
    np.divide(1.0, stats[1], out=stats[1], where=stats[1] > 0)
    return stats
