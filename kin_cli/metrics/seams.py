"""The seam metric: are the borders between patches visible against the slide's own texture?

Every border between two patches is compared with *reference lines* parallel to it inside the patch, at the same phase
of JPEG's blocks; if a source is given, the same comparison on the source is the control. ``ratio`` is relative to local
texture: compare it within one slide. ``excess`` is not: compare it across slides (under 0.5 ΔE it is not visible, over
2.3, the usual just noticeable difference, it is). The metric does not see colour that is wrong but smooth.

A *line* lies between two neighbouring columns (or rows) of pixels. Pixels are averaged along the line over the whole
edge of a patch, which cancels texture. Wide bands across the line would not cancel it, since tissue has more contrast
at larger distances. There are no random numbers: the interval is a delete-one-block jackknife over blocks of 4×4
patches, since neighbouring borders are alike.
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
from kin_cli.geometry import Box, Cell, Doubles, Mask, Pixels, Size
from kin_cli.metrics.colour import LINEAR, YCBCR, lab_of_linear
from kin_cli.slide.resample import sums_between
from kin_cli.slide.tissue import TissueMask

Interval = tuple[float, float]
Reader = Callable[[Box], Pixels]

DIRECTIONS = ("both", "vertical", "horizontal")

STATISTICS = ("step", "step_luma", "ramp16", "ramp64", "line", "fine")
"""Names of the statistics, in the order of ``SeamTable.values``.

step: ΔE*ab between the mean linear colours of the two columns of pixels that touch the line. step_luma: the same in Y'
(8-bit units), which chroma subsampling does not change. ramp16, ramp64: as step, between bands of 4 and 16 pixels that
begin 4 and 16 pixels from the line, for patches that were cross-faded. line: ΔE*ab between the 4 pixels at the line and
those around them, for frames. fine: mean |difference| of touching pixels, not averaged along the line, for texture that
does not continue.
"""

FEWEST_BORDERS = 30
"""With fewer borders a ratio says more about the tissue at these few places than about seams."""

UNITS = {name: "8-bit" if name in ("step_luma", "fine") else "ΔE" for name in STATISTICS}
"""Unit of each statistic."""

REACH_PX = 32
"""Pixels that the statistics read on either side of a line."""

_CODEC_PERIOD_PX = 16  # JPEG 4:2:0 codes chroma in blocks of 16 pixels
_FLOOR = 0.02  # mean at the reference lines, ΔE or 8-bit units; smaller values are rounding to 8 bits
_ENOUGH_BLOCKS = 10
_BLOCK_PATCHES = (4, 2, 1)  # side of a jackknife block
_READ_PX = 1024
_WORST = 20


@dataclass(frozen=True)
class SeamGrid:
    """The grid of patches whose borders are measured; only whole patches count.

    Attributes:
        size: size of the image.
        patch_px: side of a patch in pixels, at least 64.
        origin: (x, y) of the corner of the first whole patch. For overlapping windows: of the first crossing of the
            lines in the middle of the overlaps.
        phase: distances of the reference lines from a border are multiples of this, in pixels; a multiple of 16, the
            period of JPEG's artefacts, which would otherwise look like seams or hide them.

    Raises:
        UsageError: patches under 64 px, or a phase that leaves no reference lines.
    """

    size: Size
    patch_px: int
    origin: tuple[int, int] = (0, 0)
    phase: int = _CODEC_PERIOD_PX

    def __post_init__(self) -> None:
        if self.patch_px < 2 * REACH_PX:
            hint = f"at least {2 * REACH_PX} px"
            raise UsageError(f"seams cannot be measured between patches of {self.patch_px} px", hint)
        if min(self.origin) < 0:
            raise ValueError(f"the grid begins outside the image, at {self.origin}")
        if self.phase < _CODEC_PERIOD_PX or self.phase % _CODEC_PERIOD_PX or len(self.offsets) == 0:
            hint = f"a multiple of {_CODEC_PERIOD_PX} that leaves reference lines within a patch"
            raise UsageError(f"a phase of {self.phase} px does not suit patches of {self.patch_px} px", hint)

    @property
    def cols(self) -> int:
        """Number of whole patches side by side."""
        return max(0, (self.size.width - self.origin[0]) // self.patch_px)

    @property
    def rows(self) -> int:
        """Number of whole patches one below the other."""
        return max(0, (self.size.height - self.origin[1]) // self.patch_px)

    @cached_property
    def offsets(self) -> npt.NDArray[np.intp]:
        """Distances (px) of the reference lines from a border, into the patch right of or below it."""
        margin = max(REACH_PX, math.ceil(self.patch_px / 8))
        first = math.ceil(margin / self.phase) * self.phase
        return np.arange(first, self.patch_px - margin + 1, self.phase)

    def box(self, cell: Cell) -> Box:
        """Return the square of a patch, in pixels of the image."""
        x, y = self.origin
        return Box(x + cell.col * self.patch_px, y + cell.row * self.patch_px, self.patch_px, self.patch_px)


@dataclass(frozen=True, eq=False)
class SeamTable:
    """All borders measured: two values per statistic.

    Attributes:
        horizontal: (n,) bool; False for the border left of a patch, True for the one above it.
        cells: (n, 2) int, (row, col) of the patch right of or below the border.
        values: (n, 6, 2) float64; at the border, and the mean over its reference lines; see ``STATISTICS``.
        source: the same for the source image; None without a source.
    """

    horizontal: npt.NDArray[np.bool_]
    cells: npt.NDArray[np.intp]
    values: Doubles
    source: Doubles | None

    def __len__(self) -> int:
        return len(self.cells)

    def where(self, rows: npt.NDArray[np.bool_]) -> SeamTable:
        """Return the borders that ``rows`` (n,) selects."""
        source = None if self.source is None else self.source[rows]
        return SeamTable(self.horizontal[rows], self.cells[rows], self.values[rows], source)


@dataclass(frozen=True)
class SeamResult:
    """Result of one statistic over a set of borders.

    Attributes:
        ratio: R, sum at the borders over sum at the reference lines; 1 means seamless. None without borders, or
            if the mean at the reference lines is below 0.02.
        source_ratio: R of the source at the same lines; None without a source.
        ratio_to_source: R* = R / R of the source; the headline if there is a source.
        interval: 95 % interval of R*, or of R without a source; None for fewer than 30 borders.
        p: one-sided p value of the ratio under the hypothesis of no seams; None without an interval.
        excess: √(mean² at the borders - mean² that texture explains), in the statistic's unit: the seam alone.
        boundary: mean at the borders.
        reference: mean at the reference lines.
        n: number of borders.
        blocks: number of blocks that the jackknife left out in turn.
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
    def too_few(self) -> bool:
        """Whether there are some borders, but fewer than it takes to judge seams by their ratio."""
        return 0 < self.n < FEWEST_BORDERS

    @property
    def headline(self) -> float | None:
        """R* if there is a source, else R."""
        return self.ratio if self.source_ratio is None else self.ratio_to_source


