"""Slides as registration sees them: density and tissue at a coarse resolution, and the pieces that the tissue forms.

Positions are in µm from the corner of level 0, x to the right and y down, so that they do not depend on a resolution.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from scipy import ndimage

from kin_cli.errors import InputError, NoTissueError
from kin_cli.geometry import Doubles, Floats, Mask, Size
from kin_cli.slide.tissue import TissueMask, detect_tissue, tissue_mask
from kin_cli.slide.view import SlideView, averaged, overview

if TYPE_CHECKING:
    from numpy.typing import NDArray

Labels: TypeAlias = "NDArray[np.uint8]"
"""Numbers of pieces (h, w), from 1; 0: none."""

FINEST_UM = 8.0
"""Resolution of the finest level that is registered, µm per pixel, unless the slide would exceed ``_MAX_SIDE``."""

_MAX_SIDE = 2048
_SAME_UM = 0.005  # relative difference of resolutions that is none
_PARTED_SIDE = 1536
_ROUGH_SIDE = 1024
_BLACK = 24  # grey level
_STRIP_ROWS, _READERS = 512, 4
_BACKGROUND_PERCENTILE = 90
_GAP_UM = 96.0  # parts of tissue that are nearer than this are one piece
_NECK_UM = 192.0  # and are parted where they are narrower than this, if they moved apart
_SMALLEST_MM2, _SMALLEST_FRACTION = 0.1, 0.01
_MOST_PIECES = 24


@dataclass(frozen=True, eq=False)
class Section:
    """A slide at one resolution: density and tissue, both (h, w).

    Attributes:
        density: the least of R, G and B, inverted and scaled so that 0 is background and 1 is black; float32.
        tissue: where there is tissue.
        um: width and height of a pixel in µm; the two differ by rounding only.
    """

    density: Floats
    tissue: Mask
    um: tuple[float, float]

    @property
    def extent_um(self) -> tuple[float, float]:
        """Width and height of the slide."""
        height, width = self.density.shape
        return width * self.um[0], height * self.um[1]

    def at(self, um: float) -> Section:
        """The section reduced by area averaging to about ``um`` µm per pixel; itself if it is not finer."""
        factor = max(1, round(um / self.um[0]))
        if factor == 1:
            return self
        height, width = self.density.shape
        rows, cols = -(-height // factor), -(-width // factor)
        spare = ((0, rows * factor - height), (0, cols * factor - width))
        density = np.pad(self.density, spare).reshape(rows, factor, cols, factor).mean(axis=(1, 3))
        tissue = np.pad(self.tissue, spare).reshape(rows, factor, cols, factor).mean(axis=(1, 3)) >= 0.5
        return Section(density, tissue, (self.um[0] * factor, self.um[1] * factor))

    def resampled(self, um: float) -> Section:
        """The section at exactly ``um`` µm per pixel, both ways; coarser by area averaging, then bilinear."""
        near = self.at(um) if um >= 2 * self.um[0] else self
        if max(abs(um / near.um[0] - 1), abs(um / near.um[1] - 1)) < _SAME_UM:
            return near
        width, height = (max(1, round(extent / um)) for extent in self.extent_um)
        rows, cols = near.indices(centres((height, width), (um, um)))
        density = ndimage.map_coordinates(near.density, (rows, cols), order=1, mode="nearest")
        tissue = ndimage.map_coordinates(near.tissue.astype(np.float32), (rows, cols), order=1, mode="nearest")
        return Section(density, tissue >= 0.5, (um, um))

    def scaled(self, factor: float) -> Section:
        """The section as if its pixels were ``factor`` times as large."""
        return self if factor == 1.0 else replace(self, um=(self.um[0] * factor, self.um[1] * factor))

    def of_mask(self, mask: Mask, other: Section) -> Mask:
        """A mask of another resolution of the same slide at this one's: pixels of which it fills half or more."""
        whole = replace(other, density=mask.astype(np.float32), tissue=mask)
        return whole.resampled(self.um[0]).density >= 0.5

    def mirrored(self) -> Section:
        """The section as seen from the other side of the glass: left and right exchanged."""
        return Section(self.density[:, ::-1].copy(), self.tissue[:, ::-1].copy(), self.um)

    def indices(self, points: Doubles) -> tuple[Doubles, Doubles]:
        """Row and column (…) of points (…, 2) in µm, in pixels whose centres are whole numbers."""
        return points[..., 1] / self.um[1] - 0.5, points[..., 0] / self.um[0] - 0.5

    def centres_of(self, where: Mask, *, step: int = 1) -> Doubles:
        """Centres of the pixels of a mask (h, w), every ``step``-th of each row and column, (n, 2) in µm, x first."""
        rows, cols = np.nonzero(where[::step, ::step])
        return np.stack([(cols * step + 0.5) * self.um[0], (rows * step + 0.5) * self.um[1]], axis=-1)

    def is_tissue(self, points: Doubles) -> Mask:
        """Whether there is tissue at points (n, 2) in µm; none beyond the slide."""
        at = [np.floor(values + 0.5) for values in self.indices(points)]
        inside = np.logical_and.reduce([(v >= 0) & (v < n) for v, n in zip(at, self.tissue.shape, strict=True)])
        found: Mask = np.zeros(len(points), np.bool_)
        found[inside] = self.tissue[tuple(v[inside].astype(np.intp) for v in at)]
        return found


def centres(shape: tuple[int, ...], um: tuple[float, float]) -> Doubles:
    """Centres of the pixels of an image of (h, w) pixels of ``um`` µm, (h, w, 2) in µm, x first."""
    x, y = (np.arange(shape[1]) + 0.5) * um[0], (np.arange(shape[0]) + 0.5) * um[1]
    return np.stack(np.meshgrid(x, y), axis=-1)


