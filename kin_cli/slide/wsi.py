"""Slides read by OpenSlide."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openslide
from PIL import ImageCms

from kin_cli.errors import InputError
from kin_cli.geometry import Box, Pixels, Size
from kin_cli.slide.base import WHITE, Slide, composite, rgb_profile
from kin_cli.slide.reasons import refusal, unread
from kin_cli.slide.tiff import TiffSlide

_BLOCK_PX = 512
_TILES_AS_THEY_ARE = {"aperio", "generic-tiff"}
_LARGER_TILES = "Dimensional mismatch reading"  # OpenSlide's error for a tile that holds more pixels than it should


def library_version() -> str:
    """The version of the OpenSlide library."""
    return str(openslide.__library_version__)


def detect(path: Path) -> str | None:
    """OpenSlide's vendor name for the format of a file; None if OpenSlide does not recognise it."""
    vendor: str | None = openslide.OpenSlide.detect_format(str(path))
    return vendor


class WholeSlide(Slide):
    """A slide opened with OpenSlide; all threads share one handle."""

    def __init__(self, path: Path, vendor: str) -> None:
        self.path = path
        self.format = vendor
        self._handle = self._opened()
        self._reopening = threading.Lock()
        self._tiff: TiffSlide | None = None
        self._no_tiff = False
        properties = self._handle.properties
        self.levels = tuple(Size(width, height) for width, height in self._handle.level_dimensions)
        self.downsamples = tuple(self._handle.level_downsamples)
        self.set_pixel_size(_number(properties, "openslide.mpp-x"), _number(properties, "openslide.mpp-y"))
        self.objective = _number(properties, "openslide.objective-power")
        self._tile_sizes = [_tile_size(properties, level) for level in range(len(self.levels))]
        self.fill_colour = _colour(properties.get("openslide.background-color"))
        bounds = [_number(properties, f"openslide.bounds-{name}") for name in ("x", "y", "width", "height")]
        if None not in bounds[2:]:  # a corner at 0 is None
            self.bounds_origin = (int(bounds[0] or 0), int(bounds[1] or 0))
            self.bounds_size = Size(max(1, int(bounds[2] or 0)), max(1, int(bounds[3] or 0)))
        self.icc = self._profile()

    def close(self) -> None:
        """See ``Slide.close``."""
        self._handle.close()
        if self._tiff is not None:
            self._tiff.close()

    def tile_size(self, level: int) -> Size | None:
        """See ``Slide.tile_size``."""
        return self._tile_sizes[level]

    def jpeg_tile(self, level: int, col: int, row: int) -> bytes | None:
        """See ``Slide.jpeg_tile``; for TIFF files whose tiles OpenSlide shows as they are."""
        if self.format not in _TILES_AS_THEY_ARE or not 0 <= level < len(self.levels):
            return None
        with self._reopening:
            found = self._in_tiff(level)
        if found is None or self._tiff is None or self._tiff.tile_size(found) != self.tile_size(level):
            return None
        return self._tiff.jpeg_tile(found, col, row)

    def _fetch(self, level: int, box: Box) -> Pixels:
        if level == 0 or self.downsamples[level].is_integer():
            return self._region(level, box)
        # OpenSlide takes the corner in whole level-0 pixels. If the downsample is not an integer, the corner falls
        # between two pixels of the level and OpenSlide interpolates, so the value of a pixel would depend on the box.
        # With fixed blocks it depends on the position only.
        pixels = np.empty((box.height, box.width, 3), np.uint8)
        for block in _blocks(box, self.levels[level]):
            part = block.intersection(box)
            pixels[part.slices(box)] = self._region(level, block)[part.slices(block)]
        return pixels

    def _region(self, level: int, box: Box) -> Pixels:
        handle = self._handle
        try:
            return self._read(handle, level, box)
        except openslide.OpenSlideError:
            return self._read_afresh(level, box)

    def _read_afresh(self, level: int, box: Box) -> Pixels:
        # After any error an OpenSlide handle fails for ever, in every thread. So the second try has its own handle,
        # which becomes the shared one only if it succeeds: one damaged tile never makes other reads fail.
        with self._reopening:
            handle = self._opened()
            try:
                pixels = self._read(handle, level, box)
            except openslide.OpenSlideError as error:
                handle.close()
                if _LARGER_TILES in str(error) and (stored := self._stored(level, box)) is not None:
                    return stored
                raise unread(self.path, f"level {level} cannot be read at {box}", error) from error
            # other threads may still use the old handle; it is closed when the last reference to it goes
            self._handle = handle
            return pixels

    def _stored(self, level: int, box: Box) -> Pixels | None:
        """Pixels of a TIFF-based slide by ``TiffSlide``, which cuts tiles that are too large; None if it cannot."""
        found = self._in_tiff(level)
        try:
            return None if found is None or self._tiff is None else self._tiff.read(found, box)
        except InputError:
            return None

    def _in_tiff(self, level: int) -> int | None:
        """The number of a level in ``TiffSlide``, which is opened for it; None if that cannot read it."""
        if self._tiff is None and not self._no_tiff:
            try:
                self._tiff = TiffSlide(self.path)
            except InputError:
                self._no_tiff = True
        sizes = () if self._tiff is None else self._tiff.levels
        return sizes.index(self.levels[level]) if self.levels[level] in sizes else None

    def _read(self, handle: openslide.OpenSlide, level: int, box: Box) -> Pixels:
        downsample = self.downsamples[level]
        corner = (round(box.x * downsample), round(box.y * downsample))
        image = handle.read_region(corner, level, (box.width, box.height))
        if image.getchannel("A").getextrema() == (255, 255):  # by Pillow in a third of the time
            return np.frombuffer(bytearray(image.tobytes("raw", "RGB")), np.uint8).reshape(box.height, box.width, 3)
        rgba = np.asarray(image)
        alpha = rgba[..., 3]
        return composite(rgba[..., :3], alpha, fill_colour=self.fill_colour)

    def _profile(self) -> bytes | None:
        try:
            profile = self._handle.color_profile
        except ImageCms.PyCMSError:
            # a profile that LittleCMS cannot parse is useless in the output, too
            return None
        return None if profile is None else rgb_profile(bytes(profile.tobytes()))

    def _opened(self) -> openslide.OpenSlide:
        try:
            return openslide.OpenSlide(str(self.path))
        except (openslide.OpenSlideError, OSError) as error:
            raise refusal(self.path, f"{self.format} slide", error) from error


def _blocks(box: Box, size: Size) -> list[Box]:
    """The blocks of a fixed grid over a level of ``size`` that overlap ``box``, clipped to the level."""
    rows = range(box.y - box.y % _BLOCK_PX, box.bottom, _BLOCK_PX)
    cols = range(box.x - box.x % _BLOCK_PX, box.right, _BLOCK_PX)
    return [Box(x, y, _BLOCK_PX, _BLOCK_PX).clipped(size) for y in rows for x in cols]


def _tile_size(properties: Mapping[str, str], level: int) -> Size | None:
    width, height = (_number(properties, f"openslide.level[{level}].tile-{side}") for side in ("width", "height"))
    return Size(int(width), int(height)) if width and height else None


def _number(properties: Mapping[str, str], key: str) -> float | None:
    try:
        value = float(properties[key])
    except (KeyError, ValueError):
        return None
    return value if 0 < value < float("inf") else None


def _colour(text: str | None) -> tuple[int, int, int]:
    try:
        red, green, blue = bytes.fromhex(text or "")
    except ValueError:
        return WHITE
    return red, green, blue
