"""How a TIFF file stores its levels: segments (tiles or strips) and planes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import imagecodecs
import numpy as np
import tifffile

from kin_cli.geometry import AnyArray, Box, Integers, Pixels, Size
from kin_cli.memory import memory_limit
from kin_cli.slide.files import EXPORT_HINT
from kin_cli.slide.jpeg import HEAD_BYTES, JpegTiles, check_jpeg, jpeg_size, jpeg_space
from kin_cli.slide.tiff_colours import GIVES_RGB, Colours, Unsupported, to_rgb, unpacked_ycbcr
from kin_cli.store.files import bytes_text

ReadAt = Callable[[int, int], bytes]  # (offset, number of bytes) → bytes of the file

_MEMORY_FRACTION = 4  # decoding a segment takes up to four times its size, and one at a time is decoded
# a segment of more bytes than the first is not believed if it is compressed more than the second
_ALWAYS_BYTES, _MOST_COMPRESSED = 1 << 30, 2000
_JPEG = {6, 7, 34892}
_ZEROS = 16  # bytes at the end of compressed data that no encoder writes
_FAX = {2, 3, 4}
_RAW_SEGMENT_PX = 512
_MAX_SIDE = 1 << 31


def tiff_file(path: Path) -> tifffile.TiffFile:
    """Open a TIFF file; a chain of pages that leads back to itself, over which tifffile would loop, is cut there."""
    file = tifffile.TiffFile(path, _multifile=False)
    len(file.pages)  # reads the whole chain
    return file


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

    def stored_bytes(self, read: ReadAt, number: int) -> bytes | None:
        """A tile or strip as it lies in the file; None if it is not stored, or not apart from others."""


@dataclass(frozen=True)
class _SegmentPlane:
    """Tiles or strips in row-major order: their offsets and sizes in bytes, and their decoder.

    ``decode`` takes the bytes and the number of a segment and returns samples (h, w, n).
    """

    offsets: Integers
    counts: Integers
    decode: Callable[[bytes, int], AnyArray]

    @property
    def stored(self) -> int:
        return len(self.offsets)

    def beyond(self, extent: int) -> int:
        return int(np.count_nonzero(self.offsets + self.counts > extent))

    def samples(self, read: ReadAt, segment: Segment) -> AnyArray | None:
        number = segment.number
        if self.counts[number] == 0:
            return None
        if self.offsets[number] == 0:
            raise ValueError("its tile or strip is said to lie at offset 0, where the header is")
        return self.decode(read(int(self.offsets[number]), int(self.counts[number])), number)

    def stored_bytes(self, read: ReadAt, number: int) -> bytes | None:
        offset, count = int(self.offsets[number]), int(self.counts[number])
        return read(offset, count) if offset and count else None


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

    def stored_bytes(self, read: ReadAt, number: int) -> bytes | None:  # noqa: ARG002
        return None


@dataclass(frozen=True)
class TiffLevel:
    """One level: its size, the size of its segments, its planes, and the conversion of samples (h, w, n) to RGB.

    There are several planes if the colours are stored apart. ``jpeg`` makes JPEG files of its tiles, None if they are
    none that any viewer shows as ``to_rgb`` does.
    """

    size: Size
    segment: Size
    planes: tuple[Plane, ...]
    to_rgb: Callable[[AnyArray], Pixels]
    jpeg: JpegTiles | None = None
    tiled: bool = True

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


def levels_of(series: tifffile.TiffPageSeries, colours: Colours) -> tuple[TiffLevel, ...]:
    """The levels of a series whose samples mean ``colours``, the largest first.

    Raises:
        Unsupported: no decoder is known, or a level differs from the first one in kind.
    """
    first = series.keyframe
    full = Size(first.imagewidth, first.imagelength)
    levels: list[TiffLevel] = []
    for level in series.levels:
        if any(page is None for page in level.pages):
            raise Unsupported("part of a set of several files")
        pages = [page.aspage() for page in level.pages]
        size = Size(pages[0].imagewidth, pages[0].imagelength)
        alike = ("photometric", "samplesperpixel", "bitspersample", "sampleformat")
        same = all(getattr(pages[0], name) == getattr(first, name) for name in alike)
        if not levels or (same and len(pages) == colours.planes and same_extent(full, size)):
            levels.append(_level(pages, colours))
    return tuple(levels)


def same_extent(full: Size, reduced: Size) -> bool:
    """Whether ``reduced`` can be a level of ``full``: smaller, with the same ratio of the sides up to rounding."""
    across, down = full.width / reduced.width, full.height / reduced.height
    slack = max(1 / reduced.width, 1 / reduced.height) * 2 + 0.01
    return min(across, down) >= 1 and abs(across / down - 1) <= slack


def segment_limit() -> int:
    """Size in bytes of the largest tile or strip, decoded, that fits into memory with what decoding it takes."""
    return memory_limit() // _MEMORY_FRACTION


def check_segments(page: tifffile.TiffPage, *, strips: bool = True) -> None:
    """Raise ``Unsupported`` if one tile (or strip) of ``page`` takes more memory than ``segment_limit`` when decoded.

    Beyond 1 GiB it is refused, too, if hardly anything of it is stored: then its size is wrong.
    """
    for side in (page.imagewidth, page.imagelength):
        if not 0 < side < _MAX_SIDE:
            raise ValueError(f"a picture of {page.imagewidth}×{page.imagelength} pixels")
    if not page.is_tiled and (not strips or _is_raw(page)):
        return
    segment, decoded, limit = _segment_size(page), segment_bytes(page), segment_limit()
    empty = decoded > _ALWAYS_BYTES and max(page.databytecounts, default=0) * _MOST_COMPRESSED < decoded
    if decoded > limit or empty:
        what = f"one tile of {segment}" if page.is_tiled else f"one strip of {segment}"
        why = f"more than a quarter of the {bytes_text(_MEMORY_FRACTION * limit)} that may be used here"
        if decoded <= limit:
            why = f"and only {bytes_text(max(page.databytecounts, default=0))} are stored"
        raise Unsupported(
            f"{what} pixels takes {decoded / 1e9:.1f} GB of memory, {why}",
            "write it again in smaller tiles: vips tiffsave IN OUT --tile --pyramid --bigtiff",
        )


def segment_bytes(page: tifffile.TiffPage) -> int:
    """Size in bytes of a decoded tile or strip of a page, all samples together."""
    return _segment_size(page).pixels * int(page.samplesperpixel) * max(1, math.ceil(int(page.bitspersample) / 8))


def odd_tiles(page: tifffile.TiffPage) -> bool:
    """Whether OpenSlide misreads or refuses tiles: some at offset 0, or uncompressed ones not of whole KiB.

    libtiff reads into a buffer of whole KiB and then compares its size with that of a tile.
    """
    if any(count and not offset for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False)):
        return True
    if page.compression != 1 or not page.is_tiled:
        return False
    depth = int(page.samplesperpixel) if page.planarconfig == 1 else 1
    wanted = page.tilelength * math.ceil(page.tilewidth * depth * int(page.bitspersample) / 8)
    return wanted % 1024 != 0 or any(count not in (0, wanted) for count in page.databytecounts)


def odd_colours(page: tifffile.TiffPage) -> bool:
    """Whether the first JPEG tile or strip of a page says that its colours are others than the tag says."""
    if int(page.compression) not in _JPEG or page.samplesperpixel != 3:
        return False
    where = next(((at, size) for at, size in zip(page.dataoffsets, page.databytecounts, strict=False) if size), None)
    if where is None:
        return False
    page.parent.filehandle.seek(where[0])
    told = jpeg_space(page.parent.filehandle.read(min(where[1], HEAD_BYTES)))
    return told is not None and told != int(page.photometric)


def _level(pages: list[tifffile.TiffPage], colours: Colours) -> TiffLevel:
    first = pages[0]
    check_segments(first)
    planes = tuple(plane for page in pages for plane in _planes(page, colours))
    size, segment = Size(first.imagewidth, first.imagelength), _segment_size(first)
    level = TiffLevel(size, segment, planes, to_rgb(first, colours), _jpeg_tiles(first, colours), first.is_tiled)
    wanted = level.across * math.ceil(size.height / segment.height)
    short = [plane.stored for plane in planes if isinstance(plane, _SegmentPlane) and plane.stored < wanted]
    if short:
        raise ValueError(f"only {short[0]} of {wanted} tiles or strips are listed")
    return level


def _jpeg_tiles(page: tifffile.TiffPage, colours: Colours) -> JpegTiles | None:
    """The tiles of a page as JPEG files, if they hold grey, or three colours, of 8 bits and nothing else."""
    plain = page.is_tiled and int(page.compression) == 7 and int(page.predictor) == 1 and int(page.fillorder) == 1
    alone = colours.planes == 1 and not (colours.inverted or colours.alpha or colours.ignored)
    if not (plain and alone and page.bitspersample == 8 and page.planarconfig == 1):
        return None
    photometric, samples = int(page.photometric), int(page.samplesperpixel)
    if (samples, photometric) not in ((1, 1), (3, 2), (3, 6)):
        return None
    return JpegTiles(_segment_size(page), page.jpegtables, photometric if samples == 3 else None)


def _segment_size(page: tifffile.TiffPage) -> Size:
    width, height = page.imagewidth, page.imagelength
    if _is_raw(page):
        return Size(min(width, _RAW_SEGMENT_PX), min(height, _RAW_SEGMENT_PX))
    if page.is_tiled:
        return Size(page.tilewidth, page.tilelength)
    return Size(width, min(height, page.rowsperstrip))


def _is_raw(page: tifffile.TiffPage) -> bool:
    """Whether the rows of a page are uncompressed and follow each other in the file."""
    plain = page.compression == 1 and page.predictor == 1 and page.fillorder == 1 and not _is_subsampled(page)
    return bool(plain and not page.is_tiled and page.is_contiguous and page.bitspersample in (8, 16))


def _is_subsampled(page: tifffile.TiffPage) -> bool:
    """Whether the samples are data units of YCbCr that no JPEG holds."""
    return bool(page.photometric == 6 and page.compression not in GIVES_RGB and page.is_subsampled)


def _planes(page: tifffile.TiffPage, colours: Colours) -> list[Plane]:
    count, depth = (1, int(page.samplesperpixel)) if page.planarconfig == 1 else (int(page.samplesperpixel), 1)
    if _is_raw(page):
        size, dtype = Size(page.imagewidth, page.imagelength), page.dtype.newbyteorder(page.parent.byteorder)
        starts = [page.dataoffsets[0] + plane * size.pixels * dtype.itemsize for plane in range(count)]
        return [_RawPlane(start, size, depth, dtype) for start in starts]
    offsets = np.array(page.dataoffsets, np.int64).reshape(count, -1)
    counts = np.array(page.databytecounts, np.int64).reshape(count, -1)
    decode = _decoder(page, colours)
    return [
        _SegmentPlane(offsets[plane], counts[plane], partial(_in_plane, decode, plane * offsets.shape[1]))
        for plane in range(count)
    ]


def _in_plane(decode: Callable[[bytes, int], AnyArray], first: int, data: bytes, number: int) -> AnyArray:
    return decode(data, first + number)


def _decoder(page: tifffile.TiffPage, colours: Colours) -> Callable[[bytes, int], AnyArray]:
    """The decoder of a page's segments; ``Unsupported`` if tifffile has none for its compression."""
    compression = page.compression
    known = int(compression) == 1 or int(compression) in _JPEG | _FAX or compression in tifffile.TIFF.DECOMPRESSORS
    if not known:
        name = getattr(compression, "name", f"number {int(compression)}")
        raise Unsupported(f"its compression, {name}, is none that kin can decode", EXPORT_HINT)
    if int(page.predictor) != 1 and page.predictor not in tifffile.TIFF.UNPREDICTORS:
        raise Unsupported(f"its predictor, {int(page.predictor)}, is none that kin knows", EXPORT_HINT)
    if colours.kind == "YCbCr" and _is_subsampled(page):
        across, down = (int(value) for value in page.tags.valueof("YCbCrSubSampling", (2, 2)))
        if page.predictor != 1 or page.fillorder != 1 or across not in (1, 2, 4) or down not in (1, 2, 4):
            raise Unsupported(f"YCbCr colours, {across}×{down} subsampled, with a predictor or in reversed bits")
        size = _segment_size(page)
        rows = [min(size.height, page.imagelength - top) for top in range(0, page.imagelength, size.height)]
        heights = [size.height] if page.is_tiled else rows
        return partial(_decode_ycbcr, page, size.width, heights, (across, down))
    return partial(_decode, page.decode, page)


