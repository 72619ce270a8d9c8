"""How a TIFF file stores its levels: segments (tiles or strips), planes, and what their samples mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tifffile

from kin_cli.geometry import Box, Size
from kin_cli.slide.base import WHITE, Pixels, composite, composite_premultiplied, to_uint8

Samples = npt.NDArray[Any]
ReadAt = Callable[[int, int], bytes]

_JPEG = {6, 7, 34892}
# these codecs give RGB, whatever the file calls their colour space
_GIVES_RGB = _JPEG | {34712, 34933, 34934, 50001, 50002, 52546}
_RAW_SEGMENT_PX = 512
_ASSOCIATED, _UNASSOCIATED = 1, 2


class Unsupported(Exception):
    """What was seen in the file that kin cannot read."""


@dataclass(frozen=True)
class Segment:
    """A tile or strip: its row-major number, and the pixels of the level that it holds."""

    number: int
    box: Box


class Plane(Protocol):
    """Samples of one level that are stored together, all of them or one colour."""

    @property
    def stored(self) -> int:
        """How many pieces of the plane the file holds."""

    def beyond(self, extent: int) -> int:
        """How many of them do not lie within the first ``extent`` bytes of the file."""

    def samples(self, read: ReadAt, segment: Segment) -> Samples | None:
        """Samples (h, w, n) of a segment, perhaps some beyond the level's border; None where nothing is stored."""


@dataclass(frozen=True)
class _SegmentPlane:
    """Tiles or strips in row-major order: place, length in bytes, and (bytes, number, tables) → samples."""

    offsets: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    decode: Callable[..., Any]
    tables: bytes | None

    @property
    def stored(self) -> int:
        return len(self.offsets)

    def beyond(self, extent: int) -> int:
        return int(np.count_nonzero(self.offsets + self.counts > extent))

    def samples(self, read: ReadAt, segment: Segment) -> Samples | None:
        number = segment.number
        if self.counts[number] == 0:
            return None
        data = read(int(self.offsets[number]), int(self.counts[number]))
        decoded: Samples = self.decode(data, number, jpegtables=self.tables)[0][0]
        return decoded


@dataclass(frozen=True)
class _RawPlane:
    """Uncompressed rows one after another, of which any part can be read."""

    offset: int
    size: Size
    depth: int
    dtype: np.dtype[Any]

    stored = 1

    def beyond(self, extent: int) -> int:
        return int(self.offset + self.size.pixels * self.depth * self.dtype.itemsize > extent)

    def samples(self, read: ReadAt, segment: Segment) -> Samples | None:
        box, pixel_bytes = segment.box, self.depth * self.dtype.itemsize
        starts = (self.offset + (y * self.size.width + box.x) * pixel_bytes for y in range(box.y, box.bottom))
        data = b"".join(read(start, box.width * pixel_bytes) for start in starts)
        flat = np.frombuffer(data, self.dtype).astype(self.dtype.newbyteorder("="), copy=False)
        return flat.reshape(box.height, box.width, self.depth)


@dataclass(frozen=True)
class TiffLevel:
    """One level: its size, the size of its segments, its planes (several if colours are stored apart)."""

    size: Size
    segment: Size
    planes: tuple[Plane, ...]
    to_rgb: Callable[[Samples], Pixels]

    @property
    def across(self) -> int:
        """Segments in a row."""
        return math.ceil(self.size.width / self.segment.width)

    def segments_in(self, box: Box) -> Iterator[Segment]:
        """The segments that share a pixel with a box inside the level."""
        width, height = self.segment.width, self.segment.height
        for row in range(box.y // height, (box.bottom - 1) // height + 1):
            for col in range(box.x // width, (box.right - 1) // width + 1):
                yield Segment(row * self.across + col, Box(col * width, row * height, width, height).clipped(self.size))


def levels_of(series: tifffile.TiffPageSeries) -> tuple[TiffLevel, ...]:
    """The pyramid of a series, largest level first.

    Raises:
        Unsupported: stacks, fluorescence channels, sample types and colour spaces that are no RGB or grey picture.
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
    stored = math.prod(series.shape)
    seen = f"{'×'.join(map(str, series.shape))} samples ({series.axes}) of type {series.dtype}"
    one_picture = pages == 1 and stored == first.imagewidth * first.imagelength * first.samplesperpixel
    # three 8-bit channels in pages of their own are how some writers store RGB; deeper ones are fluorescence
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


def _to_rgb(page: tifffile.TiffPage, pages: int) -> Callable[[Samples], Pixels]:
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


def _additive_to_rgb(colours: int, alpha: int, inverted: bool, samples: Samples) -> Pixels:
    values = to_uint8(samples)
    rgb = values[..., :colours]
    if inverted:
        rgb = 255 - rgb
    if colours == 1:
        rgb = np.repeat(rgb, 3, axis=-1)
    if alpha == _UNASSOCIATED:
        return composite(rgb, values[..., colours], background=WHITE)
    if alpha == _ASSOCIATED:
        return composite_premultiplied(rgb, values[..., colours], background=WHITE)
    return rgb


def _palette_to_rgb(colours: Pixels, samples: Samples) -> Pixels:
    return colours[samples[..., 0].astype(np.intp)]


def _cmyk_to_rgb(samples: Samples) -> Pixels:
    light = 255 - to_uint8(samples).astype(np.uint16)
    return ((light[..., :3] * light[..., 3:] + 127) // 255).astype(np.uint8)


def resolution_mpp(page: tifffile.TiffPage) -> tuple[float | None, float | None]:
    """µm per pixel in x and y of the resolution tags, None where absent or without a unit."""
    unit_um = {2: 25400.0, 3: 10000.0}.get(int(page.tags.valueof("ResolutionUnit", 2)))

    def mpp(tag: str) -> float | None:
        value = page.tags.valueof(tag)
        if unit_um is None or not isinstance(value, Sequence) or len(value) != 2 or not all(value):
            return None
        return unit_um * float(value[1]) / float(value[0])

    return mpp("XResolution"), mpp("YResolution")
