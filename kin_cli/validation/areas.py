"""What both slides show in every area of 32 µm: densities, stained pixels, nuclei; and the same in larger areas.

Nuclei are found by simple rules, on stain and counterstain at 1 µm per pixel: a nucleus is the highest place, within
4 µm, of the sum of both densities, smoothed with a standard deviation of 1.5 µm, if it exceeds the threshold that parts
the real slide's tissue in two (Otsu). It is positive if the stain's density there, smoothed alike, exceeds the
threshold of staining; weak up to twice, moderate up to three times the threshold, strong beyond.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy import ndimage

from kin_cli.geometry import AnyArray, Doubles, Floats, Indices, Mask

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
    """The areas of one size: all arrays over the same n areas, but for ``histograms``, which are over their m squares.

    Attributes:
        um: side of an area.
        cells: row and column of each, (n, 2).
        pixels: number of pixels that count in each, (n,).
        sums: for each slide (translation, real, and perhaps the source recoloured), ``COLUMNS`` of each area (n, 7).
        histograms: for each slide those of all areas of a square of 256 µm together (m, BINS), see ``clusters``.
        um2: area of a pixel, µm².
    """

    um: int
    cells: Indices
    pixels: Doubles
    sums: tuple[Floats, ...]
    histograms: tuple[Floats, ...]
    um2: float

    def density(self, slide: int) -> Doubles:
        """Mean density of the stain in each area (n,)."""
        found: Doubles = self.sums[slide][:, 0] / self.pixels
        return found

    @cached_property
    def clusters(self) -> Indices:
        """Number of the square of 256 µm that each area lies in, (n,), row by row: what is drawn in a bootstrap."""
        found: Indices = np.unique(self.cells // _per_square(self.um), axis=0, return_inverse=True)[1].reshape(-1)
        return found


@dataclass(eq=False)
class AreaTable:
    """All areas of a frame at all sizes, filled block by block.

    Memory bound: for each area of 32 µm with tissue 0.2 kB with three slides, histograms included, and half as much
    again while ``areas`` joins the blocks: 0.2 GB for 25 × 25 mm full of tissue.
    """

    side: int
    um2: float
    _parts: dict[int, list[_Part]] = field(default_factory=dict)

    def add(self, origin: tuple[int, int], counted: Mask, slides: Sequence[tuple[Doubles, Doubles]]) -> None:
        """Add the areas of a block whose first area is at ``origin`` (row, col), the corner of a square of 256 µm."""
        pixels = _filled(_sums(counted, self.side)[..., None])
        filled = [(_filled(sums), _filled(histograms)) for sums, histograms in slides]
        for um in SCALES_UM:
            factor = um // BASE_UM
            own = _added(pixels, factor)[..., 0]
            kept = own >= LEAST_TISSUE * (factor * self.side) ** 2
            if not kept.any():
                continue
            cells = np.argwhere(kept) + np.array(origin) // factor
            sums = [_added(one, factor)[kept].astype(np.float32) for one, _ in filled]
            per = _per_square(um)
            squares = _added(kept[..., None], per)[..., 0] > 0
            histograms = [
                _added(_added(counts, factor) * kept[..., None], per)[squares].astype(np.float32)
                for _, counts in filled
            ]
            corners = np.argwhere(squares) + np.array(origin) // _per_square(BASE_UM)
            part = _Part(cells.astype(np.int32), own[kept], sums, corners.astype(np.int32), histograms)
            self._parts.setdefault(um, []).append(part)

    def areas(self, um: int) -> Areas:
        """The areas of ``um`` µm, one of ``SCALES_UM``, of which at least half counts, row by row."""
        parts = self._parts.get(um, [])
        if not parts:
            none = np.zeros((0, 2), np.intp)
            return Areas(um, none, np.zeros(0), (np.zeros((0, len(COLUMNS)), np.float32),) * 2, (), self.um2)
        cells = np.concatenate([part.cells for part in parts])
        order = np.lexsort(cells.T[::-1])
        pixels = np.concatenate([part.pixels for part in parts])[order]
        sums = tuple(np.concatenate([part.sums[n] for part in parts])[order] for n in range(len(parts[0].sums)))
        corners = np.concatenate([part.squares for part in parts])
        by_square = np.lexsort(corners.T[::-1])
        histograms = tuple(np.concatenate([part.histograms[n] for part in parts])[by_square] for n in range(len(sums)))
        return Areas(um, cells[order].astype(np.intp), pixels, sums, histograms, self.um2)


@dataclass(frozen=True, eq=False)
class _Part:
    """The areas of one size in a block, and histograms of the squares of 256 µm that hold any."""

    cells: AnyArray
    pixels: Doubles
    sums: list[Floats]
    squares: AnyArray
    histograms: list[Floats]


def _per_square(um: int) -> int:
    """Number of areas along a square of 256 µm."""
    return SCALES_UM[-1] // um


def _filled(values: Doubles) -> Doubles:
    """Values of areas of 32 µm (rows, cols, c), with 0 up to whole squares of 256 µm."""
    step = _per_square(BASE_UM)
    return np.pad(values, [(0, -values.shape[0] % step), (0, -values.shape[1] % step), (0, 0)])


def _added(values: AnyArray, factor: int) -> Doubles:
    """Sums over squares of ``factor`` × ``factor`` of values (rows, cols, c)."""
    rows, cols, depth = values.shape
    shape = (rows // factor, factor, cols // factor, factor, depth)
    sums: Doubles = values.reshape(shape).sum(axis=(1, 3), dtype=np.float64)
    return sums