def _decode(decode: Callable[..., Any], page: tifffile.TiffPage, data: bytes, number: int) -> AnyArray:
    """Samples (h, w, n) of one segment; of pictures larger than the segment, as some writers store them, its part."""
    codec = int(page.compression)
    size = jpeg_size(data) if codec in _JPEG else _jpeg2000_size(data)
    if size is not None:
        if size.pixels * 3 > segment_limit():
            raise Unsupported(f"a tile or strip that holds a picture of {size} pixels")
        if codec in _JPEG and page.is_tiled and (size.width > page.tilewidth or size.height > page.tilelength):
            return _larger_jpeg(page, data)
    try:
        found = decode(data, number, jpegtables=page.jpegtables)[0]
    except tifffile.TiffFileError:
        if page.compression not in tifffile.TIFF.IMAGE_COMPRESSIONS or not page.is_tiled:
            raise
        found = _larger_picture(page, tifffile.TIFF.DECOMPRESSORS[page.compression](data))[None]
    if found is None:
        raise ValueError("nothing is stored")
    if codec in _JPEG:
        check_jpeg(data, page.jpegtables)
    elif size is not None:
        _check_jpeg2000(data)
    samples: AnyArray = found[0]
    return samples.astype(np.bool_) if codec in _FAX and int(page.bitspersample) == 1 else samples