@dataclass(frozen=True)
class SeamLine:
    """One border: from (x, y), ``length`` pixels downwards (direction "vertical") or to the right ("horizontal")."""

    direction: str
    x: int
    y: int
    length: int
    value: float
    reference: float
    excess: float

    @property
    def middle(self) -> tuple[int, int]:
        """The (x, y) of the middle of the border."""
        along = self.length // 2
        return (self.x, self.y + along) if self.direction == "vertical" else (self.x + along, self.y)


@dataclass(frozen=True, eq=False)
class SeamSummary:
    """The borders of an image, and the results over them.

    ``results[direction][statistic]``: direction is "both", "vertical" (borders between neighbours in a row) or
    "horizontal", statistic one of ``STATISTICS``.
    """

    grid: SeamGrid
    table: SeamTable
    results: dict[str, dict[str, SeamResult]]

    def result(self, statistic: str = "step", direction: str = "both") -> SeamResult:
        """Return the result of one statistic in one direction."""
        return self.results[direction][statistic]

    def lines(self, statistic: str = "step") -> list[SeamLine]:
        """Return every border, in the order of the table."""
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
        """Return up to ``count`` borders with the largest excess, worst first; none with an excess of 0."""
        ranked = sorted(self.lines(statistic), key=lambda line: -line.excess)
        return [line for line in ranked[:count] if line.excess > 0]

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the table, ready for JSON."""
        return {
            "patch_px": self.grid.patch_px,
            "origin": list(self.grid.origin),
            "phase_px": self.grid.phase,
            "offsets": len(self.grid.offsets),
            "against_source": self.table.source is not None,
            "units": UNITS,
            **{
                direction: {name: asdict(result) for name, result in results.items()}
                for direction, results in self.results.items()
            },
            "worst": [asdict(line) for line in self.worst()],
        }


class SeamMeter:
    """Measure an image block by block: ``summary(map(measure, blocks()))``, in any order, on any number of threads.

    ``mask`` restricts it to borders between two patches that both have tissue. ``read`` and ``source`` return the
    pixels of a box inside the image, (h, w, 3) uint8 RGB.

    Memory bound: two blocks of (1024 + 32)² pixels (of one patch, if that is larger) per thread, and 250 bytes per
    border: 20 MB for 10 gigapixels in patches of 512 px.
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

    def blocks(self) -> Iterator[tuple[Cell, ...]]:
        """Yield the patches of each block that is read at once, without patches that have no border to measure."""
        step = max(1, _READ_PX // self.grid.patch_px)
        for top in range(0, self.grid.rows, step):
            for left in range(0, self.grid.cols, step):
                rows, cols = slice(top, top + step), slice(left, left + step)
                found = np.argwhere(self._left[rows, cols] | self._above[rows, cols])
                if len(found):
                    yield tuple(Cell(top + row, left + col) for row, col in found.tolist())

    def measure(self, block: tuple[Cell, ...]) -> SeamTable:
        """Measure the borders left of and above the patches of a block."""
        places = [(cell, False) for cell in block if self._left[cell]]
        places += [(cell, True) for cell in block if self._above[cell]]
        box = self._box(block)
        return SeamTable(
            np.array([horizontal for _, horizontal in places]),
            np.array([cell for cell, _ in places], np.intp),
            self._values(self._read(box), box, places),
            None if self._source is None else self._values(self._source(box), box, places),
        )

    def summary(self, parts: Iterable[SeamTable]) -> SeamSummary:
        """Compute the results from the tables of all blocks."""
        table = _joined(list(parts), with_source=self._source is not None)
        results = {}
        for direction, part in by_direction(table).items():
            results[direction] = {name: seam_result(part, index) for index, name in enumerate(STATISTICS)}
        return SeamSummary(self.grid, table, results)

    def _box(self, block: tuple[Cell, ...]) -> Box:
        boxes = [self.grid.box(cell) for cell in block]
        x, y = (max(0, min(corner) - REACH_PX) for corner in ([b.x for b in boxes], [b.y for b in boxes]))
        return Box(x, y, max(b.right for b in boxes) - x, max(b.bottom for b in boxes) - y)

    def _values(self, pixels: Pixels, frame: Box, places: list[tuple[Cell, bool]]) -> Doubles:
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


def line_values(strip: Pixels, offsets: npt.NDArray[np.intp]) -> Doubles:
    """Return each statistic at a border, and its mean over the reference lines: (6, 2).

    ``strip`` (along, 32 + patch, 3) has the border between its columns 31 and 32.
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


def seam_result(table: SeamTable, statistic: int) -> SeamResult:
    """Compute the result of one statistic (index in ``STATISTICS``) over all borders of ``table``."""
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
    interval, p = _jackknife(pair, blocks) if usable and len(table) >= FEWEST_BORDERS else (None, None)
    explained = beside * (1.0 if source_ratio is None else source_ratio)
    excess = max(0.0, at**2 - explained**2) ** 0.5
    return SeamResult(ratio, source_ratio, to_source, interval, p, excess, at, beside, len(table), found)


def local_excess(table: SeamTable, statistic: int) -> Doubles:
    """Excess of each border (n,): its value beyond the larger of its reference and the source's value at this place.

    In the statistic's unit. The source's value is first scaled by the ratio of the mean references of translation and
    source, since the translation can have more or less contrast.
    """
    at, explained = table.values[:, statistic, 0], table.values[:, statistic, 1]
    if table.source is not None:
        source_reference = table.source[:, statistic, 1].mean() if len(table) else 0.0
        contrast = explained.mean() / source_reference if source_reference >= _FLOOR else 1.0
        explained = np.maximum(explained, contrast * table.source[:, statistic, 0])
    excess: Doubles = np.sqrt(np.maximum(0.0, at**2 - explained**2))
    return excess


def by_direction(table: SeamTable) -> dict[str, SeamTable]:
    """Split a table by direction: both, vertical, horizontal."""
    every = np.ones(len(table), np.bool_)
    chosen = (every, ~table.horizontal, table.horizontal)
    return {name: table.where(rows) for name, rows in zip(DIRECTIONS, chosen, strict=True)}


def _band(linear: Doubles, starts: npt.NDArray[np.intp], width: int) -> Doubles:
    """Mean colour of ``width`` columns from each start: (starts, 3)."""
    band: Doubles = linear[starts[:, None] + np.arange(width)].mean(axis=1)
    return band


def _distance(one: Doubles, other: Doubles) -> Doubles:
    """ΔE*ab (CIE 1976) between linear colours (n, 3) and (n, 3): (n,)."""
    distance: Doubles = np.linalg.norm(lab_of_linear(one) - lab_of_linear(other), axis=-1)
    return distance


def _blocks(cells: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Number of each border's jackknife block, (n,): 4×4 patches, or smaller if there would be under ten blocks."""
    numbers = np.zeros(len(cells), np.intp)
    for side in _BLOCK_PATCHES:
        _, numbers = np.unique(cells // side, axis=0, return_inverse=True)
        numbers = numbers.reshape(-1)
        if len(numbers) and numbers.max() + 1 >= _ENOUGH_BLOCKS:
            break
    return numbers


def _jackknife(pair: list[Doubles], blocks: npt.NDArray[np.intp]) -> tuple[Interval | None, float | None]:
    """95 % interval and one-sided p of R (``pair`` holds one array) or of R* (two: translation, source)."""
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


def _with_tissue(mask: TissueMask, grid: SeamGrid) -> Mask:
    """Select the patches that have tissue: (rows, cols)."""
    height, width = mask.mask.shape
    rows = (grid.origin[1] + np.arange(grid.rows + 1) * grid.patch_px) * (height / grid.size.height)
    cols = (grid.origin[0] + np.arange(grid.cols + 1) * grid.patch_px) * (width / grid.size.width)
    # A millionth of a mask pixel: rounding at the edges can leave a little.
    found: Mask = sums_between(mask.mask, rows, cols) > 1e-6
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
