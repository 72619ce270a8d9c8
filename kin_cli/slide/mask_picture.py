"""Pictures as tissue masks: PNG, JPEG and TIFF of any kind of sample."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyvips
import tifffile
from PIL import Image

from kin_cli.errors import InputError
from kin_cli.geometry import AnyArray, Box, Mask, Size
from kin_cli.slide.tiff_layout import tiff_file
from kin_cli.store.files import open_regular

MAX_SIDE = 4096  # longest side of a mask, in pixels
SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
_LOSSY_THRESHOLD = 128  # least grey level of tissue in a lossy picture, whose background is not exactly 0
_UNSURE, _UNSURE_FRACTION = 32, 0.01  # from here to the threshold neither colour is meant; more than this is noted
_ROWS = 256  # rows of a PNG or JPEG that are read together
_MAX_SEGMENT_BYTES = 1 << 30
_LOSSY_TIFF = (6, 7, 33003, 33004, 33005, 34712, 34892, 50001)  # JPEG, JPEG 2000 and WebP
_MINISWHITE, _PALETTE = 0, 3
_TIFF_COLOURS = (_MINISWHITE, 1, 2, _PALETTE, 4, 6)  # grey, RGB, palette, mask, YCbCr
_TRANSPARENT = "transparent pixels of the mask count as no tissue"


@dataclass(frozen=True)
class _Part:
    """Samples (h, w, bands) of a part of a picture, and where pixels are not transparent (h, w), None: everywhere."""

    box: Box
    samples: AnyArray
    opaque: Mask | None = None


class _Flags:
    """The mask of a picture of ``size``, reduced to at most 4096 pixels a side and filled part by part.

    A pixel of the mask is set if any of its source pixels is.
    """

    def __init__(self, size: Size) -> None:
        self._shrink = math.ceil(max(size.width, size.height) / MAX_SIDE)
        shape = (math.ceil(size.height / self._shrink), math.ceil(size.width / self._shrink))
        self.mask = np.zeros(shape, np.bool_)

    def add(self, box: Box, flags: Mask) -> None:
        """Set the pixels of a box."""
        rows, cols = (
            np.arange(start, stop) // self._shrink for start, stop in ((box.y, box.bottom), (box.x, box.right))
        )
        for axis, places in ((0, rows), (1, cols)):
            firsts = np.flatnonzero(np.diff(places, prepend=-1))
            flags = np.logical_or.reduceat(flags, firsts, axis=axis)
        self.mask[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1] |= flags


def read_picture(path: Path, kind: str) -> tuple[Mask, list[str]]:
    """Where a picture shows tissue, (h, w) with at most 4096 pixels a side, and notes on what was assumed.

    Values other than 0 and NaN are tissue, in a lossy picture (JPEG) values from 128. Transparent pixels are not; a
    picture that has no colour at all is judged by its opacity. The background of a palette is black, or its first
    colour if no pixel is black. A reduced pixel is tissue if any of its source pixels is.

    Memory bound: 256 rows of a PNG or JPEG, one tile or strip of a TIFF (refused above 1 GiB).

    Raises:
        InputError: the picture is damaged, holds several pictures, or has another colour space.
    """
    try:
        return _tiff(path) if kind == "TIFF" else _plain(path, lossy=kind == "JPEG")
    except InputError:
        raise
    except pyvips.Error as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: the mask is not a readable {kind}: {reason}", "write it again") from error


def _collected(size: Size, parts: Iterator[_Part], *, lossy: bool) -> tuple[Mask, list[str]]:
    """The mask that ``parts`` make, and notes."""
    coloured, opaque, transparent, unsure = _Flags(size), _Flags(size), False, 0
    flags: Mask
    for part in parts:
        if lossy:
            flags = np.logical_or.reduce(part.samples >= _LOSSY_THRESHOLD, axis=2)
            unsure += int(((part.samples >= _UNSURE).any(axis=2) & ~flags).sum())
        else:
            numbers = part.samples == part.samples  # NaN is not equal to itself
            flags = np.logical_or.reduce((part.samples != 0) & numbers, axis=2)
        if part.opaque is not None:
            transparent = transparent or not part.opaque.all()
            opaque.add(part.box, part.opaque)
            flags &= part.opaque
        coloured.add(part.box, flags)
    notes = [_TRANSPARENT] if transparent else []
    if unsure > _UNSURE_FRACTION * size.pixels:
        dark = f"{unsure / size.pixels:.0%} of the mask is darker than 128 but not black"
        notes.append(f"{dark}, and counts as no tissue: better a PNG")
    if lossy and not coloured.mask.any():
        notes.append("no value of the mask, a lossy picture, is 128 or more")
    mask = opaque.mask if transparent and not coloured.mask.any() else coloured.mask
    if mask.all():
        notes.append("the mask has no background: everything counts as tissue")
    return mask, notes


# PNG and JPEG


def _plain(path: Path, *, lossy: bool) -> tuple[Mask, list[str]]:
    """The mask in a PNG or JPEG."""
    first = _first_colour(path)
    image = _opened(path)
    size = Size(image.width, image.height)
    mask, notes = _collected(size, _rows(image, (0, 0, 0)), lossy=lossy)
    if first is not None and any(first) and mask.all():
        mask, notes = _collected(size, _rows(_opened(path), first), lossy=lossy)
        notes.insert(0, f"the first colour of the palette, {first}, counts as no tissue")
    return mask, notes


def _opened(path: Path) -> pyvips.Image:
    # a descriptor instead of a name: libvips takes names in UTF-8 only, and options in square brackets from them
    with open_regular(path) as file:
        source = pyvips.Source.new_from_descriptor(file.fileno())
    image = pyvips.Image.new_from_source(source, "", access="sequential", fail_on="error")
    return image.colourspace("srgb") if image.interpretation == "cmyk" else image


def _rows(image: pyvips.Image, background: tuple[int, ...]) -> Iterator[_Part]:
    """Yield the picture in bands of ``_ROWS`` rows, from the top; pixels of the ``background`` colour become 0."""
    colours = image.bands - int(image.hasalpha())
    for top in range(0, image.height, _ROWS):
        box = Box(0, top, image.width, min(_ROWS, image.height - top))
        pixels = image.crop(*vars(box).values()).numpy().reshape(box.height, box.width, image.bands)
        samples = pixels[..., :colours]
        if any(background):
            samples = samples != np.array(background)
        yield _Part(box, samples, pixels[..., -1] > 0 if image.hasalpha() else None)


def _first_colour(path: Path) -> tuple[int, ...] | None:
    """The first colour of a PNG's palette."""
    try:
        with Image.open(path) as image:
            found = image.getpalette("RGB") if image.mode == "P" else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # libvips tells the true reason
    return tuple(found[:3]) if found else None


