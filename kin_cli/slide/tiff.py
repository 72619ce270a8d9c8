"""Reader for TIFF and OME-TIFF files, segment (tile or strip) by segment."""

from __future__ import annotations

import json
import math
import re
import struct
import threading
import zlib
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from kin_cli.errors import InputError, UsageError
from kin_cli.geometry import Box, Pixels, Size
from kin_cli.slide.base import Slide, downsamples_of, rgb_profile
from kin_cli.slide.reasons import DAMAGED_HINT, refusal, unread
from kin_cli.slide.tiff_colours import Colours, Unsupported, colours_of
from kin_cli.slide.tiff_layout import (
    Segment,
    check_segments,
    levels_of,
    odd_colours,
    odd_tiles,
    resolution_mpp,
    segment_bytes,
    tiff_file,
)
from kin_cli.slide.tiff_pictures import Picture, choose, named_colour, pictures_of

_CACHE_BYTES, _STRIPS_CACHE_BYTES = 64 << 20, 512 << 20
_STRIPS_CACHE_ROWS = 1280
_BIG_SEGMENT_BYTES = 16 << 20
_LARGEST_FOR_OPENSLIDE = 1 << 28  # bytes of a tile: it decodes one in each thread, ``TiffSlide`` large ones one by one
_SAMPLED_SEGMENTS, _SAMPLED_LEVEL_PX = 64, 4 << 20
_BITS_IN_USE = (8, 10, 12, 14)
_UM = {
    "m": 1e6,
    "dm": 1e5,
    "cm": 1e4,
    "mm": 1e3,
    "µm": 1.0,
    "um": 1.0,
    "nm": 1e-3,
    "pm": 1e-6,
    "fm": 1e-9,
    "å": 1e-4,
    "thou": 25.4,
    "mil": 25.4,
    "in": 25400.0,
    "inch": 25400.0,
    "inches": 25400.0,
    '"': 25400.0,
    "ft": 304800.0,
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "micrometers": 1.0,
    "micrometre": 1.0,
    "micrometres": 1.0,
    "nanometer": 1e-3,
    "nanometers": 1e-3,
    "millimeter": 1e3,
    "millimeters": 1e3,
    "centimeter": 1e4,
    "centimeters": 1e4,
    "angstrom": 1e-4,
}
# none, LZW, JPEG, Deflate, PackBits, and the JPEG 2000 of Aperio
_OPENSLIDE_CODECS = {1, 5, 7, 8, 32773, 32946, 33003, 33005}
# what tifffile, NumPy and the codecs raise for damaged files and meaningless fields
_DECODING_ERRORS = (
    ValueError,
    RuntimeError,
    TypeError,
    LookupError,
    OSError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    MemoryError,
    RecursionError,
    ImportError,
    struct.error,
    zlib.error,
    ElementTree.ParseError,
)


def check_for_openslide(path: Path, vendor: str) -> tuple[bool, tuple[str, ...]]:
    """Whether OpenSlide reads a TIFF-based slide of a vendor right, and notes; if not, ``TiffSlide`` does.

    Raises:
        InputError: neither must open it: a tile is too large for the memory, the samples are neither RGB nor grey, or
            several pictures of the same size lie over each other.
    """
    try:
        with tiff_file(path) as file:
            pages = [page for page in file.pages if isinstance(page, tifffile.TiffPage)]
            for page in pages:
                check_segments(page, strips=False)
            first = pages[0]
            if first.photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.MINISBLACK):
                colours_of(first)
            if vendor == "aperio":
                return _plain_aperio(pages), ()
            return True, _vendor_notes(first, vendor)
    except Unsupported as error:
        raise _unusable(path, error) from None
    except _DECODING_ERRORS:
        return True, ()  # OpenSlide tells what is wrong


