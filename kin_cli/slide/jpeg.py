"""JPEG streams as TIFF files hold them: what their markers say, whether they are damaged, and whole files of them."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyvips

from kin_cli.geometry import Size

HEAD_BYTES = 1 << 16
# baseline, extended or progressive JPEG of 1, 3 or 4 components
_FRAME_8_BITS = re.compile(rb"\xff[\xc0-\xc2]\0[\x0b\x11\x14]\x08")
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SHOWN_FRAMES = {0xC0, 0xC1, 0xC2}
_ZEROS = 16  # bytes at the end of compressed data that no encoder writes
_RGB, _YCBCR = 2, 6  # as the tag PhotometricInterpretation has it


def jpeg_size(data: bytes) -> Size | None:
    """Size that the frame header of a JPEG states; None if there is none in the bytes."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _FRAMES:
            height, width = (int.from_bytes(data[start : start + 2], "big") for start in (at + 5, at + 7))
            return Size(width, height) if width and height else None
        at += 2 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def jpeg_space(data: bytes) -> int | None:
    """2 (RGB) or 6 (YCbCr) if the markers or component names of a JPEG of three components say so; otherwise None."""
    at, told = 2, None
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12:
            told = _YCBCR if body[11] else _RGB
        elif marker == 0xE0 and body.startswith(b"JFIF"):
            return _YCBCR
        elif marker in _FRAMES:
            return _RGB if told is None and body[6:15:3] == b"RGB" else told
        at += 2 if marker == 0xFF else 2 + length
    return told


def check_jpeg(data: bytes, tables: bytes | None) -> None:
    """Raise ``ValueError`` if a tile or strip in JPEG is damaged, about which its decoder in tifffile is silent.

    libvips, unlike imagecodecs, can take the warnings of libjpeg for errors, as OpenSlide does. It decodes an eighth of
    the size, which takes the same bits and little time. If simplejpeg is installed, only what that finds fault with, in
    a quarter of the time, is left to libvips.
    """
    if not _FRAME_8_BITS.search(data[:HEAD_BYTES]):
        return  # 12 bits, or lossless
    if data.endswith(bytes(_ZEROS)) and b"\xff\xd9" not in data:
        raise ValueError("a damaged JPEG: it ends in zeros")
    whole, quick = _with_tables(data, tables), _simplejpeg()
    try:
        if quick is not None and _is_sound(quick, whole):
            return
        pyvips.Image.jpegload_buffer(whole, shrink=8, fail_on="warning").copy_memory()
    except pyvips.Error as error:
        pyvips.vips_lib.vips_error_clear()
        found = re.search(r"VipsJpeg: (.*)", str(error))
        raise ValueError(f"a damaged JPEG: {found[1] if found else error}") from None


@dataclass(frozen=True)
class JpegTiles:
    """Makes whole JPEG files of the tiles of a TIFF page.

    Attributes:
        tile: the size of its tiles.
        tables: the JPEG stream of tables that its tiles share, None if there is none.
        space: 2 (RGB) or 6 (YCbCr), its colours as the page has them; None for grey.
    """

    tile: Size
    tables: bytes | None
    space: int | None

    def file(self, data: bytes, *, known_sound: bool = False) -> bytes | None:
        """A JPEG file of a tile's very pixels and no other markers than these need; None if there is none.

        That is the case for tiles of another size, colour space or depth than the page has, and for damaged ones;
        ``known_sound`` tells that this tile was not damaged when it was last looked at.
        """
        whole = _with_tables(data, self.tables)
        if self.space is not None and jpeg_space(whole[:HEAD_BYTES]) not in (None, self.space):
            return None  # readers disagree about its colours
        segments, at, framed = [b"\xff\xd8", self._marker()], 2, False
        while whole[at : at + 2] != b"\xff\xda":
            marker, end = whole[at + 1 : at + 2], at + 2 + int.from_bytes(whole[at + 2 : at + 4], "big")
            if whole[at : at + 1] != b"\xff" or marker < b"\xc0" or b"\xd0" <= marker <= b"\xd9" or end > len(whole):
                return None
            if marker[0] in _FRAMES:
                framed = self._is_shown(marker[0], whole[at + 4 : end])
                if not framed:
                    return None
            if not (b"\xe0" <= marker <= b"\xef" or marker == b"\xfe"):  # application data and comments
                segments.append(whole[at:end])
            at = end
        try:
            if not known_sound:
                check_jpeg(data, self.tables)
        except ValueError:
            return None
        return b"".join([*segments, whole[at:]]) if framed else None

    def _marker(self) -> bytes:
        """Adobe's marker, by which every reader knows the colour space."""
        if self.space is None:
            return b""
        return b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([self.space == _YCBCR])

    def _is_shown(self, frame: int, body: bytes) -> bool:
        """Whether viewers show a frame of this kind, and it is of this page."""
        wanted = bytes([8, *self.tile.height.to_bytes(2, "big"), *self.tile.width.to_bytes(2, "big")])
        return frame in _SHOWN_FRAMES and body[:6] == wanted + bytes([1 if self.space is None else 3])


@cache
def _simplejpeg() -> Any:
    """The library of that name; None if it is not installed."""
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None


def _is_sound(simplejpeg: Any, whole: bytes) -> bool:
    try:
        simplejpeg.decode_jpeg(whole, "GRAY", min_height=1, min_width=1, min_factor=1, strict=True)
    except ValueError:  # also for what it does not know, such as unusual subsampling
        return False
    return True


def _with_tables(data: bytes, tables: bytes | None) -> bytes:
    """A tile with the tables that it shares with others."""
    return data if tables is None else b"\xff\xd8" + tables[2:-2] + data[2:]
