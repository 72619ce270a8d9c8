"""Tissue masks from a file: a picture or drawn annotations."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from kin_cli.errors import InputError
from kin_cli.geometry import Box, Doubles, Mask, Size
from kin_cli.slide.annotations import GEOJSON_HINT, Polygon, may_be_annotations, read_annotations
from kin_cli.slide.mask_picture import MAX_SIDE, SIGNATURES, read_picture
from kin_cli.slide.tissue import TissueMask
from kin_cli.slide.view import SlideView
from kin_cli.store.files import head_of

_ASPECT_TOLERANCE = 0.03
_NUDGE = 1e-6  # pixels of the mask, to tell on which side of a corner the polygon lies
_REACH = 16  # largest distance of a polygon's points from the slide's corner, in sides of the slide
_MASK_KINDS = "PNG, TIFF or JPEG of the whole slide, non-zero where tissue is, or GeoJSON"
_OTHER_KINDS = {
    b"BM": "a BMP picture",
    b"GIF8": "a GIF picture",
    b"RIFF": "a WebP picture",
    b"\0\0\0\x0cjP": "a JPEG 2000 picture",
    b"Iout": "a region of ImageJ",
    b"\xac\xed": "a data file of QuPath",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file",
    b"%PDF": "a PDF file",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
}


def load_mask(path: Path, view: SlideView) -> TissueMask:
    """Read a tissue mask from a file, for the part of the slide that ``view`` shows.

    A picture (PNG, TIFF, JPEG) covers the whole slide, or the part that was scanned if it has the proportions of that
    part and not those of the slide; see ``read_picture`` for what is tissue in it. For annotations see
    ``read_annotations``. What was left out or assumed stands in the mask's ``notes``.

    Memory bound: the mask has at most 4096 pixels on its longer side. A larger picture is reduced; a pixel of the
    reduced mask is tissue if any of its source pixels is.

    Raises:
        InputError: the file is missing, of another format, damaged, or has no polygon on the slide.
    """
    head = _head(path)
    kind = next((kind for start, kind in SIGNATURES.items() if head.startswith(start)), None)
    if kind is None and not may_be_annotations(head):
        other = next((what for start, what in _OTHER_KINDS.items() if head.startswith(start)), "of no known format")
        raise InputError(f"{path}: the mask is neither a picture nor GeoJSON but {other}", f"give a {_MASK_KINDS}")
    if kind is None:
        mask, notes = _drawn(path, view)
    else:
        picture, notes = read_picture(path, kind)
        place, placed = _placement(picture, view)
        mask, notes = _stretched(picture, view, place), notes + placed
    return TissueMask(mask, view.size, tuple(f"{path}: {note}" for note in notes))


def _head(path: Path) -> bytes:
    """The first bytes of a file; waits for nothing that is not a regular file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{path}: the mask is not a regular file", f"give a {_MASK_KINDS}")
        head = head_of(path, 64)
    except OSError as error:
        raise InputError(f"{path}: the mask cannot be read: {error.strerror}", f"give a {_MASK_KINDS}") from error
    if not head:
        raise InputError(f"{path}: the mask is an empty file", "write it again")
    return head


# Pictures


def _placement(mask: Mask, view: SlideView) -> tuple[Box, list[str]]:
    """The part of the slide that a picture covers, in pixels of level 0, and notes on how it is laid over the slide."""
    full = view.slide.levels[0]
    whole, scanned = Box(0, 0, full.width, full.height), _scanned(view)
    tolerance = 1 / min(mask.shape)  # the sides of a small picture are rounded
    rough = max(_ASPECT_TOLERANCE, tolerance)
    off, off_scanned = _off(mask, whole), _off(mask, scanned)
    exact = off > tolerance >= off_scanned or mask.shape == (scanned.height, scanned.width)
    if scanned != whole and off_scanned <= rough and (off > rough or exact):
        part = f"{Size(scanned.width, scanned.height)} at ({scanned.x}, {scanned.y})"
        return scanned, [f"the mask has the proportions of the part that was scanned, {part}, and is laid over it"]
    notes = []
    if off > rough:
        notes.append(f"the mask's proportions are not those of the slide, {full}; it is stretched over the whole slide")
    if scanned != whole or view.slide.bounds_origin != (0, 0):
        notes.append(f"the mask is laid over the whole slide, {full}, not only over the part that was scanned")
    return whole, notes