def _plain_aperio(pages: list[tifffile.TiffPage]) -> bool:
    """Whether OpenSlide reads all levels of an Aperio slide right: the largest first, 8-bit RGB or grey, no alpha."""
    tiled = [page for page in pages if page.is_tiled and not int(page.subfiletype) & 1]
    if not tiled:
        return True
    sizes = [(page.imagewidth, page.imagelength) for page in tiled]
    largest = max(sizes, key=lambda size: size[0] * size[1])
    if sizes.count(largest) > 1:
        what = f"{sizes.count(largest)} pictures of {largest[0]}×{largest[1]} pixels, a focal stack or channels"
        raise Unsupported(what, "export one plane in RGB")
    known = (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR, tifffile.PHOTOMETRIC.MINISBLACK)
    return sizes[0] == largest and all(
        page.photometric in known
        and page.planarconfig == 1
        and page.bitspersample == 8
        and page.samplesperpixel in (1, 3)
        and page.tags.valueof("Orientation", 1) in (0, 1)
        and int(page.compression) in _OPENSLIDE_CODECS
        and not odd_tiles(page)
        and segment_bytes(page) <= _LARGEST_FOR_OPENSLIDE
        for page in tiled
    )


def _vendor_notes(page: tifffile.TiffPage, vendor: str) -> tuple[str, ...]:
    """Notes on the first page of a slide that only OpenSlide can read; ``Unsupported`` if OpenSlide misreads it."""
    if page.bitspersample != 8 or page.samplesperpixel not in (1, 3):
        pixel = f"{page.samplesperpixel} samples of {page.bitspersample} bits"
        raise Unsupported(f"a slide of the format {vendor} with {pixel} per pixel")
    orientation = page.tags.valueof("Orientation", 1)
    return () if orientation in (0, 1) else (_turned(orientation),)


def _turned(orientation: int) -> str:
    return f"its orientation tag ({orientation}) is not applied, as in slide viewers"


def plain_picture(path: Path, series: int | None) -> tuple[tuple[Size, ...], float | None, tuple[str, ...]] | None:
    """Levels, objective and notes of a file that OpenSlide, too, reads right as a generic TIFF; None if it would not.

    OpenSlide takes the first page and the tiled reduced ones for its levels, with the first samples of each. It reads
    other pictures, channels and depths as something else, and no levels in SubIFDs. If the downsample of a level is not
    an integer, OpenSlide interpolates between stored pixels (errors of up to 40 grey levels in a pyramid whose sizes
    were halved and rounded down); ``TiffSlide`` returns the stored pixels.
    """
    try:
        with tiff_file(path) as file:
            picture, notes = choose(path, pictures_of(file), series)
            one, page = picture.series, picture.series.keyframe
            if file.is_ome or file.is_imagej or page.index != 0 or picture.colours is None or len(one.pages) != 1:
                return None
            known = picture.colours.kind in ("RGB", "grey") and not picture.colours.inverted
            flat = page.is_tiled and page.planarconfig == 1 and page.bitspersample == 8
            extra = picture.colours.alpha or picture.colours.ignored
            if not (known and flat) or extra or page.tags.valueof("Orientation", 1) not in (0, 1):
                return None
            if any(int(other.subfiletype) & 4 for other in file.pages if isinstance(other, tifffile.TiffPage)):
                return None
            for other in file.pages:
                if isinstance(other, tifffile.TiffPage):
                    check_segments(other, strips=False)
            if any(segment_bytes(level.keyframe) > _LARGEST_FOR_OPENSLIDE for level in one.levels):
                return None
            if any(odd_tiles(other) or odd_colours(other) for other in (level.keyframe for level in one.levels)):
                return None
            sizes = tuple(Size(level.keyframe.imagewidth, level.keyframe.imagelength) for level in one.levels)
            halved = all(sizes[0].width % size.width == 0 == sizes[0].height % size.height for size in sizes)
            stored = {(size.width, size.height) for size in sizes}
            # OpenSlide takes every tiled page marked as reduced for a level, and complains on stderr of odd ones
            reduced = {
                (other.imagewidth, other.imagelength)
                for other in file.pages
                if isinstance(other, tifffile.TiffPage) and other.is_tiled and int(other.subfiletype) & 1
            }
            return (sizes, _kin_objective(page), notes) if halved and reduced <= stored else None
    except (*_DECODING_ERRORS, InputError, UsageError, Unsupported):
        return None


def picture_size(path: Path, series: int) -> Size | None:
    """Size of picture ``series`` of a TIFF file; None if there is none."""
    try:
        with tiff_file(path) as file:
            page = file.series[series].keyframe
            return Size(page.imagewidth, page.imagelength)
    except _DECODING_ERRORS:
        return None


