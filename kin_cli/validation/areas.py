"""What both slides show in every area of 32 µm: densities, stained pixels, nuclei; and the same in larger areas.

Nuclei are found by simple rules, on stain and counterstain at 1 µm per pixel: a nucleus is the highest place, within
4 µm, of the sum of both densities, smoothed with a standard deviation of 1.5 µm, if it exceeds the threshold that parts
the real slide's tissue in two (Otsu). It is positive if the stain's density there, smoothed alike, exceeds the
threshold of staining; weak up to twice, moderate up to three times the threshold, strong beyond.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from kin_cli.geometry import Doubles, Floats, Indices, Mask

BASE_UM = 32
SCALES_UM = (32, 64, 128, 256)
LEAST_TISSUE = 0.5
"""Fraction of an area that must be tissue in both slides."""

BINS = 48
BIN_TOP = 1.5
"""Histograms of the stain's density: 48 bins from 0 to 1.5; the last one also holds what is denser."""

NUCLEUS_UM = 1.5
_APART_UM = 4.0
COLUMNS = ("density", "stained", "integrated", "nuclei", "weak", "moderate", "strong")
"""Sums over an area: of the stain's density, of stained pixels, of the density of stained pixels, and of nuclei."""


@dataclass(frozen=True)
class Rules:
    """Thresholds of the real slide: of the stain's density in a pixel, and of a nucleus."""

    stained: float
    nucleus: float


def measured(densities: Floats, counted: Mask, rules: Rules, side: int) -> tuple[Doubles, Doubles]:
    """What areas of ``side`` pixels show: ``COLUMNS`` (rows, cols, 7) and histograms (rows, cols, BINS).

    ``densities`` (2, h, w) of stain and counterstain; only pixels that are ``counted`` (h, w) count. h and w are
    multiples of ``side``.
    """
    stain = np.where(counted, densities[0], np.float32(0))
    positive = counted & (densities[0] > rules.stained)
    layers = [stain, positive, np.where(positive, stain, 0.0), *nuclei(densities, counted, rules, side)]
    sums = np.stack([_sums(layer, side) for layer in layers], axis=-1)
    rows, cols = sums.shape[:2]
    bins = np.minimum((stain * (BINS / BIN_TOP)).astype(np.intp), BINS - 1)
    area = (np.arange(stain.shape[0]) // side)[:, None] * cols + np.arange(stain.shape[1]) // side
    counts = np.bincount((area * BINS + bins)[counted], minlength=rows * cols * BINS)
    return sums, counts.reshape(rows, cols, BINS).astype(np.float64)


def nuclei(densities: Floats, counted: Mask, rules: Rules, side: int) -> list[Mask]:
    """Where the centres of all nuclei, and of weak, moderate and strong ones are: four masks (h, w)."""
    um = BASE_UM / side
    both, stain = (
        ndimage.gaussian_filter(layer, NUCLEUS_UM / um) for layer in (densities[0] + densities[1], densities[0])
    )
    reach = 2 * max(1, round(_APART_UM / um)) + 1
    centres = counted & (both > rules.nucleus) & (both == ndimage.maximum_filter(both, reach))
    grade = np.floor(np.minimum(stain / max(rules.stained, 1e-6), 3.0))
    return [centres, centres & (grade == 1), centres & (grade == 2), centres & (grade == 3)]


def _sums(layer: Floats | Mask, side: int) -> Doubles:
    rows, cols = layer.shape[0] // side, layer.shape[1] // side
    sums: Doubles = layer.reshape(rows, side, cols, side).sum(axis=(1, 3), dtype=np.float64)
    return sums


@dataclass(frozen=True, eq=False)
class Areas:
    """The areas of one size: all arrays over the same n areas.

    Attributes:
        um: side of an area.
        cells: row and column of each, (n, 2).
        pixels: number of pixels that count in each, (n,).
        sums: for each slide (translation, real, and perhaps the source recoloured), ``COLUMNS`` of each area (n, 7).
        histograms: for each slide (n, BINS).
        um2: area of a pixel, µm².
    """

    um: int
    cells: Doubles
    pixels: Doubles
    sums: tuple[Doubles, ...]
    histograms: tuple[Doubles, ...]
    um2: float

    def density(self, slide: int) -> Doubles:
        """Mean density of the stain in each area (n,)."""
        found: Doubles = self.sums[slide][:, 0] / self.pixels
        return found

    @property
    def clusters(self) -> Indices:
        """Number of the square of 256 µm that each area lies in, (n,): what is drawn in a bootstrap."""
        squares = self.cells // (SCALES_UM[-1] // self.um)
        _, numbers = np.unique(squares, axis=0, return_inverse=True)
        found: Indices = numbers.reshape(-1)
        return found


@dataclass(eq=False)
class AreaTable:
    """All areas of 32 µm of a frame: (rows, cols), filled block by block.

    Memory bound: 1 kB for each area of 32 µm with two slides, 1.4 kB with three; only areas with tissue are kept.
    """

    side: int
    um2: float
    rows: list[Doubles]

    def add(self, origin: tuple[int, int], counted: Mask, slides: Sequence[tuple[Doubles, Doubles]]) -> None:
        """Add the areas of a block whose first area is at ``origin`` (row, col)."""
        pixels = _sums(counted, self.side)
        row, col = np.nonzero(pixels)
        if not len(row):
            return
        columns = [row + origin[0], col + origin[1], pixels[row, col]]
        parts = [np.stack(columns, axis=1), *(part[row, col] for pair in slides for part in pair)]
        self.rows.append(np.concatenate(parts, axis=1).astype(np.float32))

    def areas(self, um: int) -> Areas:
        """The areas of ``um`` µm of which at least half counts."""
        factor = um // BASE_UM
        table = np.concatenate(self.rows).astype(np.float64) if self.rows else np.empty((0, 3))
        cells, owner = np.unique(table[:, :2] // factor, axis=0, return_inverse=True)
        width = len(COLUMNS) + BINS
        slides = (table.shape[1] - 3) // width
        sums = np.zeros((len(cells), table.shape[1] - 2))
        np.add.at(sums, owner.reshape(-1), table[:, 2:])
        kept = sums[:, 0] >= LEAST_TISSUE * (factor * self.side) ** 2
        cells, sums = cells[kept], sums[kept]
        starts = [1 + slide * width for slide in range(slides)]
        return Areas(
            um,
            cells,
            sums[:, 0],
            tuple(sums[:, start : start + len(COLUMNS)] for start in starts),
            tuple(sums[:, start + len(COLUMNS) : start + width] for start in starts),
            self.um2,
        )
