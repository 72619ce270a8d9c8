"""Photographs (PNG, JPEG) as slides with a single level."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyvips

from kin_cli.errors import InputError
from kin_cli.geometry import Box, Pixels, Size
from kin_cli.slide.base import WHITE, Slide, composite, credible_mpp, to_uint8


class PhotoSlide(Slide):
    """A PNG or JPEG picture, decoded once. The EXIF orientation is applied; alpha is composited on white.

    Memory bound: the whole picture, 3 bytes per pixel; up to 24 bytes per pixel while opening (16 bits with alpha).
    """

    expects_background = False

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
    return composite(rgb, values[..., colours], fill_colour=WHITE)
