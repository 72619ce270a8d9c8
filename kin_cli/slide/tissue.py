"""Tissue masks, and the detection of tissue on bright-field slides (H&E or IHC).

``TissueMask`` is a coarse mask of a view; it gives the tissue fraction of cells and the pixels that are certainly
background. ``detect_tissue`` makes one from the slide; ``mask_file`` reads one from a file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy import ndimage

from kin_cli.geometry import Box, Cell, Doubles, Floats, Grid, Indices, Mask, Pixels, Size
from kin_cli.slide.resample import sums_between
from kin_cli.slide.view import SlideView, overview

_BACKGROUND_MARGIN_PX = 8  # distance of certain background from tissue, in out_ pixels
# background: least brightness, largest chroma and pinkness (grey levels) of its pixels, largest range of green in 3 × 3
# pixels, and least fraction of the slide
_BACKGROUND_BRIGHTNESS, _BACKGROUND_CHROMA, _BACKGROUND_PINKNESS = 160, 45, 12
_BACKGROUND_RANGE = 10
_BACKGROUND_FRACTION = 1e-3
# natural optical density of the faintest tissue, and of the strongest glow around dense tissue
_FAINTEST, _STRONGEST_GLOW = 0.04, 0.09
_GLOW_REACH_PX, _GLOW_FRACTION = 97, 0.14
# areas in pixels of the overview
_SPECK_PX, _DUST_PX, _HOLE_PX, _UNSCANNED_PX = 16, 600, 400, 256
_DUST_CHROMA = 3
_BLACK = 24


@dataclass(frozen=True, eq=False)
class TissueMask:
    """A mask (h, w), True for tissue, that covers the whole ``out_`` frame, whose size is ``size``.

    ``notes`` tells what a user should know of it, such as objects of the mask's file that were left out.
    """

    mask: Mask
    size: Size
    notes: tuple[str, ...] = ()

    @property
    def tissue_fraction(self) -> float:
        """Fraction of the frame that is tissue, 0 to 1."""
        return float(self.mask.mean())

    def fraction(self, grid: Grid, *, side: int | None = None) -> Floats:
        """Tissue fraction of each cell of ``grid``, 0 to 1, float32 (rows, cols).

        The fraction refers to the full cell (step²): the part of a cell beyond the frame counts as no tissue, and mask
        pixels that lie partly in a cell count with that part. So the fractions times step² sum to the tissue area.
        With ``side`` the fraction is that of the square of ``side`` pixels in the middle of each cell.
        """
        height, width = self.mask.shape
        side = side or grid.step
        rows = np.minimum(_edges(grid, grid.rows, side), self.size.height) * (height / self.size.height)
        cols = np.minimum(_edges(grid, grid.cols, side), self.size.width) * (width / self.size.width)
        area = side**2 * (height / self.size.height) * (width / self.size.width)
        tissue = sums_between(self.mask, rows, cols)
        if side < grid.step:
            tissue = tissue[::2, ::2]  # every other interval lies between two squares
        fractions: Floats = (tissue / np.float32(area)).clip(0, 1)
        return fractions

    def background(self, box: Box) -> Mask:
        """Pixels of ``box`` that are certainly background, bool (h, w); the box must lie inside the frame.

        These are at least one mask pixel and at least 8 ``out_`` pixels away from any tissue.
        """
        if box.clipped(self.size) != box:
            raise ValueError(f"{box} reaches beyond the frame, {self.size}")
        height, width = self.mask.shape
        rows = _sampled(box.y, box.bottom, height / self.size.height)
        cols = _sampled(box.x, box.right, width / self.size.width)
        return ~self._near_tissue[np.ix_(rows, cols)]

    @cached_property
    def _near_tissue(self) -> Mask:
        scales = (self.mask.shape[0] / self.size.height, self.mask.shape[1] / self.size.width)
        # half an out_ pixel more, since background() samples the mask at pixel centres
        reach = [2 * max(1, math.ceil((_BACKGROUND_MARGIN_PX + 0.5) * scale)) + 1 for scale in scales]
        grown: Mask = ndimage.maximum_filter(self.mask, size=reach, mode="constant", cval=0)
        return grown


def window_means(fraction: Doubles, span: int) -> Doubles:
    """Mean of ``fraction`` (rows, cols) in every square of ``span`` cells: (rows - span + 1, cols - span + 1).

    A side with fewer cells than ``span`` counts whole.
    """
    span = min(span, *fraction.shape)
    sums = np.pad(fraction.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    total: Doubles = sums[span:, span:] - sums[:-span, span:] - sums[span:, :-span] + sums[:-span, :-span]
    return total / span**2


def all_tissue(size: Size) -> TissueMask:
    """A mask in which everything is tissue."""
    return TissueMask(np.ones((1, 1), np.bool_), size)


def _edges(grid: Grid, count: int, side: int) -> Indices:
    """Ascending edges, along one axis, of the squares of ``side`` pixels in the middle of ``count`` cells."""
    if side == grid.step:
        return np.arange(count + 1) * grid.step
    begin = np.arange(count) * grid.step + grid.middle(Cell(0, 0), side).x
    return np.stack([begin, begin + side], axis=1).ravel()


def _sampled(start: int, stop: int, scale: float) -> Indices:
    """Indices of the mask pixels under the centres of ``out_`` pixels ``start`` to ``stop``, along one axis."""
    return ((np.arange(start, stop) + 0.5) * scale).astype(np.intp)


# Detection


def tissue_mask(view: SlideView, tissue: str | Path) -> TissueMask:
    """The tissue mask of a view, as the option ``tissue`` says.

    "auto" detects tissue, but takes everything in a photograph; "none" takes everything; a path names a mask file.

    Raises:
        InputError: the mask file cannot be used (see ``mask_file.load_mask``), or the slide is damaged.
    """
    if isinstance(tissue, Path):
        from kin_cli.slide.mask_file import load_mask

        return load_mask(tissue, view)
    if tissue == "none" or not view.slide.expects_background:
        return all_tissue(view.size)
    return detect_tissue(view)


def detect_tissue(view: SlideView) -> TissueMask:
    """Detect the tissue of a slide on its ``overview``; without any background everything scanned is tissue.

    Memory bound: about 150 MB, on top of that of ``overview``.
    """
    return TissueMask(tissue_in(overview(view), view.slide.fill_colour), view.size)


def tissue_in(pixels: Pixels, fill_colour: tuple[int, int, int]) -> Mask:
    """Detect tissue on a low-resolution image (h, w, 3) of a slide; returns bool (h, w).

    A pixel is tissue if its optical density, relative to the background, exceeds a threshold in any channel. Small
    holes are filled; specks, colourless spots (dust, bubbles) and black areas (not scanned) are removed; the result is
    dilated by one pixel. ``fill_colour`` is that of the slide, see ``Slide``.
    """
    scanned = ~_large(_brightest(pixels) <= _BLACK, _UNSCANNED_PX)
    background = _background_colour(pixels, fill_colour)
    if background is None:
        return scanned
    density = _density(pixels, background)
    tissue = density > _thresholds(density)
    del density
    tissue &= scanned
    tissue = ndimage.binary_closing(np.pad(tissue, 2), iterations=2)[2:-2, 2:-2]
    tissue = _without_dust(tissue, pixels)
    tissue = _without_holes(tissue)
    grown: Mask = ndimage.binary_dilation(tissue, structure=np.ones((3, 3), np.bool_))
    return grown


def _background_colour(pixels: Pixels, fill_colour: tuple[int, int, int]) -> Pixels | None:
    """The most frequent colour (3,) among smooth, bright and nearly neutral pixels; None if there are too few.

    Pixels of exactly ``fill_colour`` count only if the others are too few: many slides are white where nothing was
    scanned, while their background is darker.
    """
    green = pixels[..., 1]
    flat = ndimage.maximum_filter(green, 3) - ndimage.minimum_filter(green, 3) <= _BACKGROUND_RANGE
    flat &= (_brightest(pixels) >= _BACKGROUND_BRIGHTNESS) & (_chroma(pixels) <= _BACKGROUND_CHROMA)
    # background often has a yellow tinge; pink and purple are pale tissue
    flat &= np.minimum(pixels[..., 0], pixels[..., 2]) <= green + np.uint16(_BACKGROUND_PINKNESS)
    candidates = pixels[flat]
    scanned = candidates[np.logical_or.reduce([candidates[:, channel] != fill_colour[channel] for channel in range(3)])]
    enough = _BACKGROUND_FRACTION * flat.size
    for found in (scanned, candidates):
        if len(found) >= enough:
            return _mode(found)
    return None


def _mode(colours: Pixels) -> Pixels:
    """The mode of colours (n, 3): the median (3,) of those near the fullest bin (4 levels wide) of their histogram."""
    coarse = (colours >> 2).astype(np.int32)
    fullest = int(np.bincount((coarse[:, 0] << 12) | (coarse[:, 1] << 6) | coarse[:, 2]).argmax())
    centre = np.array([fullest >> 12, fullest >> 6 & 63, fullest & 63], np.int16) * 4 + 2
    near = np.logical_and.reduce([np.abs(colours[:, channel] - centre[channel]) <= 6 for channel in range(3)])
    mode: Pixels = np.median(colours[near], axis=0).astype(np.uint8)
    return mode


def _density(pixels: Pixels, background: Pixels) -> Floats:
    """Natural optical density relative to ``background`` (3,), largest of the channels, smoothed: (h, w), ≥ 0."""
    density = np.zeros(pixels.shape[:2], np.float32)
    values = np.arange(1, 257, dtype=np.float32)
    for channel in range(3):
        table = np.log((background[channel] + np.float32(1)) / values)
        np.maximum(density, table[pixels[..., channel]], out=density)
    ndimage.gaussian_filter(density, 0.7, output=density)
    return density


def _thresholds(density: Floats) -> Floats:
    """The density (h, w) above which a pixel is tissue: higher near dense tissue, whose glow darkens the background."""
    thresholds: Floats = ndimage.uniform_filter(density, _GLOW_REACH_PX)
    thresholds *= _GLOW_FRACTION
    thresholds += _FAINTEST
    return np.minimum(thresholds, _STRONGEST_GLOW, out=thresholds)


def _without_dust(tissue: Mask, pixels: Pixels) -> Mask:
    """The mask without specks, and without small parts that are colourless."""
    labels, count = ndimage.label(tissue, structure=np.ones((3, 3), np.bool_))
    labels_of_tissue, chroma = labels[tissue], _chroma(pixels)[tissue]
    areas = np.bincount(labels_of_tissue, minlength=count + 1)
    colour = np.bincount(labels_of_tissue, weights=chroma, minlength=count + 1) / np.maximum(areas, 1)
    keep = (areas >= _DUST_PX) | ((areas >= _SPECK_PX) & (colour >= _DUST_CHROMA))
    kept: Mask = keep[labels]
    return kept


def _without_holes(tissue: Mask) -> Mask:
    """The mask with small holes filled."""
    # the padding joins all background that touches the image border, so that it never counts as a hole
    labels, count = ndimage.label(np.pad(~tissue, 1, constant_values=True))
    fill = np.bincount(labels.ravel(), minlength=count + 1) < _HOLE_PX
    fill[labels[0, 0]] = False
    filled: Mask = tissue | fill[labels[1:-1, 1:-1]]
    return filled


def _brightest(pixels: Pixels) -> Pixels:
    # ten times as fast as numpy's max over an axis of length 3
    return np.maximum(np.maximum(pixels[..., 0], pixels[..., 1]), pixels[..., 2])


def _chroma(pixels: Pixels) -> Pixels:
    return _brightest(pixels) - np.minimum(np.minimum(pixels[..., 0], pixels[..., 1]), pixels[..., 2])


def _large(mask: Mask, least: int) -> Mask:
    """The connected parts of ``mask`` with at least ``least`` pixels."""
    labels, count = ndimage.label(mask)
    keep = np.bincount(labels.ravel(), minlength=count + 1) >= least
    keep[0] = False
    kept: Mask = keep[labels]
    return kept
