"""Pictures as tissue masks: PNG, JPEG and TIFF of any kind of sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyvips
import tifffile
from PIL import Image

from kin_cli.errors import InputError
from kin_cli.geometry import AnyArray, Box, Mask, Size
from kin_cli.slide.tiff_layout import segment_limit, tiff_file
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
_LOSSY_TIFF = (6, 7, 33003, 33004, 33005, 34712, 34892, 50001)  # JPEG, JPEG 2000 and WebP
_MINISWHITE, _PALETTE = 0, 3
_TIFF_COLOURS = (_MINISWHITE, 1, 2, _PALETTE, 4, 6)  # grey, RGB, palette, mask, YCbCr
# EXIF orientations: whether rows and columns are exchanged, and then left and right, and top and bottom
_TURNS = {
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}
_BLACK, _WHITE, _FIRST, _OTHER = range(4)  # kinds of colours in a palette picture
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
    picture that has no colour at all is judged by its opacity. For the background of a palette see ``_palette_mask``. A
    reduced pixel is tissue if any of its source pixels is.

    Memory bound: 256 rows of a PNG or JPEG, one tile or strip of a TIFF (refused above ``segment_limit``).

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
    largest: float = 0
    flags: Mask
    for part in parts:
        if lossy:
            flags = np.logical_or.reduce(part.samples >= _LOSSY_THRESHOLD, axis=2)
            largest = max(largest, part.samples.max().item())
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
        why = f"the largest value of the mask, a lossy picture in which tissue is 128 or more, is {largest}"
        notes.append(f"{why}: save labels such as 0 and 1 as PNG")
    mask = opaque.mask if transparent and not coloured.mask.any() else coloured.mask
    if mask.all():
        notes.append("the mask has no background: everything counts as tissue")
    return mask, notes


# PNG and JPEG


def _plain(path: Path, *, lossy: bool) -> tuple[Mask, list[str]]:
    """The mask in a PNG or JPEG."""
    first = _first_colour(path)
    image, cmyk = _opened(path)
    size = Size(image.width, image.height)
    turn = int(image.get("orientation")) if image.get_typeof("orientation") else 1
    mask, notes = _collected(size, _rows(image), lossy=lossy)
    if first is not None and any(first) and _TRANSPARENT not in notes:
        mask, notes = _palette_mask(size, lambda: _kinds_in_rows(_opened(path)[0], first), first)
    if cmyk:
        notes.insert(0, "the mask is a CMYK picture, and is judged by the colours that a screen shows")
    if turn not in _TURNS:
        return mask, notes
    return _turned(mask, turn), [f"the mask is turned as its EXIF orientation ({turn}) says", *notes]


def _turned(mask: Mask, turn: int) -> Mask:
    """A mask as a viewer shows it that applies the EXIF orientation ``turn``."""
    exchanged, mirrored, upturned = _TURNS[turn]
    mask = mask.T if exchanged else mask
    mask = mask[:, ::-1] if mirrored else mask
    return np.ascontiguousarray(mask[::-1] if upturned else mask)


def _opened(path: Path) -> tuple[pyvips.Image, bool]:
    """A picture in grey or RGB, and whether it was CMYK."""
    # a descriptor instead of a name: libvips takes names in UTF-8 only, and options in square brackets from them
    with open_regular(path) as file:
        source = pyvips.Source.new_from_descriptor(file.fileno())
    image = pyvips.Image.new_from_source(source, "", access="sequential", fail_on="error")
    cmyk = image.interpretation == "cmyk"
    return image.colourspace("srgb") if cmyk else image, cmyk


def _rows(image: pyvips.Image) -> Iterator[_Part]:
    """Yield the picture in bands of ``_ROWS`` rows, from the top."""
    colours = image.bands - int(image.hasalpha())
    for top in range(0, image.height, _ROWS):
        box = Box(0, top, image.width, min(_ROWS, image.height - top))
        pixels = image.crop(*vars(box).values()).numpy().reshape(box.height, box.width, image.bands)
        yield _Part(box, pixels[..., :colours], pixels[..., -1] > 0 if image.hasalpha() else None)


def _kinds_in_rows(image: pyvips.Image, first: tuple[int, ...]) -> Iterator[_Part]:
    """The kinds of colours, see ``_kinds``, of a picture in bands of rows."""
    for part in _rows(image):
        yield _Part(part.box, _kinds(part.samples, first), part.opaque)


def _first_colour(path: Path) -> tuple[int, ...] | None:
    """The first colour of a PNG's palette."""
    try:
        with Image.open(path) as image:
            found = image.getpalette("RGB") if image.mode == "P" else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # libvips tells the true reason
    return tuple(found[:3]) if found else None


