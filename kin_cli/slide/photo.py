"""Photographs (PNG, JPEG) as slides with a single level."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyvips

from kin_cli.errors import InputError
from kin_cli.geometry import AnyArray, Box, Pixels, Size
from kin_cli.memory import free_memory
from kin_cli.slide.base import WHITE, Slide, composite, rgb_profile, to_uint8
from kin_cli.slide.reasons import refusal

_IN_MEMORY_PX = 64 << 20
_BAND_PX = 4 << 20  # decoded at once
_LARGEST_SIDE = 10_000_000  # of libvips
_FREE_BYTES = 64 << 20  # left on the disk of the temporary file
_DTYPES = {"uchar": np.uint8, "ushort": np.uint16}
_STRICT = {"png": "error", "jpeg": "warning"}  # libjpeg goes on with made-up pixels and a warning
_ZEROS = 16  # bytes at the end of compressed data that no encoder writes
_BITS_IN_USE = (8, 10, 12, 14)
_TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that exchange rows and columns
_JPEG_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)


class PhotoSlide(Slide):
    """A PNG or JPEG picture, decoded once. The EXIF orientation is applied; alpha is composited on white.

    Memory bound: 3 bytes per pixel up to 64 megapixels, and 100 MiB while decoding. Larger pictures are decoded into a
    temporary file, 3 bytes per pixel, that has no name and vanishes with the process; rows are read from there.
    Interlaced PNG and progressive JPEG cannot be decoded piece by piece; ``memory_bytes`` states what they need.
    """

    expects_background = False

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.format = path, kind
        self._pixels: Pixels | None = None
        self._rows = -1  # descriptor of the temporary file
        pyvips.vips_lib.vips_error_clear()  # warnings about other files
        try:
            if kind == "jpeg" and _ends_in_zeros(path):
                raise pyvips.Error("a JPEG that ends in zeros")
            image = _opened(path, kind)
            if image.xres > 0 and image.yres > 0:
                self.set_pixel_size(1000 / image.xres, 1000 / image.yres)
            self.icc = _rgb_profile(image)
            self._turn = self.orientation = int(image.get("orientation")) if image.get_typeof("orientation") else 1
            self._stored = Size(image.width, image.height)
            width, height = (image.height, image.width) if self._turn in _TRANSPOSED else (image.width, image.height)
            self.levels, self.downsamples = (Size(width, height),), (1.0,)
            self._decode(image)
        except pyvips.Error as error:
            self.close()
            sides = _png_sides(path) if kind == "png" else (0, 0)
            if max(sides) > _LARGEST_SIDE:
                said = f"a picture of {sides[0]}×{sides[1]} pixels, larger than the library that decodes PNG can take"
                raise InputError(f"{path}: {said}", "check where it comes from; cut it into parts") from error
            if str(error).strip() == "unable to fetch from region":
                error = pyvips.Error("its data end too early or cannot be decoded")
            raise refusal(path, f"{kind.upper()} image", error) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the pixels and remove the temporary file, see ``Slide.close``."""
        self._pixels = None
        if self._rows >= 0:
            os.close(self._rows)
            self._rows = -1

    def _decode(self, image: pyvips.Image) -> None:
        """Decode the picture into memory or into the temporary file, from top to bottom."""
        size = 3 * self._stored.pixels
        samples = image.bands * np.dtype(_DTYPES.get(image.format, np.uint8)).itemsize
        self.memory_bytes = self._stored.pixels * _bytes_at_once(self.path, self.format, samples)
        if self._stored.pixels <= _IN_MEMORY_PX:
            self.memory_bytes += size
        free = free_memory()
        if self.memory_bytes > free:
            said = f"decoding it takes {self.memory_bytes / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"
            raise InputError(f"{self.path}: {said}", "write it again as tiled TIFF on a machine with more memory")
        bits = self._bits_in_use() if image.format == "ushort" else 8
        if self._stored.pixels <= _IN_MEMORY_PX:
            self._pixels = np.empty((self._stored.height, self._stored.width, 3), np.uint8)
            for top, rows in _bands(image, bits):
                self._pixels[top : top + len(rows)] = rows
            return
        self.temporary_bytes = size
        self._rows = _temporary_file(self.path, size)
        try:
            for top, rows in _bands(image, bits):
                _write_at(self._rows, rows, 3 * top * self._stored.width)
        except OSError as error:
            raise _no_room(self.path, size, error.strerror or str(error)) from error

    def _bits_in_use(self) -> int:
        """Bits in use of 16-bit samples, by the largest one; adds a note if they are fewer."""
        image = _opened(self.path, self.format)
        largest = int(image.extract_band(0, n=3 if image.bands >= 3 else 1).max())
        bits = next((bits for bits in _BITS_IN_USE if 0 < largest < 2**bits), 16)
        if bits < 16:
            said = f"its samples reach {largest}, so they are taken for numbers of {bits} bits"
            self.notes += (f"{said}, although it is a picture of 16 bits",)
        return bits

    def _fetch(self, level: int, box: Box) -> Pixels:  # noqa: ARG002
        stored = _stored_box(self._turn, box, self.levels[0])
        if self._pixels is not None:
            pixels = self._pixels[stored.slices()]
        else:
            pixels = np.empty((stored.height, stored.width, 3), np.uint8)
            for row, y in enumerate(range(stored.y, stored.bottom)):
                start = 3 * (y * self._stored.width + stored.x)
                data = os.pread(self._rows, 3 * stored.width, start)
                if len(data) < 3 * stored.width:
                    raise InputError(f"{self.path}: its temporary file ends too early", "run the command again")
                pixels[row] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        turned: Pixels = _turned(self._turn, pixels).copy()
        return turned