def _scanned(view: SlideView) -> Box:
    """The part of the slide that was scanned, in pixels of level 0; the whole slide if it is not known."""
    full, size = view.slide.levels[0], view.slide.bounds_size
    part = Box(*view.slide.bounds_origin, size.width, size.height).clipped(full) if size else None
    return part if part and not part.empty else Box(0, 0, full.width, full.height)


def _off(mask: Mask, place: Box) -> float:
    """How far the proportions of a picture are from those of a box: 0 if they agree, towards 1 if they do not."""
    across, down = place.width / mask.shape[1], place.height / mask.shape[0]
    off: float = abs(across - down) / max(across, down)
    return off


def _mask_size(size: Size) -> Size:
    """``size`` scaled down to at most 4096 pixels on the longer side."""
    factor = min(1.0, MAX_SIDE / max(size.width, size.height))
    return Size(max(1, round(size.width * factor)), max(1, round(size.height * factor)))


def _stretched(mask: Mask, view: SlideView, place: Box) -> Mask:
    """The part that the view shows of a mask laid over ``place``, sampled at pixel centres (nearest neighbour).

    ``place`` is in pixels of level 0; beyond it nothing is tissue.
    """
    size, region, frame, full = _mask_size(view.size), view.region, view.frame, view.slide.levels[0]
    rows = region.y + (np.arange(size.height) + 0.5) * (region.height / size.height)
    cols = region.x + (np.arange(size.width) + 0.5) * (region.width / size.width)
    height, width = mask.shape
    down, across = (
        height / (place.height * frame.height / full.height),
        width / (place.width * frame.width / full.width),
    )
    y = np.floor((rows - place.y * frame.height / full.height) * down).astype(np.intp)
    x = np.floor((cols - place.x * frame.width / full.width) * across).astype(np.intp)
    on_rows, on_cols = (y >= 0) & (y < height), (x >= 0) & (x < width)
    stretched = np.zeros((size.height, size.width), np.bool_)
    stretched[np.ix_(on_rows, on_cols)] = mask[np.ix_(y[on_rows], x[on_cols])]
    return stretched


# Annotations


def _drawn(path: Path, view: SlideView) -> tuple[Mask, list[str]]:
    """The polygons of a file, drawn as a mask of the view, and notes; ``InputError`` if none lies on the slide."""
    found = read_annotations(path)
    notes, origin, full = found.notes(), view.slide.bounds_origin, view.slide.levels[0]
    if origin != (0, 0):
        if not found.counts_from_bounds:
            raise InputError(
                f"{path}: it is not known which corner of this slide the coordinates count from",
                "open the slide and the annotations in QuPath and export GeoJSON",
            )
        notes.append(f"coordinates count from the corner of the part that was scanned, {origin}, as QuPath does")
    if view.slide.orientation != 1:
        turned = f"coordinates count in the slide as its EXIF orientation ({view.slide.orientation}) turns it"
        notes.append(f"{turned}, not as it is stored")
    tissue, excluded = ([_moved(rings, origin) for rings in part] for part in (found.tissue, found.excluded))
    _check_position(path, tissue, full)
    off = sum(not _touches(rings, full) for rings in tissue)
    if off:
        notes.append(f"polygons outside the slide are left out: {off}")
    size = _mask_size(view.size)
    scale = np.array([size.width / view.size.width, size.height / view.size.height])
    to_mask = [[[_scaled(ring, view, scale) for ring in rings] for rings in part] for part in (tissue, excluded)]
    mask = np.zeros((size.height, size.width), np.bool_)
    for rings in to_mask[0]:
        _draw(mask, rings)
    return (_cut_out(mask, *to_mask) if excluded else mask), notes


def _moved(rings: Polygon, origin: tuple[int, int]) -> Polygon:
    return [ring + np.array(origin) for ring in rings]


def _scaled(ring: Doubles, view: SlideView, scale: Doubles) -> Doubles:
    """A ring in pixels of level 0, in pixels of the mask."""
    scaled: Doubles = np.stack(view.l0_to_out(ring[:, 0], ring[:, 1]), axis=1) * scale
    return scaled


def _touches(rings: Polygon, full: Size) -> bool:
    """Whether the rectangle around a polygon overlaps the slide."""
    return bool((rings[0].max(axis=0) > 0).all() and (rings[0].min(axis=0) < (full.width, full.height)).all())