def _check_jpeg2000(data: bytes) -> None:
    """Raise ``ValueError`` if a JPEG 2000 codestream ends before its last tile-part or in zeros."""
    at = data.find(b"\xff\x90", data.find(b"\xff\x4f\xff\x51"))
    while at >= 0 and data[at : at + 2] == b"\xff\x90" and at + 12 <= len(data):
        length = int.from_bytes(data[at + 6 : at + 10], "big")
        if at + length > len(data):
            raise ValueError(f"a JPEG 2000 codestream of {len(data)} bytes that should have {at + length} or more")
        if length < 12:
            break  # the last part: all that follows
        at += length
    kept = data.rstrip(b"\0")
    if not kept.endswith(b"\xff\xd9") and len(data) - len(kept) >= _ZEROS:
        raise ValueError("a JPEG 2000 codestream that ends in zeros")


def _larger_jpeg(page: tifffile.TiffPage, data: bytes) -> AnyArray:
    check_jpeg(data, page.jpegtables)
    spaces = tifffile.tifffile.jpeg_decode_colorspace(
        page.photometric, page.planarconfig, page.extrasamples, page.is_jfif
    )
    samples: AnyArray = imagecodecs.jpeg_decode(
        data, tables=page.jpegtables, colorspace=spaces[0], outcolorspace=spaces[1]
    )
    return _larger_picture(page, samples)


