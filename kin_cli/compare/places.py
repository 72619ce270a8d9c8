"""Where to look: the corners of the patch grid at which the seams are worst."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kin_cli.geometry import Box, Size
from kin_cli.metrics.seams import SeamLine

_MEETING = 4  # boundaries at a corner
_TISSUE = 0.5  # of each of the four patches: where a reader would look


@dataclass(frozen=True)
class Corner:
    """A corner where four patches meet, and the mean excess of the boundaries that meet there."""

    x: int
    y: int
    excess: float


def worst_corners(
    lines: Sequence[SeamLine], tissue: npt.NDArray[np.float32], *, patch_px: int, count: int
) -> list[Corner]:
    """Up to ``count`` corners, worst first, none of which shares a patch with another.

    ``tissue`` (rows, cols) is the share of tissue of every patch. Corners all of whose patches are at least half tissue
    come before the others. A boundary that was not measured counts as one without excess.
    """
    meeting: defaultdict[tuple[int, int], float] = defaultdict(float)
    for line in lines:
        dx, dy = (0, line.length) if line.direction == "vertical" else (line.length, 0)
        for end in ((line.x, line.y), (line.x + dx, line.y + dy)):
            meeting[end] += line.excess / _MEETING
    ranked = []
    for (x, y), excess in meeting.items():
        row, col = y // patch_px, x // patch_px
        if 0 < row < tissue.shape[0] and 0 < col < tissue.shape[1]:
            full = bool((tissue[row - 1 : row + 1, col - 1 : col + 1] >= _TISSUE).all())
            ranked.append((not full, -excess, y, x))
    chosen: list[Corner] = []
    for _, excess, y, x in sorted(ranked):
        if len(chosen) == count:
            break
        if all(max(abs(x - other.x), abs(y - other.y)) >= 2 * patch_px for other in chosen):
            chosen.append(Corner(x, y, -excess))
    return chosen


def close_up(x: int, y: int, *, side: int, size: Size) -> Box:
    """A square around a place, moved as far as it must be to lie inside an image of ``size``, no larger than that."""
    width, height = min(side, size.width), min(side, size.height)
    left = min(max(0, x - width // 2), size.width - width)
    upper = min(max(0, y - height // 2), size.height - height)
    return Box(left, upper, width, height)