class TiffSlide(Slide):
    """A TIFF or OME-TIFF image, flat or a pyramid (reduced pages or SubIFDs); see ``choose`` for files with several.

    Grey, palette, CMYK and YCbCr are converted to RGB, up to 16 bits to 8, alpha is composited on white. The
    orientation tag is ignored, as in slide viewers, and noted.

    Memory bound: 64 MiB of decoded tiles, one tile per reading thread, and 16 bytes per stored tile. Of compressed
    strips, which are as wide as the image, 1280 rows of the image are kept, but at most 512 MiB, or the largest strip.
    Uncompressed images are read in place. ``memory_bytes`` is what goes beyond 64 MiB and small tiles.
    """

    def __init__(self, path: Path, series: int | None = None) -> None:
        self.path = path
        self._file = path.open("rb")
        self._file_lock = threading.Lock()
        self._big_lock = threading.Lock()
        try:
            self._read_structure(series)
            self._check_extent()
        except Unsupported as error:
            self._file.close()
            raise _unusable(path, error) from None
        except (InputError, UsageError):
            self._file.close()
            raise
        except _DECODING_ERRORS as error:
            self._file.close()
            shown = ValueError("it ends too early") if isinstance(error, (IndexError, struct.error)) else error
            raise refusal(path, "TIFF", shown) from error
        capacity = self._cache_bytes()
        self._cache = _Cache(capacity)
        self.memory_bytes = capacity - _CACHE_BYTES + self._big_bytes

    def _read_structure(self, series: int | None) -> None:
        """Set all attributes from the file's tags."""
        with tiff_file(self.path) as file:
            picture, self.notes = choose(self.path, pictures_of(file), series)
            assert picture.colours is not None
            colours, page = picture.colours, picture.series.keyframe
            self.format = "ome-tiff" if file.is_ome else "aperio" if file.is_svs else "tiff"
            self._describe(file, picture)
            self._levels = levels_of(picture.series, colours)
            if page.dtype == np.uint16 and int(page.bitspersample) == 16:
                bits, note = self._bits_in_use(colours)
                if bits != colours.bits:
                    self._levels = levels_of(picture.series, replace(colours, bits=bits))
                self.notes += note
            self._big_bytes = max(
                (size for level in self._levels if (size := 3 * level.segment.pixels) >= _BIG_SEGMENT_BYTES), default=0
            ) * (1 + int(page.samplesperpixel) * page.dtype.itemsize)
        self._sound = [bytearray(level.planes[0].stored) for level in self._levels]  # 1: need not be checked again
        self.levels = tuple(level.size for level in self._levels)
        self.downsamples = downsamples_of(self.levels)

    def close(self) -> None:
        """See ``Slide.close``."""
        self._file.close()
        self._cache.clear()

    def tile_size(self, level: int) -> Size | None:
        """See ``Slide.tile_size``."""
        layout = self._levels[level]
        return layout.segment if layout.tiled else None

    def jpeg_tile(self, level: int, col: int, row: int) -> bytes | None:
        """See ``Slide.jpeg_tile``."""
        layout = self._levels[level]
        down = math.ceil(layout.size.height / layout.segment.height)
        if layout.jpeg is None or not (0 <= col < layout.across and 0 <= row < down):
            return None
        number, sound = row * layout.across + col, self._sound[level]
        data = layout.planes[0].stored_bytes(self._bytes, number)
        file = None if data is None else layout.jpeg.file(data, known_sound=bool(sound[number]))
        if file is not None:
            sound[number] = 1
        return file

    def _describe(self, file: tifffile.TiffFile, picture: Picture) -> None:
        """Set pixel size, objective and ICC profile, and add notes."""
        page = picture.series.keyframe
        x, y = resolution_mpp(page, _imagej_unit(file))
        if file.is_ome:
            x, y = (None, None) if picture.ome is None else (_micrometres(*size) for size in picture.ome.sizes)
            self.objective = _ome_objective(file.ome_metadata)
        else:
            self.objective = _kin_objective(page)
        told = _aperio_description(file, page)
        if told:
            self.objective = _positive(str(told.get("AppMag", "")), 1.0)
            x = y = _positive(str(told.get("MPP", "")), 1.0)
        self.set_pixel_size(x, y)
        profile = page.tags.valueof("InterColorProfile")
        is_rgb = page.photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
        self.icc = rgb_profile(bytes(profile)) if profile and is_rgb else None
        orientation = page.tags.valueof("Orientation", 1)
        if orientation not in (0, 1):
            self.notes += (_turned(orientation),)
        if picture.colours is not None and picture.colours.ignored:
            self.notes += ("the fourth sample of each pixel is neither a colour nor alpha and is left out",)
        if picture.colours is not None and picture.colours.planes == 3:
            named = picture.ome is not None and any(named_colour(one.name) is not None for one in picture.ome.channels)
            if not named:
                self.notes += ("three channels without names are taken for red, green and blue",)

    def _bits_in_use(self, colours: Colours) -> tuple[int, tuple[str, ...]]:
        """Bits in use of 16-bit samples, and a note if the file does not state them."""
        largest = self._largest_sample(3 if colours.kind == "RGB" else 4 if colours.kind == "CMYK" else 1)
        if colours.inverted or colours.kind == "CMYK":  # 0 is white: a pale picture has small samples
            if largest < 2**colours.bits and (colours.bits < 16 or largest >= 2 ** _BITS_IN_USE[-1] or largest == 0):
                return colours.bits, ()
            return 16, (f"its samples reach {largest}; they are taken for numbers of 16 bits, so 0 is white",)
        if largest < 2**colours.bits and (colours.bits < 16 or largest >= 2 ** _BITS_IN_USE[-1] or largest == 0):
            return colours.bits, ()
        bits = next((bits for bits in _BITS_IN_USE if largest < 2**bits), 16)
        stated = "although the file states no other depth than 16" if colours.bits == 16 else f"not {colours.bits}"
        return bits, (f"its samples reach {largest}, so they are taken for numbers of {bits} bits, {stated}",)

    def _largest_sample(self, colours: int) -> int:
        """The largest sample in the smallest level and in 64 segments all over the largest one."""
        largest, small = 0, self._levels[-1]
        for layout in self._levels if len(self._levels) == 1 else (self._levels[0], small):
            segments = list(layout.segments_in(Box(0, 0, layout.size.width, layout.size.height)))
            whole = layout is small and layout.size.pixels <= _SAMPLED_LEVEL_PX
            step = 1 if whole else max(1, len(segments) // _SAMPLED_SEGMENTS)
            for segment in segments[::step]:
                try:
                    found = [plane.samples(self._bytes, segment) for plane in layout.planes]
                except _DECODING_ERRORS:
                    continue  # told when it is read
                counts = colours if len(found) == 1 else 1
                planes = [plane[..., :counts] for plane in found[:colours] if plane is not None]
                largest = max([largest, *(int(plane.max()) for plane in planes if plane.size)])
        return largest

    def _check_extent(self) -> None:
        """Raise ``InputError`` if a tile or strip lies beyond the end of the file."""
        extent = self.path.stat().st_size
        for level in self._levels:
            lost = sum(plane.beyond(extent) for plane in level.planes)
            if lost:
                stored = sum(plane.stored for plane in level.planes)
                what = f"{lost} of {stored} tiles or strips of the {level.size} level lie beyond its end"
                raise InputError(f"{self.path}: the file is truncated: {what}", DAMAGED_HINT)

    def _cache_bytes(self) -> int:
        full = self._levels[0]
        if full.segment.width < full.size.width:
            return _CACHE_BYTES
        # all windows in a row need the same strips; without a cache of this size each window would decode them again
        return max(_CACHE_BYTES, min(_STRIPS_CACHE_BYTES, 3 * full.size.width * _STRIPS_CACHE_ROWS))

    def _fetch(self, level: int, box: Box) -> Pixels:
        pixels = np.empty((box.height, box.width, 3), np.uint8)
        for segment in self._levels[level].segments_in(box):
            part = segment.box.intersection(box)
            pixels[part.slices(box)] = self._segment(level, segment)[part.slices(segment.box)]
        return pixels

    def _segment(self, level: int, segment: Segment) -> Pixels:
        key = (level, segment.number)
        found = self._cache.get(key)
        if found is not None:
            return found
        if 3 * segment.box.width * segment.box.height < _BIG_SEGMENT_BYTES:
            return self._cache.put(key, self._decoded(level, segment))
        # e.g. an image in a single strip: one thread decodes it while the others wait for the result
        with self._big_lock:
            found = self._cache.get(key)
            return found if found is not None else self._cache.put(key, self._decoded(level, segment))

    def _decoded(self, level: int, segment: Segment) -> Pixels:
        layout, box = self._levels[level], segment.box
        try:
            planes = [plane.samples(self._bytes, segment) for plane in layout.planes]
            samples = [plane for plane in planes if plane is not None]
            if len(samples) < len(planes):
                return np.full((box.height, box.width, 3), self.fill_colour, np.uint8)
            rgb = layout.to_rgb(samples[0] if len(samples) == 1 else np.concatenate(samples, axis=-1))
            if rgb.shape[0] < box.height or rgb.shape[1] < box.width:
                raise ValueError(f"only {rgb.shape[1]}×{rgb.shape[0]} pixels are stored")
        except (*_DECODING_ERRORS, Unsupported) as error:
            raise unread(self.path, f"level {level} cannot be read at {box}", error) from error
        return rgb

    def _bytes(self, offset: int, count: int) -> bytes:
        with self._file_lock:
            self._file.seek(offset)
            return self._file.read(count)


class _Cache:
    """The most recently used segments, up to ``capacity`` bytes in total; at least one, however large."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._held = 0
        self._segments: OrderedDict[tuple[int, int], Pixels] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[int, int]) -> Pixels | None:
        with self._lock:
            segment = self._segments.get(key)
            if segment is not None:
                self._segments.move_to_end(key)
            return segment

    def put(self, key: tuple[int, int], segment: Pixels) -> Pixels:
        with self._lock:
            if key not in self._segments:
                self._segments[key] = segment
                self._held += segment.nbytes
            while self._held > self._capacity and len(self._segments) > 1:
                self._held -= self._segments.popitem(last=False)[1].nbytes
        return segment

    def clear(self) -> None:
        with self._lock:
            self._segments.clear()
            self._held = 0


def _unusable(path: Path, error: Unsupported) -> InputError:
    return InputError(f"{path}: a TIFF that kin cannot use: {error}", error.hint)


def _imagej_unit(file: tifffile.TiffFile) -> float | None:
    """µm per unit of the resolution tags of a file that ImageJ wrote; None if it names no unit of length."""
    if not file.is_imagej:
        return None
    found = (file.imagej_metadata or {}).get("unit")
    return None if found is None else _um(str(found))


def _aperio_description(file: tifffile.TiffFile, page: tifffile.TiffPage) -> dict[str, Any]:
    """What the text of an Aperio slide states, such as MPP and AppMag; empty if there is none."""
    for text in (str(page.description), str(file.pages.first.description)):
        try:
            return dict(tifffile.tifffile.svs_description_metadata(text))
        except ValueError:
            continue
    return {}


def _um(unit: str) -> float | None:
    """µm per unit of length, by its name in OME-XML or ImageJ (which writes µ as ``\\u00B5``); None if unknown."""
    plain = re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), unit).strip()
    plain = plain.replace("\u03bc", "µ").replace("\u00c2µ", "µ").replace("\u212b", "å")
    return _UM.get(plain) or _UM.get(plain.lower())


def _micrometres(value: str | None, unit: str) -> float | None:
    factor = _um(unit)
    return None if factor is None else _positive(value, factor)


def _ome_objective(xml: str) -> float | None:
    """Nominal magnification of the objective in OME-XML; None if unknown."""
    lens = ElementTree.fromstring(xml).find("{*}Instrument/{*}Objective")
    return None if lens is None else _positive(lens.get("NominalMagnification"), 1.0)


def _kin_objective(page: tifffile.TiffPage) -> float | None:
    """Magnification that kin wrote into the description of a plain TIFF; None if unknown, or of another program."""
    try:
        told = json.loads(page.description)
        return _positive(str(told["objective"]), 1.0) if "kin:crc32:0" in told else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _positive(value: str | None, factor: float) -> float | None:
    try:
        number = float(value or "nan") * factor
    except ValueError:
        return None
    return number if math.isfinite(number) and number > 0 else None