def _check_position(path: Path, polygons: list[Polygon], full: Size) -> None:
    """Raise ``InputError`` unless the polygons can be meant in pixels of this slide."""
    if not any(_touches(rings, full) for rings in polygons):
        raise InputError(f"{path}: no polygon of the mask lies on the slide, {full} pixels at level 0", GEOJSON_HINT)
    farthest = max(float(np.abs(ring).max()) for rings in polygons for ring in rings)
    if farthest > _REACH * max(full.width, full.height, MAX_SIDE):
        raise InputError(f"{path}: the mask has a coordinate of {farthest:.4g}, far beyond the slide", GEOJSON_HINT)
    if farthest <= 1 and min(full.width, full.height) > 2:
        raise InputError(f"{path}: all polygons of the mask lie within one pixel", GEOJSON_HINT)


def _draw(mask: Mask, rings: Polygon) -> None:
    """Add a polygon, in pixels of the mask, to the mask; pixels on a ring count as inside."""
    box = _box_of(rings, mask)
    if box.empty:
        return
    canvas = Image.new("1", (box.width, box.height))
    pen = ImageDraw.Draw(canvas)
    for number, ring in enumerate(rings):
        corners = _pixels_within(ring, hole=number > 0) - (box.x, box.y)
        pen.polygon([(x, y) for x, y in corners], fill=int(number == 0), outline=1)
    mask[box.slices()] |= np.asarray(canvas)


def _pixels_within(ring: Doubles, *, hole: bool) -> Doubles:
    """The pixel (x, y) of each corner of a ring: if it lies between two pixels, the one on the side of the polygon."""
    step = np.roll(ring, -1, axis=0) - ring
    if not step.any():
        return np.floor(ring)
    ring, step = ring[step.any(axis=1)], step[step.any(axis=1)]  # a closed ring repeats its first point
    normals = np.stack([-step[:, 1], step[:, 0]], axis=1) / np.hypot(step[:, 0], step[:, 1])[:, None]
    centred = ring - ring.mean(axis=0)
    area = (centred[:, 0] * step[:, 1] - centred[:, 1] * step[:, 0]).sum()
    inwards = (normals + np.roll(normals, 1, axis=0)) * np.sign(area) * (-1 if hole else 1)
    pixels: Doubles = np.floor(ring + _NUDGE * inwards)
    return pixels


def _cut_out(mask: Mask, tissue: list[Polygon], excluded: list[Polygon]) -> Mask:
    """The mask without the pixels in ``excluded``, and without what drawing added to the outline of tissue there."""
    cut, inside = np.zeros_like(mask), np.zeros_like(mask)
    for polygons, flags in ((excluded, cut), (tissue, inside)):
        for rings in polygons:
            _fill(flags, rings)
    beside: Mask = ndimage.binary_dilation(cut, structure=np.ones((3, 3), np.bool_))
    return mask & ~cut & (inside | ~beside)


def _fill(flags: Mask, rings: Polygon) -> None:
    """Set the pixels whose centre is inside a polygon, by the even-odd rule."""
    box = _box_of(rings, flags)
    if box.empty:
        return
    crossed = np.zeros((box.height, box.width + 1), np.bool_)
    for ring in rings:
        start = ring - (box.x, box.y)
        step = np.roll(start, -1, axis=0) - start
        ends = np.stack([start[:, 1], start[:, 1] + step[:, 1]])
        first, last = np.ceil(np.sort(ends, axis=0).clip(0, box.height) - 0.5).astype(np.intp)
        counts = np.maximum(last - first, 0)  # of the rows whose middle each edge crosses
        edge = np.repeat(np.arange(len(ring)), counts)
        rows = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts)
        at = start[edge, 0] + (rows + 0.5 - start[edge, 1]) * (step[edge, 0] / step[edge, 1])
        cols = np.ceil(at - 0.5).clip(0, box.width).astype(np.intp)
        np.logical_xor.at(crossed, (rows, cols), True)
    flags[box.slices()] |= np.logical_xor.accumulate(crossed, axis=1)[:, :-1]


def _box_of(rings: Polygon, mask: Mask) -> Box:
    """The pixels of a mask that a polygon overlaps."""
    corner = np.floor(rings[0].min(axis=0)).astype(int)
    extent = np.ceil(rings[0].max(axis=0)).astype(int) + 1 - corner
    return Box(*corner, *extent).clipped(Size(mask.shape[1], mask.shape[0]))
