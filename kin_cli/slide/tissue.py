"""Finding tissue on a bright-field slide, H&E or IHC; the other sources of masks are in ``mask`` and ``mask_file``."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from kin_cli.slide.mask import Mask, TissueMask, all_tissue
from kin_cli.slide.mask_file import load_mask
from kin_cli.slide.source import Pixels
from kin_cli.slide.view import SlideView, overview

__all__ = ["TissueMask", "all_tissue", "detect_tissue", "load_mask", "tissue_in"]

Density = npt.NDArray[np.float32]

# glass: at least so bright, at most so coloured, and not pink; so smooth over 3 × 3 pixels; on so much of the slide
_GLASS_BRIGHTNESS, _GLASS_CHROMA, _GLASS_PINKNESS = 160, 45, 12
_GLASS_RANGE = 10
_GLASS_SHARE = 1e-3
# tissue: natural optical density of the faintest, and of the strongest glow that dense tissue casts on glass
_FAINTEST, _STRONGEST_GLOW = 0.04, 0.09
_GLOW_REACH_PX, _GLOW_SHARE = 97, 0.14
# areas in pixels of the overview
_SPECK_PX, _DUST_PX, _HOLE_PX, _UNSCANNED_PX = 16, 600, 400, 256
_DUST_CHROMA = 3
_BLACK = 24


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
    enough = _GLASS_SHARE * flat.size
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
    thresholds *= _GLOW_SHARE
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
