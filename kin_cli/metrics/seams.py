"""What the seam metric measures along one line: six statistics, at a tile's boundary and beside it.

A *line* lies between two neighbouring columns (or rows) of pixels. Everything is averaged along the line over the whole
edge of a tile, which cancels texture; wide bands across it would not, since tissue has more contrast at larger
distances.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from kin_cli.errors import UsageError
from kin_cli.geometry import Box, Cell, Size
from kin_cli.metrics.colour import LINEAR, YCBCR, Floats, Pixels, lab_of_linear
from kin_cli.slide.resample import sums_between
from kin_cli.slide.tissue import TissueMask

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
Interval = tuple[float, float]

_FLOOR = 0.02  # mean reference, ΔE or 8-bit units; below it, 8-bit rounding is all there is
_FEWEST_FOR_INTERVAL = 20
_ENOUGH_BLOCKS = 10
_BLOCK_TILES = (4, 2, 1)
Reader = Callable[[Box], Pixels]

DIRECTIONS = ("both", "vertical", "horizontal")
_BLOCK_PX = 1024
_WORST = 20


# FROM metrics.seam_lines: What the seam metric measures along one line: six statistics, at a tile's boundary and beside it. A *line* lies between two neighbouring columns (or rows) of pixels. Everything is averaged along the line over the whole edge of a tile, which cancels texture; wide bands across it would not, since tissue has more contrast at larger distances.


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


# FROM metrics.seam_figures: From a table of boundaries to the figures of the seam metric: ratio, interval, excess. No random numbers: the interval is a delete-one-block jackknife, since neighbouring boundaries are alike.


@dataclass(frozen=True, eq=False)
class SeamTable:
    """Every boundary that was measured: two numbers per statistic.

    Attributes:
        horizontal: (n,) bool; False for the boundary left of a tile, True for the one above it.
        cells: (n, 2) int, (row, col) of the tile right of or below the boundary.
        values: (n, 6, 2) float64; at the boundary, and the mean over its reference lines; see ``STATISTICS``.
        source: the same of the source image, None without one.
    """

    horizontal: npt.NDArray[np.bool_]
    cells: npt.NDArray[np.intp]
    values: Floats
    source: Floats | None

    def __len__(self) -> int:
        return len(self.cells)

    def where(self, rows: npt.NDArray[np.bool_]) -> SeamTable:
        """The boundaries that ``rows`` (n,) selects."""
        source = None if self.source is None else self.source[rows]
        return SeamTable(self.horizontal[rows], self.cells[rows], self.values[rows], source)


@dataclass(frozen=True)
class SeamResult:
    """One statistic over a set of boundaries.

    Attributes:
        ratio: R, sum at the boundaries over sum at the reference lines; 1 is seamless. None where there is nothing to
            compare with (no boundaries, or a mean reference below 0.02).
        source_ratio: R of the source at the same lines, None without a source.
        ratio_to_source: R* = R / R of the source, the headline where there is a source.
        interval: 95 % interval of R*, or of R without a source; None under 20 boundaries.
        p: one-sided probability of such a ratio without seams, None without an interval.
        excess: root of mean² at the boundaries less what the texture explains, in the statistic's unit: the seam alone.
        boundary: mean at the boundaries.
        reference: mean at the reference lines.
        n: number of boundaries.
        blocks: number of blocks that the jackknife deleted in turn.
    """

    ratio: float | None
    source_ratio: float | None
    ratio_to_source: float | None
    interval: Interval | None
    p: float | None
    excess: float | None
    boundary: float | None
    reference: float | None
    n: int
    blocks: int

    @property
    def headline(self) -> float | None:
        """R* where there is a source, R where there is none."""
        return self.ratio if self.source_ratio is None else self.ratio_to_source


def seam_figure(table: SeamTable, statistic: int) -> SeamResult:
    """The figure of one statistic, by its index in ``STATISTICS``, over all boundaries of ``table``."""
    if not len(table):
        return SeamResult(None, None, None, None, None, None, None, None, 0, 0)
    blocks = _blocks(table.cells)
    found = int(blocks.max()) + 1
    values = table.values[:, statistic]
    at, beside = (float(mean) for mean in values.mean(axis=0))
    ratio = at / beside if beside >= _FLOOR else None
    pair, source_ratio = [values], None
    if table.source is not None:
        pair.append(table.source[:, statistic])
        source_at, source_beside = (float(mean) for mean in pair[1].mean(axis=0))
        source_ratio = source_at / source_beside if source_beside >= _FLOOR else None
    to_source = ratio / source_ratio if ratio is not None and source_ratio else None
    usable = ratio is not None if table.source is None else to_source is not None
    interval, p = _jackknife(pair, blocks) if usable and len(table) >= _FEWEST_FOR_INTERVAL else (None, None)
    explained = beside * (1.0 if source_ratio is None else source_ratio)
    excess = max(0.0, at**2 - explained**2) ** 0.5
    return SeamResult(ratio, source_ratio, to_source, interval, p, excess, at, beside, len(table), found)


def local_excess(table: SeamTable, statistic: int) -> Floats:
    """For each boundary (n,), what neither its reference lines nor the source at this place explain, in its unit.

    What the source shows at the boundary counts with the contrast that the translation gives to the slide as a whole.
    """
    at, explained = table.values[:, statistic, 0], table.values[:, statistic, 1]
    if table.source is not None:
        source_reference = table.source[:, statistic, 1].mean() if len(table) else 0.0
        contrast = explained.mean() / source_reference if source_reference >= _FLOOR else 1.0
        explained = np.maximum(explained, contrast * table.source[:, statistic, 0])
    excess: Floats = np.sqrt(np.maximum(0.0, at**2 - explained**2))
    return excess


def _blocks(cells: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """The number of the block of 4×4 tiles that each boundary lies in; smaller blocks if these are under ten."""
    numbers = np.zeros(len(cells), np.intp)
    for tiles in _BLOCK_TILES:
        _, numbers = np.unique(cells // tiles, axis=0, return_inverse=True)
        numbers = numbers.reshape(-1)
        if len(numbers) and numbers.max() + 1 >= _ENOUGH_BLOCKS:
            break
    return numbers


def _jackknife(pair: list[Floats], blocks: npt.NDArray[np.intp]) -> tuple[Interval | None, float | None]:
    """95 % interval and one-sided p of R (one array in ``pair``) or of R* (two: output, source)."""
    number = int(blocks.max()) + 1
    logs, whole = np.zeros(number), 0.0
    for values, sign in zip(pair, (1, -1), strict=False):
        sums = np.stack([np.bincount(blocks, values[:, side], number) for side in (0, 1)])
        left = sums.sum(axis=1, keepdims=True) - sums
        if number < 2 or left.min() <= 0:
            return None, None
        logs += sign * np.log(left[0] / left[1])
        whole += sign * float(np.log(sums[0].sum() / sums[1].sum()))
    error = float(np.sqrt((number - 1) / number * ((logs - logs.mean()) ** 2).sum()))
    half = float(stats.t.ppf(0.975, number - 1)) * error
    interval = (float(np.exp(whole - half)), float(np.exp(whole + half)))
    if error == 0:
        return interval, float(whole <= 0)
    return interval, float(stats.t.sf(whole / error, number - 1))


# FROM metrics.seams: The seam metric: are the boundaries of the processing grid visible against the slide's own texture? Every boundary of two tiles is compared with lines beside it, at the same phase of JPEG's blocks; with a source, the same comparison there is the control. ``ratio`` is relative to local texture: compare it on one slide. ``excess`` is not: compare it across slides (under 0.5 ΔE is not visible, over 2.3 is, by the usual just noticeable difference). The metric does not see colour that is wrong but smooth.


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
class SeamSummary:
    """The table of boundaries of an image and the figures drawn from it.

    ``figures[direction][statistic]``, with direction "both", "vertical" (boundaries between neighbours in a row) or
    "horizontal", and the statistics of ``STATISTICS``.
    """

    grid: SeamGrid
    table: SeamTable
    figures: dict[str, dict[str, SeamResult]]

    def figure(self, statistic: str = "step", direction: str = "both") -> SeamResult:
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

    def report(self, parts: Iterable[SeamTable]) -> SeamSummary:
        """The figures of what ``measure`` returned for all blocks."""
        table = _joined(list(parts), with_source=self._source is not None)
        every = np.ones(len(table), np.bool_)
        chosen = {"both": every, "vertical": ~table.horizontal, "horizontal": table.horizontal}
        figures = {}
        for direction in DIRECTIONS:
            part = table.where(chosen[direction])
            figures[direction] = {name: seam_figure(part, index) for index, name in enumerate(STATISTICS)}
        return SeamSummary(self.grid, table, figures)

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
) -> SeamSummary:
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