# Palettes


def _kinds(colours: AnyArray, first: tuple[int, ...]) -> AnyArray:
    """The kind of each colour (…, 3): black, white, the ``first`` of the palette, or another one."""
    kinds: AnyArray = np.full(colours.shape[:-1], _OTHER, np.uint8)
    for kind, colour in ((_FIRST, first), (_WHITE, (255, 255, 255)), (_BLACK, (0, 0, 0))):
        kinds[(colours == np.array(colour)).all(axis=-1)] = kind
    return kinds


def _palette_mask(size: Size, parts: Callable[[], Iterator[_Part]], first: tuple[int, ...]) -> tuple[Mask, list[str]]:
    """The mask of a palette picture, whose ``parts`` hold kinds of colours, and notes.

    Black is background, as in other pictures, if it is the first colour. Else it depends on what the border of the
    picture shows most: black or white; if nothing is black, the first colour or white.
    """
    used, border = np.zeros(4, np.bool_), np.zeros(4, np.int64)
    for part in parts():
        used |= np.bincount(part.samples.ravel(), minlength=4) > 0
        border += np.bincount(_on_border(part, size), minlength=4)
    of_first = int(_kinds(np.array(first), first))
    choice = (_BLACK, _WHITE) if used[_BLACK] or of_first == _BLACK else (of_first, _WHITE)
    background = choice[0] if of_first == _BLACK else max(choice, key=lambda kind: border[kind])
    mask, notes = _collected(
        size,
        (_Part(part.box, (part.samples != background)[..., None], part.opaque) for part in parts()),
        lossy=False,
    )
    what = f"the first colour of the palette, {first}," if background == of_first else "white in the mask"
    if background != _BLACK:
        notes.insert(0, f"{what} counts as no tissue" + (", and black as tissue" if used[_BLACK] else ""))
    elif border[of_first] > border[_BLACK]:
        notes.insert(0, f"the first colour of the palette, {first}, counts as tissue, since only black does not")
    return mask, notes


def _on_border(part: _Part, size: Size) -> AnyArray:
    """The samples (n,) of a part on the border of the picture."""
    box, samples = part.box, part.samples
    sides = (
        (box.y == 0, samples[0]),
        (box.bottom == size.height, samples[-1]),
        (box.x == 0, samples[:, 0]),
        (box.right == size.width, samples[:, -1]),
    )
    return np.concatenate([samples[:0, 0], *(side for outer, side in sides if outer)])


# TIFF


def _tiff(path: Path) -> tuple[Mask, list[str]]:
    """The mask in the largest picture of a TIFF file."""
    try:
        with tiff_file(path) as file:
            page = _largest(path, file)
            notes: list[str] = []
            orientation = page.tags.valueof("Orientation", 1)
            if orientation not in (0, 1):
                notes.append(f"the mask's orientation tag ({orientation}) is not applied, as in slide viewers")
            size = Size(page.imagewidth, page.imagelength)
            parts, lossy = _segments(page, notes), page.compression in _LOSSY_TIFF
            mask, found = _collected(size, parts, lossy=lossy)
            if page.photometric == _PALETTE:
                colours = _palette(page)
                first = tuple(colours[0].tolist())
                kinds = _kinds(colours, first)
                mask, found = _palette_mask(size, lambda: _kinds_in_segments(page, kinds), first)
    except InputError:
        raise
    except Exception as error:  # tifffile and its codecs raise whatever a damaged file leads to
        raise InputError(f"{path}: the mask is not a readable TIFF: {error}", "write it again") from error
    return mask, notes + found


