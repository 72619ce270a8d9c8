"""Photographs (PNG, JPEG) as slides of one level, and the choice among the plain formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyvips

from kin_cli.errors import InputError
from kin_cli.geometry import Box, Size
from kin_cli.slide.colour import composite, to_uint8
from kin_cli.slide.source import WHITE, Pixels, Slide, credible_mpp
from kin_cli.slide.tiff import TiffSlide

_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg"}
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def open_plain(path: Path) -> Slide:
    """Open a PNG, JPEG, TIFF or OME-TIFF file, told by its first bytes.

    Raises:
        InputError: it is none of these, or damaged.
    """
    with path.open("rb") as file:
        head = file.read(8)
    if head.startswith(_TIFF_SIGNATURES):
        return TiffSlide(path)
    for signature, name in _SIGNATURES.items():
        if head.startswith(signature):
            return PhotoSlide(path, name)
    hint = "kin reads what OpenSlide reads (SVS, NDPI, MRXS, SCN, DICOM, tiled TIFF, …), OME-TIFF, TIFF, PNG and JPEG"
    raise InputError(f"{path}: not a slide or an image of a known format", hint)


class PhotoSlide(Slide):
    """A PNG or JPEG picture, decoded once: turned as its EXIF orientation says, alpha composited on white.

    Memory bound: the whole picture, 3 bytes per pixel; up to 24 bytes per pixel while it is opened (16 bits, alpha).
    """

    has_glass_by_default = False

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self.format = kind
        try:
            image = pyvips.Image.new_from_file(str(path), access="sequential", fail_on="error")
            x, y = 1000 / image.xres, 1000 / image.yres
            self.mpp = credible_mpp(x, y)
            self.icc = _rgb_profile(image)
            pixels = _rgb8(image)
        except pyvips.Error as error:
            reason = " ".join(str(error).split())
            hint = "the file is damaged or incomplete; copy it again from its source"
            raise InputError(f"{path}: not a readable {kind.upper()} image: {reason}", hint) from error
        self.levels = (Size(pixels.shape[1], pixels.shape[0]),)
        self._pixels = (pixels,)
        self.downsamples = (1.0,)

    def _fetch(self, level: int, box: Box) -> Pixels:
        pixels: Pixels = self._pixels[level][box.slices()].copy()
        return pixels


def _rgb_profile(image: pyvips.Image) -> bytes | None:
    if image.interpretation == "cmyk" or image.get_typeof("icc-profile-data") == 0:
        return None
    return bytes(image.get("icc-profile-data"))


def _rgb8(image: pyvips.Image) -> Pixels:
    if image.get_typeof("orientation") != 0:
        image = image.copy_memory().autorot()
    if image.interpretation == "cmyk":
        image = image.icc_transform("srgb", embedded=True, input_profile="cmyk")
    values = to_uint8(image.numpy())
    if values.ndim == 2:
        values = values[..., None]
    colours = 3 if values.shape[2] >= 3 else 1
    rgb = values[..., :colours] if colours == 3 else np.repeat(values[..., :1], 3, axis=2)
    if values.shape[2] == colours:
        return np.ascontiguousarray(rgb)
    return composite(rgb, values[..., colours], background=WHITE)
