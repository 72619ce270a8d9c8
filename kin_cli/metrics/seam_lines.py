"""What the seam metric measures along one line: six statistics, at a tile's boundary and beside it.

A *line* lies between two neighbouring columns (or rows) of pixels. Everything is averaged along the line over the whole
edge of a tile, which cancels texture; wide bands across it would not, since tissue has more contrast at larger
distances.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from kin_cli.errors import UsageError
from kin_cli.geometry import Box, Cell, Size
from kin_cli.metrics.colour import LINEAR, YCBCR, Floats, Pixels, lab_of_linear

STATISTICS = ("step", "step_luma", "ramp16", "ramp64", "line", "fine")
"""Names of the statistics, in the order of the tables.

step: ΔE*ab between the mean linear colours of the two pixel lines that touch. step_luma: the same in Y' (8-bit units),
which chroma subsampling cannot touch. ramp16, ramp64: as step, between bands of 4 and 16 pixels with as many skipped on
either side, for tiles that were cross-faded. line: ΔE*ab between the 4 pixels at the line and those around them, for
frames. fine: mean |difference| of the touching pixels, not averaged along the line, for texture that does not continue.
"""

UNITS = {name: "8-bit" if name in ("step_luma", "fine") else "ΔE" for name in STATISTICS}
"""The unit of each statistic."""

REACH_PX = 32
"""Pixels on either side of a line that the statistics look at."""

_CODEC_PERIOD_PX = 16  # JPEG 4:2:0 codes chroma in blocks of 16 pixels


@dataclass(frozen=True)
class SeamGrid:
    """The processing grid whose boundaries are measured: only whole tiles count.

    Attributes:
        size: of the image.
        tile: side of a tile in pixels, at least 64.
        origin: (x, y) of the corner of the first whole tile; of overlapping windows, of the lines midway through.
        phase: reference lines keep the boundary's position modulo this, in pixels; a multiple of 16, the period of
            JPEG's artefacts, which would look like seams (or hide them) otherwise.
    """

    size: Size
    tile: int
    origin: tuple[int, int] = (0, 0)
    phase: int = _CODEC_PERIOD_PX

    def __post_init__(self) -> None:
        if self.tile < 2 * REACH_PX:
            raise UsageError(f"seams cannot be measured on tiles of {self.tile} px", f"at least {2 * REACH_PX} px")
        if min(self.origin) < 0:
            raise ValueError(f"the grid begins outside the image, at {self.origin}")
        if self.phase < _CODEC_PERIOD_PX or self.phase % _CODEC_PERIOD_PX or len(self.offsets) == 0:
            hint = f"a multiple of {_CODEC_PERIOD_PX} that leaves reference lines within a tile"
            raise UsageError(f"a phase of {self.phase} px does not go with tiles of {self.tile} px", hint)

    @property
    def cols(self) -> int:
        """Whole tiles side by side."""
        return max(0, (self.size.width - self.origin[0]) // self.tile)

    @property
    def rows(self) -> int:
        """Whole tiles one below the other."""
        return max(0, (self.size.height - self.origin[1]) // self.tile)

    @cached_property
    def offsets(self) -> npt.NDArray[np.intp]:
        """Distances (px) of the reference lines from a boundary, into the tile right of or below it."""
        margin = max(REACH_PX, math.ceil(self.tile / 8))
        first = math.ceil(margin / self.phase) * self.phase
        return np.arange(first, self.tile - margin + 1, self.phase)

    def box(self, cell: Cell) -> Box:
        """The pixels of a tile."""
        x, y = self.origin
        return Box(x + cell.col * self.tile, y + cell.row * self.tile, self.tile, self.tile)


def line_values(strip: Pixels, offsets: npt.NDArray[np.intp]) -> Floats:
    """Every statistic at a boundary, and its mean over the reference lines; float64 (6, 2).

    ``strip`` (along, 32 + tile, 3) has the boundary between its columns 31 and 32.
    """
    at = REACH_PX + np.concatenate([[0], offsets])
    linear = LINEAR.take(strip).mean(axis=0)
    lumas = strip.mean(axis=0) @ YCBCR[0]
    steps = strip[:, at].astype(np.int16) - strip[:, at - 1]
    values = np.stack(
        [
            _distance(_band(linear, at - 1, 1), _band(linear, at, 1)),
            np.abs(lumas[at] - lumas[at - 1]),
            _distance(_band(linear, at - 8, 4), _band(linear, at + 4, 4)),
            _distance(_band(linear, at - 32, 16), _band(linear, at + 16, 16)),
            _distance(_band(linear, at - 2, 4), (_band(linear, at - 8, 4) + _band(linear, at + 4, 4)) / 2),
            np.abs(steps).mean(axis=(0, 2)),
        ]
    )
    return np.stack([values[:, 0], values[:, 1:].mean(axis=1)], axis=1)


def _band(linear: Floats, starts: npt.NDArray[np.intp], width: int) -> Floats:
    """Mean colour of ``width`` pixel lines from each start, (starts, 3)."""
    band: Floats = linear[starts[:, None] + np.arange(width)].mean(axis=1)
    return band


def _distance(one: Floats, other: Floats) -> Floats:
    """ΔE*ab (CIE 1976) of linear colours, (n, 3) each."""
    distance: Floats = np.linalg.norm(lab_of_linear(one) - lab_of_linear(other), axis=-1)
    return distance