def _largest(path: Path, file: tifffile.TiffFile) -> tifffile.TiffPage:
    """The largest picture in a file; ``InputError`` if there are several, or if it is no mask."""
    # previews are marked as reduced pictures; a colour preview of fewer pixels may hold more samples
    pictures = [series for series in file.series if not series.keyframe.is_reduced] or file.series
    page = max((series.keyframe for series in pictures), key=_area)
    sides = page.imagewidth, page.imagelength
    alike = [series for series in pictures if (series.keyframe.imagewidth, series.keyframe.imagelength) == sides]
    planes = sum(series.size // (_area(series.keyframe) * series.keyframe.samplesperpixel) for series in alike)
    if planes > 1:
        raise InputError(
            f"{path}: the mask holds {planes} pictures of one size", "save one picture, or one plane of it"
        )
    if page.photometric not in _TIFF_COLOURS or page.dtype is None or page.dtype.kind not in "buif":
        raise InputError(f"{path}: the mask has a kind of colour that kin does not read", "save it as grey or RGB")
    segment = math.prod(page.chunks) * page.dtype.itemsize
    if segment > segment_limit():
        raise InputError(f"{path}: one tile or strip of the mask takes {segment >> 20} MiB", "save it in smaller tiles")
    extent = path.stat().st_size
    if any(start + count > extent for start, count in zip(page.dataoffsets, page.databytecounts, strict=True)):
        raise InputError(f"{path}: the mask is a truncated TIFF: a part lies beyond its end", "copy it again")
    return page


def _area(page: tifffile.TiffPage) -> int:
    return int(page.imagewidth) * int(page.imagelength)


def _joined(page: tifffile.TiffPage) -> Iterator[tuple[AnyArray | None, tuple[int, ...], tuple[int, ...]]]:
    """The tiles or strips of a page that stores its samples in separate planes, each with all its samples."""
    file = page.parent.filehandle
    count = len(page.dataoffsets) // page.samplesperpixel  # of segments in a plane
    for number in range(count):
        planes: list[AnyArray] = []
        for index in range(number, len(page.dataoffsets), count):
            file.seek(page.dataoffsets[index])
            stored = file.read(page.databytecounts[index]) or None
            plane, place, shape = page.decode(stored, index, jpegtables=page.jpegtables)
            planes.append(np.zeros(shape, page.dtype) if plane is None else plane)
        yield np.concatenate(planes, axis=-1), place, shape


def _segments(page: tifffile.TiffPage, notes: list[str]) -> Iterator[_Part]:
    """The tiles or strips of a page; samples are those that a viewer shows, of a palette the indices."""
    inverted = page.photometric == _MINISWHITE
    if inverted and page.bitspersample == 1 and page.software.startswith("tifffile"):
        # tifffile marks arrays of bool in this way, but means True by 1
        inverted = False
        notes.append("bits that are set count as tissue, although the file calls them black")
    alpha = page.samplesperpixel > 1 and page.extrasamples[-1:] in ((1,), (2,))
    separate = alpha and page.planarconfig == 2
    segments = _joined(page) if separate else page.segments(maxworkers=1, buffersize=1 << 24)
    for data, (_, _, top, left, _), shape in segments:
        height, width = shape[1:3]
        box = Box(left, top, width, height).clipped(Size(page.imagewidth, page.imagelength))
        if data is None or box.empty:
            continue  # nothing is stored there
        pixels = data[0, : box.height, : box.width]
        if inverted:
            largest = 1 if pixels.dtype == np.bool_ else (1 << page.bitspersample) - 1
            pixels = pixels != largest
        yield _Part(box, pixels[..., :-1], pixels[..., -1] > 0) if alpha else _Part(box, pixels)


def _palette(page: tifffile.TiffPage) -> AnyArray:
    """The colours (n, 3) of a palette, 0 to 255; some programs write 8 bits where the format wants 16."""
    colours: AnyArray = np.asarray(page.colormap).T.reshape(-1, 3)
    return colours >> 8 if colours.max() > 255 else colours


def _kinds_in_segments(page: tifffile.TiffPage, kinds: AnyArray) -> Iterator[_Part]:
    """The kinds of colours of the tiles or strips of a page, given those of its palette."""
    for part in _segments(page, []):
        yield _Part(part.box, kinds[part.samples[..., 0].astype(np.uint16)], part.opaque)