# TIFF


def _tiff(path: Path) -> tuple[Mask, list[str]]:
    """The mask in the largest picture of a TIFF file."""
    try:
        with tiff_file(path) as file:
            page = _largest(path, file)
            notes: list[str] = []
            size = Size(page.imagewidth, page.imagelength)
            parts, lossy = _segments(path, page, notes), page.compression in _LOSSY_TIFF
            mask, found = _collected(size, parts, lossy=lossy)
            if page.photometric == _PALETTE:
                mask, found = _palette_mask(path, page, mask, found)
    except InputError:
        raise
    except Exception as error:  # tifffile and its codecs raise whatever a damaged file leads to
        raise InputError(f"{path}: the mask is not a readable TIFF: {error}", "write it again") from error
    return mask, notes + found


def _largest(path: Path, file: tifffile.TiffFile) -> tifffile.TiffPage:
    """The largest picture in a file; ``InputError`` if there are several, or if it is no mask."""
    largest = max(file.series, key=lambda series: series.size)
    page = largest.keyframe
    alike = [series for series in file.series if series.keyframe.shape == page.shape]
    planes = sum(series.size for series in alike) // page.size
    if planes > 1:
        raise InputError(
            f"{path}: the mask holds {planes} pictures of one size", "save one picture, or one plane of it"
        )
    if page.photometric not in _TIFF_COLOURS or page.dtype is None or page.dtype.kind not in "buif":
        raise InputError(f"{path}: the mask has a kind of colour that kin does not read", "save it as grey or RGB")
    segment = math.prod(page.chunks) * page.dtype.itemsize
    if segment > _MAX_SEGMENT_BYTES:
        raise InputError(f"{path}: one tile or strip of the mask takes {segment >> 20} MiB", "save it in smaller tiles")
    extent = path.stat().st_size
    if any(start + count > extent for start, count in zip(page.dataoffsets, page.databytecounts, strict=True)):
        raise InputError(f"{path}: the mask is a truncated TIFF: a part lies beyond its end", "copy it again")
    return page


def _segments(path: Path, page: tifffile.TiffPage, notes: list[str]) -> Iterator[_Part]:
    """The tiles or strips of a page; samples are those that a viewer shows, of a palette the indices."""
    inverted = page.photometric == _MINISWHITE
    if inverted and page.bitspersample == 1 and page.software.startswith("tifffile"):
        # tifffile marks arrays of bool in this way, but means True by 1
        inverted = False
        notes.append("bits that are set count as tissue, although the file calls them black")
    alpha = page.samplesperpixel > 1 and page.extrasamples[-1:] in ((1,), (2,))
    for data, (_, _, top, left, _), shape in page.segments(maxworkers=1, buffersize=1 << 24):
        height, width = shape[1:3]
        box = Box(left, top, width, height).clipped(Size(page.imagewidth, page.imagelength))
        if data is None or box.empty:
            continue  # nothing is stored there
        pixels = data[0, : box.height, : box.width]
        if inverted:
            largest = 1 if pixels.dtype == np.bool_ else (1 << page.bitspersample) - 1
            pixels = pixels != largest
        separate = page.planarconfig == 2
        if alpha and separate:
            raise InputError(f"{path}: the mask has separate planes with opacity", "save it as grey or RGB")
        yield _Part(box, pixels[..., :-1], pixels[..., -1] > 0) if alpha else _Part(box, pixels)


def _palette_mask(path: Path, page: tifffile.TiffPage, mask: Mask, found: list[str]) -> tuple[Mask, list[str]]:
    """The mask of a palette picture, given that of its indices: black is background, or index 0 if nothing is black."""
    colours = np.asarray(page.colormap).T.reshape(-1, 3) >> 8
    black = np.flatnonzero(~colours.any(axis=1))
    if black.tolist() == [0]:
        return mask, found

    def painted() -> Iterator[_Part]:
        for part in _segments(path, page, []):
            yield _Part(part.box, ~np.isin(part.samples, black), part.opaque)

    by_colour = _collected(Size(page.imagewidth, page.imagelength), painted(), lossy=False)
    if not by_colour[0].all():
        return by_colour
    return mask, [f"the first colour of the palette, {tuple(colours[0].tolist())}, counts as no tissue", *found]