def _larger_picture(page: tifffile.TiffPage, samples: AnyArray) -> AnyArray:
    samples = samples if samples.ndim == 3 else samples[..., None]
    wanted = (page.tilelength, page.tilewidth, page.samplesperpixel if page.planarconfig == 1 else 1)
    if any(have < want for have, want in zip(samples.shape, wanted, strict=True)):
        raise ValueError(f"a tile holds {samples.shape} samples instead of {wanted}")
    return samples[: wanted[0], : wanted[1], : wanted[2]]


def _jpeg2000_size(data: bytes) -> Size | None:
    """Size that the header of a JPEG 2000 codestream states; None if the bytes are something else."""
    at = data.find(b"\xff\x4f\xff\x51", 0, 200)
    if at < 0 or (at and not data.startswith(b"\0\0\0\x0cjP")):
        return None
    width, height, left, top = (int.from_bytes(data[start : start + 4], "big") for start in range(at + 8, at + 24, 4))
    return Size(width - left, height - top) if width > left and height > top else None


def _decode_ycbcr(
    page: tifffile.TiffPage, width: int, heights: list[int], subsampling: tuple[int, int], data: bytes, number: int
) -> AnyArray:
    compression = page.compression
    raw = data if int(compression) == 1 else tifffile.TIFF.DECOMPRESSORS[compression](data)
    return unpacked_ycbcr(bytes(raw), (heights[min(number, len(heights) - 1)], width), subsampling)


def resolution_mpp(page: tifffile.TiffPage, unit_um: float | None = None) -> tuple[float | None, float | None]:
    """µm per pixel in x and y from the resolution tags; None if a tag is missing or has no unit.

    ``unit_um`` is the unit in µm if something else than the tag ResolutionUnit states it.
    """
    if unit_um is None:
        unit_um = {2: 25400.0, 3: 10000.0}.get(int(page.tags.valueof("ResolutionUnit", 2)))

    def mpp(tag: str) -> float | None:
        value = page.tags.valueof(tag)
        if unit_um is None or not isinstance(value, Sequence) or len(value) != 2 or not all(value):
            return None
        return unit_um * float(value[1]) / float(value[0])

    return mpp("XResolution"), mpp("YResolution")
