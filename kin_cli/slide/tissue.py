"""Which part of a view is tissue: a coarse mask, its share of cells, and where there is surely glass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from kin_cli.geometry import Box, Cell, Grid, Size
from kin_cli.slide.base import Pixels
from kin_cli.slide.resample import sums_between
from kin_cli.slide.view import SlideView, overview

Mask = npt.NDArray[np.bool_]

_GLASS_MARGIN_PX = 8

Density = npt.NDArray[np.float32]

# glass: at least so bright, at most so coloured, and not pink; so smooth over 3 × 3 pixels; on so much of the slide
_GLASS_BRIGHTNESS, _GLASS_CHROMA, _GLASS_PINKNESS = 160, 45, 12
_GLASS_RANGE = 10
_GLASS_FRACTION = 1e-3
# tissue: natural optical density of the faintest, and of the strongest glow that dense tissue casts on glass
_FAINTEST, _STRONGEST_GLOW = 0.04, 0.09
_GLOW_REACH_PX, _GLOW_FRACTION = 97, 0.14
# areas in pixels of the overview
_SPECK_PX, _DUST_PX, _HOLE_PX, _UNSCANNED_PX = 16, 600, 400, 256
_DUST_CHROMA = 3
_BLACK = 24


# FROM slide.mask: Which part of a view is tissue: a coarse mask, its share of cells, and where there is surely glass.


@dataclass(frozen=True, eq=False)
class TissueMask:
    """A mask (h, w), True for tissue, stretched over the whole ``out_`` frame, whose size is ``size``."""

    mask: Mask
    size: Size

    @property
    def tissue_fraction(self) -> float:
        """Share of the frame that is tissue, 0 to 1."""
        return float(self.mask.mean())

    def fraction(self, grid: Grid, *, side: int | None = None) -> npt.NDArray[np.float32]:
        """Tissue in each cell of ``grid`` as a share of the full cell (step²), float32 (rows, cols).

        Parts of mask pixels count by their area, and what reaches beyond the frame counts as no tissue: the cells'
        shares times step² sum up to the tissue of the frame. With ``side`` likewise of the square of so many pixels in
        the middle of each cell.
        """
        height, width = self.mask.shape
        side = side or grid.step
        rows = np.minimum(_edges(grid, grid.rows, side), self.size.height) * (height / self.size.height)
        cols = np.minimum(_edges(grid, grid.cols, side), self.size.width) * (width / self.size.width)
        area = side**2 * (height / self.size.height) * (width / self.size.width)
        tissue = sums_between(self.mask, rows, cols)
        if side < grid.step:
            tissue = tissue[::2, ::2]  # every other interval lies between two squares
        fractions: npt.NDArray[np.float32] = (tissue / np.float32(area)).clip(0, 1)
        return fractions

    def background(self, box: Box) -> Mask:
        """Where the pixels of ``box``, inside the frame, are surely glass: bool (h, w).

        Such pixels are at least one mask pixel and at least 8 ``out_`` pixels away from all tissue.
        """
        if box.clipped(self.size) != box:
            raise ValueError(f"{box} reaches beyond the frame, {self.size}")
        height, width = self.mask.shape
        rows = _places(box.y, box.bottom, height / self.size.height)
        cols = _places(box.x, box.right, width / self.size.width)
        return ~self._near_tissue[np.ix_(rows, cols)]

    @cached_property
    def _near_tissue(self) -> Mask:
        scales = (self.mask.shape[0] / self.size.height, self.mask.shape[1] / self.size.width)
        # half an out_ pixel more, since a pixel is looked up by its centre
        reach = [2 * max(1, math.ceil((_GLASS_MARGIN_PX + 0.5) * scale)) + 1 for scale in scales]
        grown: Mask = ndimage.maximum_filter(self.mask, size=reach, mode="constant", cval=0)
        return grown


def all_tissue(size: Size) -> TissueMask:
    """A mask that calls everything tissue."""
    return TissueMask(np.ones((1, 1), np.bool_), size)


def _edges(grid: Grid, count: int, side: int) -> npt.NDArray[np.intp]:
    """Where squares of ``side`` in the middle of ``count`` cells in a row begin and end, each place once."""
    if side == grid.step:
        return np.arange(count + 1) * grid.step
    begin = np.arange(count) * grid.step + grid.middle(Cell(0, 0), side).x
    return np.stack([begin, begin + side], axis=1).ravel()


def _places(start: int, stop: int, scale: float) -> npt.NDArray[np.intp]:
    """The mask pixels under the centres of ``out_`` pixels."""
    return ((np.arange(start, stop) + 0.5) * scale).astype(np.intp)


# FROM slide.tissue: Finding tissue on a bright-field slide, H&E or IHC; the other sources of masks are in ``mask`` and ``mask_file``.


def detect_tissue(view: SlideView) -> TissueMask:
    """Tissue of a slide, found on its ``overview``; where there is no glass to compare with, everything is tissue.

    Memory bound: about 150 MB, on top of the overview's own.
    """
    return TissueMask(tissue_in(overview(view), view.slide.background), view.size)


def tissue_in(pixels: Pixels, fill: tuple[int, int, int]) -> Mask:
    """Tissue on a picture (h, w, 3) of a slide at low resolution; ``fill`` is the colour of what was not scanned.

    Tissue is what is optically denser than the glass in any channel. Small holes are filled; specks, colourless spots
    (dust, bubbles) and black areas (not scanned) are left out; the result is grown by one pixel.
    """
    scanned = ~_large(_brightest(pixels) <= _BLACK, _UNSCANNED_PX)
    glass = _glass_colour(pixels, fill)
    if glass is None:
        return scanned
    density = _density(pixels, glass)
    tissue = density > _thresholds(density)
    del density
    tissue &= scanned
    tissue = ndimage.binary_closing(np.pad(tissue, 2), iterations=2)[2:-2, 2:-2]
    tissue = _without_dust(tissue, pixels)
    tissue = _without_holes(tissue)
    grown: Mask = ndimage.binary_dilation(tissue, structure=np.ones((3, 3), np.bool_))
    return grown


def _glass_colour(pixels: Pixels, fill: tuple[int, int, int]) -> Pixels | None:
    """The commonest colour (3,) of smooth, bright and nearly neutral pixels, or None if there are hardly any.

    Pixels that have exactly the colour ``fill`` are asked last: many slides are white where nothing was scanned, and
    their glass is darker.
    """
    green = pixels[..., 1]
    flat = ndimage.maximum_filter(green, 3) - ndimage.minimum_filter(green, 3) <= _GLASS_RANGE
    flat &= (_brightest(pixels) >= _GLASS_BRIGHTNESS) & (_chroma(pixels) <= _GLASS_CHROMA)
    # a yellow tinge is common in glass; pink and purple are pale tissue
    flat &= np.minimum(pixels[..., 0], pixels[..., 2]) <= green + np.uint16(_GLASS_PINKNESS)
    candidates = pixels[flat]
    scanned = candidates[np.logical_or.reduce([candidates[:, channel] != fill[channel] for channel in range(3)])]
    enough = _GLASS_FRACTION * flat.size
    for found in (scanned, candidates):
        if len(found) >= enough:
            return _mode(found)
    return None


def _mode(colours: Pixels) -> Pixels:
    """The median of the colours (n, 3) around the fullest cell, 4 levels wide, of their histogram."""
    coarse = (colours >> 2).astype(np.int32)
    fullest = int(np.bincount((coarse[:, 0] << 12) | (coarse[:, 1] << 6) | coarse[:, 2]).argmax())
    centre = np.array([fullest >> 12, fullest >> 6 & 63, fullest & 63], np.int16) * 4 + 2
    near = np.logical_and.reduce([np.abs(colours[:, channel] - centre[channel]) <= 6 for channel in range(3)])
    mode: Pixels = np.median(colours[near], axis=0).astype(np.uint8)
    return mode


def _density(pixels: Pixels, glass: Pixels) -> Density:
    """Optical density against ``glass`` in the channel that absorbs most, lightly smoothed: (h, w), at least 0."""
    density = np.zeros(pixels.shape[:2], np.float32)
    values = np.arange(1, 257, dtype=np.float32)
    for channel in range(3):
        table = np.log((glass[channel] + np.float32(1)) / values)
        np.maximum(density, table[pixels[..., channel]], out=density)
    ndimage.gaussian_filter(density, 0.7, output=density)
    return density


def _thresholds(density: Density) -> Density:
    """The density (h, w) above which a pixel is tissue: more beside dense tissue, which casts a glow on the glass."""
    thresholds: Density = ndimage.uniform_filter(density, _GLOW_REACH_PX)
    thresholds *= _GLOW_FRACTION
    thresholds += _FAINTEST
    return np.minimum(thresholds, _STRONGEST_GLOW, out=thresholds)


def _without_dust(tissue: Mask, pixels: Pixels) -> Mask:
    labels, count = ndimage.label(tissue, structure=np.ones((3, 3), np.bool_))
    labels_of_tissue, chroma = labels[tissue], _chroma(pixels)[tissue]
    areas = np.bincount(labels_of_tissue, minlength=count + 1)
    colour = np.bincount(labels_of_tissue, weights=chroma, minlength=count + 1) / np.maximum(areas, 1)
    keep = (areas >= _DUST_PX) | ((areas >= _SPECK_PX) & (colour >= _DUST_CHROMA))
    kept: Mask = keep[labels]
    return kept


def _without_holes(tissue: Mask) -> Mask:
    # the frame joins all glass at the picture's border, which is no hole however small it is
    labels, count = ndimage.label(np.pad(~tissue, 1, constant_values=True))
    fill = np.bincount(labels.ravel(), minlength=count + 1) < _HOLE_PX
    fill[labels[0, 0]] = False
    filled: Mask = tissue | fill[labels[1:-1, 1:-1]]
    return filled


def _brightest(pixels: Pixels) -> Pixels:
    # numpy's max over an axis of length 3 takes ten times as long
    return np.maximum(np.maximum(pixels[..., 0], pixels[..., 1]), pixels[..., 2])


def _chroma(pixels: Pixels) -> Pixels:
    return _brightest(pixels) - np.minimum(np.minimum(pixels[..., 0], pixels[..., 1]), pixels[..., 2])


def _large(mask: Mask, least: int) -> Mask:
    """The connected parts of ``mask`` that have at least ``least`` pixels."""
    labels, count = ndimage.label(mask)
    keep = np.bincount(labels.ravel(), minlength=count + 1) >= least
    keep[0] = False
    kept: Mask = keep[labels]
    return kept
