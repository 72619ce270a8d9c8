"""How a TIFF file stores its levels: segments (tiles or strips), planes, and the meaning of the samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import tifffile

from kin_cli.geometry import AnyArray, Box, Integers, Pixels, Size
from kin_cli.slide.base import WHITE, composite, composite_premultiplied, to_uint8

ReadAt = Callable[[int, int], bytes]  # (offset, number of bytes) → bytes of the file

_JPEG = {6, 7, 34892}
# compressions whose decoders return RGB, whatever colour space the file names
_GIVES_RGB = _JPEG | {34712, 34933, 34934, 50001, 50002, 52546}
_RAW_SEGMENT_PX = 512
_ASSOCIATED, _UNASSOCIATED = 1, 2  # values of the tag ExtraSamples: alpha, premultiplied or not


class Unsupported(Exception):
    """The file stores a kind of image that kin cannot read; the message names it."""


@dataclass(frozen=True)
class Segment:
    """A tile or strip of a level: its row-major number and its box, clipped to the level."""

    number: int
    box: Box


class Plane(Protocol):
    """Samples of one level that are stored together: all colours, or one."""

    @property
    def stored(self) -> int:
        """Number of tiles or strips stored."""

    def beyond(self, extent: int) -> int:
        """Number of tiles or strips that reach beyond the first ``extent`` bytes of the file."""

    def samples(self, read: ReadAt, segment: Segment) -> AnyArray | None:
        """Samples (h, w, n) of a segment, perhaps larger than its box; None if the segment is not stored."""


@dataclass(frozen=True)
class _SegmentPlane:
    """Tiles or strips in row-major order: their offsets and sizes in bytes, and their decoder.

    ``decode`` is ``TiffPage.decode`` of tifffile, ``tables`` are the JPEG tables that the tiles share.
    """

    offsets: Integers
    counts: Integers
    decode: Callable[..., Any]
    tables: bytes | None

    @property
    def stored(self) -> int:
        return len(self.offsets)

    def beyond(self, extent: int) -> int:
        return int(np.count_nonzero(self.offsets + self.counts > extent))

    def samples(self, read: ReadAt, segment: Segment) -> AnyArray | None:
        number = segment.number
        if self.counts[number] == 0:
            return None
        data = read(int(self.offsets[number]), int(self.counts[number]))
        decoded: AnyArray = self.decode(data, number, jpegtables=self.tables)[0][0]
        return decoded


@dataclass(frozen=True)
class _RawPlane:
    """Uncompressed rows one after another; any part of them can be read."""

    offset: int
    size: Size
    depth: int
    dtype: np.dtype[Any]

    stored = 1

    def beyond(self, extent: int) -> int:
        return int(self.offset + self.size.pixels * self.depth * self.dtype.itemsize > extent)

    def samples(self, read: ReadAt, segment: Segment) -> AnyArray | None:
        box, pixel_bytes = segment.box, self.depth * self.dtype.itemsize
        starts = (self.offset + (y * self.size.width + box.x) * pixel_bytes for y in range(box.y, box.bottom))
        data = b"".join(read(start, box.width * pixel_bytes) for start in starts)
        flat = np.frombuffer(data, self.dtype).astype(self.dtype.newbyteorder("="), copy=False)
        return flat.reshape(box.height, box.width, self.depth)


@dataclass(frozen=True)
class TiffLevel:
    """One level: its size, the size of its segments, its planes, and the conversion of samples (h, w, n) to RGB.

    There are several planes if the colours are stored apart.
    """

    size: Size
    segment: Size
    planes: tuple[Plane, ...]
    to_rgb: Callable[[AnyArray], Pixels]

    @property
    def across(self) -> int:
        """Number of segments in a row."""
        return math.ceil(self.size.width / self.segment.width)

    def segments_in(self, box: Box) -> Iterator[Segment]:
        """The segments that overlap a box inside the level."""
        width, height = self.segment.width, self.segment.height
        for row in range(box.y // height, (box.bottom - 1) // height + 1):
            for col in range(box.x // width, (box.right - 1) // width + 1):
                yield Segment(row * self.across + col, Box(col * width, row * height, width, height).clipped(self.size))


def levels_of(series: tifffile.TiffPageSeries) -> tuple[TiffLevel, ...]:
    """The levels of a series, the largest first.

    Raises:
        Unsupported: stacks, fluorescence channels, and sample types and colour spaces that are not RGB or grey.
    """
    return tuple(_level(level) for level in series.levels)


def _level(series: tifffile.TiffPageSeries) -> TiffLevel:
    if any(page is None for page in series.pages):
        raise Unsupported("part of a set of several files")
    pages = [page.aspage() for page in series.pages]
    first = pages[0]
    _check_samples(series, first, len(pages))
    planes = tuple(plane for page in pages for plane in _planes(page))
    return TiffLevel(
        Size(first.imagewidth, first.imagelength), _segment_size(first), planes, _to_rgb(first, len(pages))
    )


def _check_samples(series: tifffile.TiffPageSeries, first: tifffile.TiffPage, pages: int) -> None:
    """Raise ``Unsupported`` unless a level is one RGB or grey image."""
    stored = math.prod(series.shape)
    seen = f"{'×'.join(map(str, series.shape))} samples ({series.axes}) of type {series.dtype}"
    one_picture = pages == 1 and stored == first.imagewidth * first.imagelength * first.samplesperpixel
    # some writers store RGB as three 8-bit channels in separate pages; channels of more bits are fluorescence
    rgb_in_pages = pages == 3 and first.samplesperpixel == 1 and first.dtype == np.uint8
    apart = rgb_in_pages and set("CS").intersection(series.axes) and stored == 3 * first.imagewidth * first.imagelength
    if not (one_picture or apart):
        raise Unsupported(f"a stack or a set of channels, {seen}")
    if first.bitspersample not in (1, 8, 16) or first.sampleformat != 1:
        raise Unsupported(f"{first.bitspersample}-bit samples, {seen}")


def _segment_size(page: tifffile.TiffPage) -> Size:
    width, height = page.imagewidth, page.imagelength
    if _is_raw(page):
        return Size(min(width, _RAW_SEGMENT_PX), min(height, _RAW_SEGMENT_PX))
    if page.is_tiled:
        return Size(page.tilewidth, page.tilelength)
    return Size(width, min(height, page.rowsperstrip))


def _is_raw(page: tifffile.TiffPage) -> bool:
    """Whether the rows of a page are uncompressed and follow each other in the file."""
    plain = page.compression == 1 and page.predictor == 1 and page.fillorder == 1
    return bool(plain and not page.is_tiled and page.is_contiguous and page.bitspersample in (8, 16))


def _planes(page: tifffile.TiffPage) -> list[Plane]:
    count, depth = (1, int(page.samplesperpixel)) if page.planarconfig == 1 else (int(page.samplesperpixel), 1)
    if _is_raw(page):
        size, dtype = Size(page.imagewidth, page.imagelength), page.dtype.newbyteorder(page.parent.byteorder)
        starts = [page.dataoffsets[0] + plane * size.pixels * dtype.itemsize for plane in range(count)]
        return [_RawPlane(start, size, depth, dtype) for start in starts]
    offsets = np.array(page.dataoffsets, np.int64).reshape(count, -1)
    counts = np.array(page.databytecounts, np.int64).reshape(count, -1)
    return [_SegmentPlane(offsets[plane], counts[plane], page.decode, page.jpegtables) for plane in range(count)]


def _to_rgb(page: tifffile.TiffPage, pages: int) -> Callable[[AnyArray], Pixels]:
    """The conversion of samples (h, w, n) to RGB; ``Unsupported`` if the colour space has none."""
    name = getattr(page.photometric, "name", str(page.photometric))
    if name == "YCBCR" and page.compression not in _GIVES_RGB:
        raise Unsupported(f"YCbCr colours with {page.compression.name} compression")
    if name == "PALETTE":
        return partial(_palette_to_rgb, to_uint8(np.ascontiguousarray(page.colormap.T)))
    if name == "SEPARATED" and page.samplesperpixel == 4:
        return _cmyk_to_rgb
    colours = {"RGB": 3, "YCBCR": 3, "MINISBLACK": 1, "MINISWHITE": 1}.get(name)
    if colours is None:
        raise Unsupported(f"colour space {name} with {page.samplesperpixel} samples")
    if pages == 3:
        colours = 3
    alpha = page.extrasamples[0] if page.extrasamples else 0
    return partial(_additive_to_rgb, colours, int(alpha), name == "MINISWHITE")


def _additive_to_rgb(colours: int, alpha: int, inverted: bool, samples: AnyArray) -> Pixels:
    values = to_uint8(samples)
    rgb = values[..., :colours]
    if inverted:
        rgb = 255 - rgb
    if colours == 1:
        rgb = np.repeat(rgb, 3, axis=-1)
    if alpha == _UNASSOCIATED:
        return composite(rgb, values[..., colours], fill_colour=WHITE)
    if alpha == _ASSOCIATED:
        return composite_premultiplied(rgb, values[..., colours], fill_colour=WHITE)
    return rgb


def _palette_to_rgb(colours: Pixels, samples: AnyArray) -> Pixels:
    return colours[samples[..., 0].astype(np.intp)]


def _cmyk_to_rgb(samples: AnyArray) -> Pixels:
    light = 255 - to_uint8(samples).astype(np.uint16)
    return ((light[..., :3] * light[..., 3:] + 127) // 255).astype(np.uint8)


def resolution_mpp(page: tifffile.TiffPage) -> tuple[float | None, float | None]:
    """µm per pixel in x and y from the resolution tags; None if a tag is missing or has no unit."""
    unit_um = {2: 25400.0, 3: 10000.0}.get(int(page.tags.valueof("ResolutionUnit", 2)))

    def mpp(tag: str) -> float | None:
        value = page.tags.valueof(tag)
        if unit_um is None or not isinstance(value, Sequence) or len(value) != 2 or not all(value):
            return None
        return unit_um * float(value[1]) / float(value[0])

    return mpp("XResolution"), mpp("YResolution")