def read_section(
    view: SlideView, *, tissue: str | Path = "auto", mpp: float | None = None, finest_um: float | None = FINEST_UM
) -> Section:
    """Read a whole slide at ``finest_um`` µm per pixel, or coarser if it would have over 2048 pixels on a side.

    ``mpp`` is the pixel size of the view, if it is not that of its file. With ``finest_um`` None the section has 1024
    pixels on its longer side. ``tissue`` is "auto", "none" or the path of a mask, see ``tissue_mask``.

    Memory bound: 150 MB for the tissue and 10 bytes for each of at most 2048² pixels.

    Raises:
        InputError: the pixel size of the slide is unknown.
        NoTissueError: it shows no tissue.
    """
    path, mpp = view.slide.path, mpp or view.mpp
    if mpp is None:
        raise InputError(f"{path}: the pixel size is not known", "state it in µm: --source-mpp, --real-mpp")
    longest = max(view.size.width, view.size.height)
    wanted = _ROUGH_SIDE if finest_um is None else max(64, round(longest * mpp / finest_um))
    side = min(_MAX_SIDE, wanted, longest)
    # tissue_mask would take all of a photograph, but its outline is the best guide to where it lies
    mask = detect_tissue(view) if tissue == "auto" else tissue_mask(view, tissue)
    if not mask.mask.any():
        raise NoTissueError(f"{path}: no tissue in it", "--tissue none takes all of it as tissue")
    darkest = _darkest(view, side)
    height, width = darkest.shape
    um = (view.size.width * mpp / width, view.size.height * mpp / height)
    found = _resized(mask, Size(width, height))
    black = ~found & (darkest <= _BLACK)
    outside = darkest[~found & ~black]
    white = float(np.median(outside)) if outside.size > 100 else float(np.percentile(darkest, _BACKGROUND_PERCENTILE))
    levels = np.clip(1.0 - np.arange(256, dtype=np.float32) / np.float32(max(white, 1.0)), 0.0, 1.0)
    density: Floats = levels[darkest]
    density[black] = 0.0  # not scanned, or a pen
    return Section(density, found, um)


def _darkest(view: SlideView, side: int) -> NDArray[np.uint8]:
    """The least of R, G and B (h, w) of an overview, which is read in strips if it is large."""
    longest = max(view.size.width, view.size.height)
    if side >= longest:
        whole: NDArray[np.uint8] = overview(view, side).min(axis=-1)
        return whole
    width, height = (max(1, round(n * side / longest)) for n in (view.size.width, view.size.height))
    left, top = view.region.x / view.frame.width, view.region.y / view.frame.height
    wide, high = view.region.width / view.frame.width, view.region.height / view.frame.height
    found = np.empty((height, width), np.uint8)
    for row in range(0, height, _STRIP_ROWS):
        rows = min(_STRIP_ROWS, height - row)
        part = left, top + high * row / height, left + wide, top + high * (row + rows) / height
        pixels = averaged(view.slide, part, Size(width, rows), workers=_READERS)
        pixels.min(axis=-1, out=found[row : row + rows])
    return found


def _resized(mask: TissueMask, size: Size) -> Mask:
    """The mask at another size, by the pixel under the centre of each."""
    height, width = mask.mask.shape
    rows = ((np.arange(size.height) + 0.5) * height / size.height).astype(np.intp)
    cols = ((np.arange(size.width) + 0.5) * width / size.width).astype(np.intp)
    found: Mask = mask.mask[np.ix_(rows, cols)]
    return found


def pieces_of(section: Section, *, parted: bool = False) -> Labels:
    """Number the pieces of tissue from 1, the largest first: labels (h, w), 0 where there is none.

    Parts with a gap below 96 µm are one piece; with ``parted`` pieces are cut where they are under 192 µm wide. Parts
    under 0.1 mm², or under 1 % of the tissue, and those after the 24th belong to the piece beside them, if one is
    within 1 mm, and are nothing otherwise. Large sections are parted at half of their resolution.
    """
    if max(section.tissue.shape) > _PARTED_SIDE:
        coarse = pieces_of(section.at(2 * section.um[0]), parted=parted)
        height, width = section.tissue.shape
        return np.where(section.tissue, coarse.repeat(2, axis=0).repeat(2, axis=1)[:height, :width], np.uint8(0))
    um = section.um[0]
    reach = max(1, round(_GAP_UM / um / 2))
    joined = ndimage.distance_transform_edt(~section.tissue) <= reach
    if parted:
        cores = ndimage.distance_transform_edt(np.pad(section.tissue, 1))[1:-1, 1:-1] * um > _NECK_UM / 2
        labels, count = ndimage.label(cores)
        near = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
        labels = np.where(joined, labels[tuple(near)], 0)
    else:
        labels, count = ndimage.label(joined, structure=np.ones((3, 3), np.bool_))
    areas = np.bincount(labels[section.tissue], minlength=count + 1) * (section.um[0] * section.um[1] / 1e6)
    areas[0] = 0.0
    least = min(max(_SMALLEST_MM2, _SMALLEST_FRACTION * areas.sum()), areas.max())
    kept = [number for number in np.argsort(-areas, kind="stable") if areas[number] >= least][:_MOST_PIECES]
    renumbered = np.zeros(count + 1, np.uint8)
    renumbered[kept] = np.arange(1, len(kept) + 1)
    found: Labels = np.where(section.tissue, renumbered[labels], np.uint8(0))
    far, nearest = ndimage.distance_transform_edt(found == 0, return_indices=True)
    crumbs = section.tissue & (found == 0) & (far * um <= 1000.0)
    found[crumbs] = found[tuple(nearest)][crumbs]
    return found
