"""Reader for TIFF and OME-TIFF files, segment (tile or strip) by segment."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import tifffile

from kin_cli.errors import InputError
from kin_cli.geometry import Box, Pixels
from kin_cli.slide.base import Slide, credible_mpp, downsamples_of
from kin_cli.slide.tiff_layout import Segment, Unsupported, levels_of, resolution_mpp

_CACHE_BYTES, _STRIPS_CACHE_BYTES = 64 << 20, 512 << 20
_STRIPS_CACHE_ROWS = 1280
_BIG_SEGMENT_BYTES = 16 << 20
_UM = {
    "m": 1e6,
    "cm": 1e4,
    "mm": 1e3,
    "µm": 1.0,
    "μm": 1.0,
    "um": 1.0,
    "nm": 1e-3,
    "pm": 1e-6,
    "Å": 1e-4,
    "in": 25400.0,
}
_DAMAGED_HINT = "the file is damaged or incomplete; copy it again from its source"
# what tifffile, NumPy and the codecs raise for damaged files and meaningless fields
_DECODING_ERRORS = (
    ValueError,
    RuntimeError,
    TypeError,
    LookupError,
    OSError,
    ArithmeticError,
    AttributeError,
    ElementTree.ParseError,
)


def reads_better(path: Path) -> bool:
    """Whether ``TiffSlide`` reads a file better that OpenSlide recognises as a generic TIFF.

    OpenSlide shows only the first channel of an OME-TIFF with separate channels, and no levels in SubIFDs. If the
    downsample of a level is not an integer, OpenSlide interpolates between stored pixels (errors of up to 40 grey
    levels in a pyramid whose sizes were halved and rounded down); ``TiffSlide`` returns the stored pixels.
    """
    try:
        with tifffile.TiffFile(path, _multifile=False) as file:
            sizes = [(level.keyframe.imagewidth, level.keyframe.imagelength) for level in file.series[0].levels]
            halved = all(sizes[0][axis] % size[axis] == 0 for size in sizes for axis in (0, 1))
            return bool(file.is_ome) or not halved
    except _DECODING_ERRORS:
        return False


class TiffSlide(Slide):
    """A TIFF or OME-TIFF image, flat or a pyramid (reduced pages or SubIFDs).

    Grey, palette and CMYK are converted to RGB, 16 bits to 8, alpha is composited on white. The orientation tag is
    ignored, as in slide viewers.

    Memory bound: 64 MiB of decoded tiles, one tile per reading thread, and 16 bytes per stored tile. Of compressed
    strips, which are as wide as the image, 1280 rows of the image are kept, but at most 512 MiB, or the largest strip.
    Uncompressed images are read in place.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with tifffile.TiffFile(path, _multifile=False) as file:
                self._describe(file)
                self._levels = levels_of(file.series[0])
            self.levels = tuple(level.size for level in self._levels)
            self.downsamples = downsamples_of(self.levels)
            self._check_extent()
        except Unsupported as error:
            hint = "kin reads 8 and 16-bit RGB and grey pictures; export one plane as RGB"
            raise InputError(f"{path}: a TIFF that kin cannot use: {error}", hint) from None
        except _DECODING_ERRORS as error:
            what = "it ends too early" if isinstance(error, IndexError) else error
            raise InputError(f"{path}: not a readable TIFF: {what}", _DAMAGED_HINT) from error
        self._file = path.open("rb")
        self._file_lock = threading.Lock()
        self._big_lock = threading.Lock()
        self._cache = _Cache(self._cache_bytes())

    def close(self) -> None:
        """See ``Slide.close``."""
        self._file.close()
        self._cache.clear()

    def _describe(self, file: tifffile.TiffFile) -> None:
        """Set format, pixel size, objective and ICC profile."""
        page = file.series[0].keyframe
        self.format = "ome-tiff" if file.is_ome else "tiff"
        x, y = resolution_mpp(page)
        if file.is_ome:
            x, y, self.objective = _ome_facts(file.ome_metadata)
        self.mpp = credible_mpp(x, y)
        profile = page.tags.valueof("InterColorProfile")
        is_rgb = page.photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
        self.icc = bytes(profile) if profile and is_rgb else None

    def _check_extent(self) -> None:
        """Raise ``InputError`` if a tile or strip lies beyond the end of the file."""
        extent = self.path.stat().st_size
        for level in self._levels:
            lost = sum(plane.beyond(extent) for plane in level.planes)
            if lost:
                stored = sum(plane.stored for plane in level.planes)
                what = f"{lost} of {stored} tiles or strips of the {level.size} level lie beyond its end"
                raise InputError(f"{self.path}: the file is truncated: {what}", _DAMAGED_HINT)

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
        except _DECODING_ERRORS as error:
            raise InputError(f"{self.path}: level {level} cannot be read at {box}: {error}", _DAMAGED_HINT) from error
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


def _ome_facts(xml: str) -> tuple[float | None, float | None, float | None]:
    """Pixel size in x and y (µm) and objective magnification of the first image in OME-XML; None if unknown."""
    root = ElementTree.fromstring(xml)
    pixels = root.find("{*}Image/{*}Pixels")
    lens = root.find("{*}Instrument/{*}Objective")
    if pixels is None:
        return None, None, None
    factors = [_UM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"), math.nan) for axis in "XY"]
    x, y = (_positive(pixels.get(f"PhysicalSize{axis}"), factor) for axis, factor in zip("XY", factors, strict=True))
    objective = None if lens is None else _positive(lens.get("NominalMagnification"), 1.0)
    return x, y, objective


def _positive(value: str | None, factor: float) -> float | None:
    try:
        number = float(value or "nan") * factor
    except ValueError:
        return None
    return number if math.isfinite(number) and number > 0 else None
