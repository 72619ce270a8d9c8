"""The seam metric: are the boundaries of the processing grid visible against the slide's own texture?

Every boundary of two tiles is compared with lines beside it, at the same phase of JPEG's blocks; with a source, the
same comparison there is the control. ``ratio`` is relative to local texture: compare it on one slide. ``excess`` is
not: compare it across slides (under 0.5 ΔE is not visible, over 2.3 is, by the usual just noticeable difference).
The metric does not see colour that is wrong but smooth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kin_cli.geometry import Box, Cell, Size
from kin_cli.metrics.colour import Floats, Pixels
from kin_cli.metrics.seam_figures import SeamFigure, SeamTable, local_excess, seam_figure
from kin_cli.metrics.seam_lines import REACH_PX, STATISTICS, UNITS, SeamGrid, line_values
from kin_cli.slide.area import sums_between
from kin_cli.slide.mask import TissueMask

Reader = Callable[[Box], Pixels]

DIRECTIONS = ("both", "vertical", "horizontal")
_BLOCK_PX = 1024
_WORST = 20


@dataclass(frozen=True)
class SeamLine:
    """One boundary: from (x, y), ``length`` pixels downwards (vertical) or to the right (horizontal)."""

    direction: str
    x: int
    y: int
    length: int
    value: float
    reference: float
    excess: float


@dataclass(frozen=True, eq=False)
class SeamReport:
    """The table of boundaries of an image and the figures drawn from it.

    ``figures[direction][statistic]``, with direction "both", "vertical" (boundaries between neighbours in a row) or
    "horizontal", and the statistics of ``STATISTICS``.
    """

    grid: SeamGrid
    table: SeamTable
    figures: dict[str, dict[str, SeamFigure]]

    def figure(self, statistic: str = "step", direction: str = "both") -> SeamFigure:
        """One figure."""
        return self.figures[direction][statistic]

    def lines(self, statistic: str = "step") -> list[SeamLine]:
        """Every boundary, in the order of the table."""
        index = STATISTICS.index(statistic)
        excess = local_excess(self.table, index)
        lines = []
        for number, (row, col) in enumerate(self.table.cells.tolist()):
            box = self.grid.box(Cell(row, col))
            direction = DIRECTIONS[1 + int(self.table.horizontal[number])]
            value, reference = self.table.values[number, index].tolist()
            lines.append(SeamLine(direction, box.x, box.y, box.width, value, reference, float(excess[number])))
        return lines

    def worst(self, statistic: str = "step", count: int = _WORST) -> list[SeamLine]:
        """The boundaries of the largest excess, worst first; only those that have any."""
        ranked = sorted(self.lines(statistic), key=lambda line: -line.excess)
        return [line for line in ranked[:count] if line.excess > 0]

    def as_dict(self) -> dict[str, Any]:
        """Everything but the table, ready for JSON."""
        return {
            "tile_px": self.grid.tile,
            "origin": list(self.grid.origin),
            "phase_px": self.grid.phase,
            "offsets": len(self.grid.offsets),
            "against_source": self.table.source is not None,
            "units": UNITS,
            **{
                direction: {name: asdict(figure) for name, figure in figures.items()}
                for direction, figures in self.figures.items()
            },
            "worst": [asdict(line) for line in self.worst()],
        }


class SeamMeter:
    """Measures an image block by block, in any order and on any number of threads.

    ``mask`` restricts it to boundaries whose two tiles both have tissue. ``read`` and ``source`` return (h, w, 3) uint8
    RGB of boxes inside the image.

    Memory bound: two blocks of (1024 + 32)² pixels (of one tile, where that is larger) for each thread, and 250 bytes
    per boundary, 20 MB for 10 gigapixels cut into tiles of 512.
    """

    def __init__(
        self, grid: SeamGrid, read: Reader, *, source: Reader | None = None, mask: TissueMask | None = None
    ) -> None:
        self.grid, self._read, self._source = grid, read, source
        shape = (grid.rows, grid.cols)
        wanted = np.ones(shape, np.bool_) if mask is None else _with_tissue(mask, grid)
        self._left, self._above = np.zeros((2, *shape), np.bool_)
        self._left[:, 1:] = wanted[:, 1:] & wanted[:, :-1]
        self._above[1:] = wanted[1:] & wanted[:-1]

    @property
    def boundaries(self) -> int:
        """How many boundaries there are to measure."""
        return int(self._left.sum() + self._above.sum())

    def blocks(self) -> Iterator[tuple[Cell, ...]]:
        """Tiles that are read together, those with a boundary to measure only."""
        step = max(1, _BLOCK_PX // self.grid.tile)
        for top in range(0, self.grid.rows, step):
            for left in range(0, self.grid.cols, step):
                rows, cols = slice(top, top + step), slice(left, left + step)
                found = np.argwhere(self._left[rows, cols] | self._above[rows, cols])
                if len(found):
                    yield tuple(Cell(top + row, left + col) for row, col in found.tolist())

    def measure(self, block: tuple[Cell, ...]) -> SeamTable:
        """The boundaries left of and above the tiles of a block."""
        places = [(cell, False) for cell in block if self._left[cell]]
        places += [(cell, True) for cell in block if self._above[cell]]
        box = self._box(block)
        return SeamTable(
            np.array([horizontal for _, horizontal in places]),
            np.array([cell for cell, _ in places], np.intp),
            self._values(self._read(box), box, places),
            None if self._source is None else self._values(self._source(box), box, places),
        )

    def report(self, parts: Iterable[SeamTable]) -> SeamReport:
        """The figures of what ``measure`` returned for all blocks."""
        table = _joined(list(parts), with_source=self._source is not None)
        every = np.ones(len(table), np.bool_)
        chosen = {"both": every, "vertical": ~table.horizontal, "horizontal": table.horizontal}
        figures = {}
        for direction in DIRECTIONS:
            part = table.where(chosen[direction])
            figures[direction] = {name: seam_figure(part, index) for index, name in enumerate(STATISTICS)}
        return SeamReport(self.grid, table, figures)

    def _box(self, block: tuple[Cell, ...]) -> Box:
        boxes = [self.grid.box(cell) for cell in block]
        x, y = (max(0, min(corner) - REACH_PX) for corner in ([b.x for b in boxes], [b.y for b in boxes]))
        return Box(x, y, max(b.right for b in boxes) - x, max(b.bottom for b in boxes) - y)

    def _values(self, pixels: Pixels, frame: Box, places: list[tuple[Cell, bool]]) -> Floats:
        values = np.empty((len(places), len(STATISTICS), 2))
        for number, (cell, horizontal) in enumerate(places):
            box = self.grid.box(cell)
            if horizontal:
                strip = pixels[Box(box.x, box.y - REACH_PX, box.width, box.height + REACH_PX).slices(frame)]
                strip = strip.swapaxes(0, 1)
            else:
                strip = pixels[Box(box.x - REACH_PX, box.y, box.width + REACH_PX, box.height).slices(frame)]
            values[number] = line_values(strip, self.grid.offsets)
        return values


def measure_seams(
    read: Reader,
    size: Size,
    *,
    tile: int,
    origin: tuple[int, int] = (0, 0),
    source: Reader | None = None,
    phase: int = 16,
    mask: TissueMask | None = None,
) -> SeamReport:
    """The seams of an image of ``size`` that was processed in tiles; see ``SeamGrid`` and ``SeamMeter``.

    Raises:
        UsageError: tiles under 64 px, or a phase that leaves no reference lines.
    """
    meter = SeamMeter(SeamGrid(size, tile, origin, phase), read, source=source, mask=mask)
    return meter.report(map(meter.measure, meter.blocks()))


def _with_tissue(mask: TissueMask, grid: SeamGrid) -> npt.NDArray[np.bool_]:
    height, width = mask.mask.shape
    rows = (grid.origin[1] + np.arange(grid.rows + 1) * grid.tile) * (height / grid.size.height)
    cols = (grid.origin[0] + np.arange(grid.cols + 1) * grid.tile) * (width / grid.size.width)
    # a millionth of a mask pixel: what rounding of the edges leaves is no tissue
    found: npt.NDArray[np.bool_] = sums_between(mask.mask, rows, cols) > 1e-6
    return found


def _joined(parts: list[SeamTable], *, with_source: bool) -> SeamTable:
    if not parts:
        nothing = np.empty((0, len(STATISTICS), 2))
        cells = np.empty((0, 2), np.intp)
        return SeamTable(np.empty(0, np.bool_), cells, nothing, nothing if with_source else None)
    return SeamTable(
        np.concatenate([part.horizontal for part in parts]),
        np.concatenate([part.cells for part in parts]),
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.source for part in parts if part.source is not None]) if with_source else None,
    )