def _opened(path: Path, kind: str) -> pyvips.Image:
    """The picture, to be read from top to bottom once."""
    # a descriptor instead of a name: libvips takes names in UTF-8 only
    descriptor = os.open(path, os.O_RDONLY)
    try:
        source = pyvips.Source.new_from_descriptor(descriptor)
    finally:
        os.close(descriptor)
    return pyvips.Image.new_from_source(source, "", access="sequential", fail_on=_STRICT[kind])


def _png_sides(path: Path) -> tuple[int, int]:
    """Width and height that the header of a PNG states."""
    with path.open("rb") as file:
        head = file.read(24)
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def _ends_in_zeros(path: Path) -> bool:
    """Whether a JPEG ends in zeros without an end marker: libjpeg would take them for pixels."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[-_ZEROS:] != bytes(_ZEROS):
            return False
        at = 2  # an embedded thumbnail has an end marker of its own, before the start of the scan
        while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
            at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        return data.find(b"\xff\xd9", at) < 0


def _rgb_profile(image: pyvips.Image) -> bytes | None:
    if image.interpretation == "cmyk" or image.get_typeof("icc-profile-data") == 0:
        return None
    return rgb_profile(bytes(image.get("icc-profile-data")))


def _bands(image: pyvips.Image, bits: int) -> Iterator[tuple[int, Pixels]]:
    """The picture from top to bottom as (first row, pixels (h, w, 3) in RGB), a few rows at a time."""
    if image.interpretation == "cmyk":
        image = image.icc_transform("srgb", embedded=True, input_profile="cmyk")
    if image.format not in _DTYPES:
        raise pyvips.Error(f"unsupported samples of type {image.format}")
    region = pyvips.Region.new(image)
    rows = max(1, _BAND_PX // image.width)
    for top in range(0, image.height, rows):
        height = min(rows, image.height - top)
        data = region.fetch(0, top, image.width, height)
        samples = np.frombuffer(data, _DTYPES[image.format]).reshape(height, image.width, image.bands)
        yield top, _rgb8(samples, bits)


def _rgb8(samples: AnyArray, bits: int) -> Pixels:
    values = to_uint8(samples, bits=bits)
    colours = 3 if values.shape[2] >= 3 else 1
    rgb: Pixels = values[..., :3] if colours == 3 else np.repeat(values[..., :1], 3, axis=2)
    if values.shape[2] == colours:
        return np.ascontiguousarray(rgb)
    return composite(rgb, values[..., colours], fill_colour=WHITE)


def _bytes_at_once(path: Path, kind: str, samples: int) -> int:
    """Bytes per pixel that a decoder holds of the whole picture: of interlaced PNG and progressive JPEG; else 0.

    ``samples`` is the size of a decoded pixel in bytes.
    """
    with path.open("rb") as file:
        if kind == "png":
            return samples if file.read(29)[28:] == b"\1" else 0
        file.seek(2)
        while len(head := file.read(4)) == 4 and head[0] == 0xFF:
            if 0xC0 <= head[1] <= 0xCF and head[1] not in (0xC4, 0xC8, 0xCC):
                return 2 * samples if head[1] in _JPEG_PROGRESSIVE else 0  # 16-bit coefficients
            if head[1] == 0xFF:
                file.seek(-3, os.SEEK_CUR)
            else:
                file.seek(int.from_bytes(head[2:], "big") - 2, os.SEEK_CUR)
    return 0


def _temporary_file(path: Path, size: int) -> int:
    """Descriptor of a new file without a name that has room for ``size`` bytes; ``InputError`` if there is none."""
    folder = tempfile.gettempdir()
    try:
        free = os.statvfs(folder)
        if free.f_bavail * free.f_frsize < size + _FREE_BYTES:
            raise _no_room(path, size, f"{free.f_bavail * free.f_frsize / 1e9:.1f} GB are free in {folder}")
        descriptor, name = tempfile.mkstemp(prefix="kin-photo-", dir=folder)
        Path(name).unlink()
    except OSError as error:
        raise _no_room(path, size, f"{folder}: {error.strerror}") from error
    return descriptor


def _no_room(path: Path, size: int, why: str) -> InputError:
    hint = "make room there, or let the environment variable TMPDIR name another folder"
    return InputError(f"{path}: no room for a temporary file of {size / 1e9:.1f} GB: {why}", hint)


def _write_at(descriptor: int, rows: Pixels, start: int) -> None:
    left = memoryview(rows.tobytes())
    while left:
        count = os.pwrite(descriptor, left, start)
        left, start = left[count:], start + count


def _stored_box(turn: int, box: Box, shown: Size) -> Box:
    """Where the pixels of ``box``, in the picture as it is shown, are stored; ``turn`` is the EXIF orientation."""
    x, y, width, height = box.x, box.y, box.width, box.height
    if turn in (2, 3, 6, 7):  # what is shown at the left is stored at the right, or at the bottom
        x = shown.width - box.right
    if turn in (3, 4, 7, 8):
        y = shown.height - box.bottom
    return Box(y, x, height, width) if turn in _TRANSPOSED else Box(x, y, width, height)


def _turned(turn: int, stored: Pixels) -> Pixels:
    """Stored pixels as they are shown; the inverse of ``_stored_box``."""
    pixels = stored.swapaxes(0, 1) if turn in _TRANSPOSED else stored
    if turn in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if turn in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
