"""What the samples of a TIFF page mean: the conversion of stored samples to 8-bit RGB."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import tifffile

from kin_cli.geometry import AnyArray, Floats, Pixels
from kin_cli.slide.base import WHITE, composite, composite_premultiplied, to_uint8

_JPEG = {6, 7, 34892}
# compressions whose decoders return RGB, whatever colour space the file names
GIVES_RGB = _JPEG | {34712, 34933, 34934, 50001, 50002, 52546}
_ASSOCIATED, _UNASSOCIATED = 1, 2  # values of the tag ExtraSamples: alpha, premultiplied or not
_BT601 = (0.299, 0.587, 0.114)  # default of the tag YCbCrCoefficients


_RGB_HINT = "kin translates brightfield pictures in RGB or grey of 8 or 16 bits; export such a picture if there is one"


class Unsupported(Exception):
    """The file stores a kind of image that kin cannot read; the message names it, the hint the way out."""

    def __init__(self, message: str, hint: str = _RGB_HINT) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class Colours:
    """How the samples (h, w, n) of a level become RGB.

    Attributes:
        kind: "RGB", "grey", "palette", "CMYK" or "YCbCr".
        planes: number of pages that hold one colour each; 1 if all colours are in one page.
        order: positions of red, green and blue among those pages.
        bits: bits in use of each sample.
        ignored: number of samples per pixel that are neither a colour nor alpha.
    """

    kind: str
    bits: int
    planes: int = 1
    order: tuple[int, int, int] = (0, 1, 2)
    alpha: int = 0
    inverted: bool = False
    ignored: int = 0

    @property
    def is_colour(self) -> bool:
        """Whether the picture is in colour."""
        return self.kind != "grey"


def colours_of(page: tifffile.TiffPage, *, bits: int | None = None) -> Colours:
    """The meaning of the samples of one page; ``bits`` overrides the number of bits in use.

    Raises:
        Unsupported: the page is neither RGB (or palette, CMYK, YCbCr) nor grey, or its samples are not unsigned
            integers of 1 to 16 bits.
    """
    _check_numbers(page)
    name = getattr(page.photometric, "name", str(page.photometric))
    samples, stored = int(page.samplesperpixel), int(page.bitspersample)
    extra = tuple(int(value) for value in page.extrasamples or ())
    if name == "YCBCR" and page.compression in GIVES_RGB:
        name = "RGB"
    colours = {"RGB": 3, "YCBCR": 3, "MINISBLACK": 1, "MINISWHITE": 1, "PALETTE": 1, "SEPARATED": 4}.get(name)
    if colours is None:
        raise Unsupported(f"its colours are in the colour space {name}")
    if samples < colours:
        raise Unsupported(f"{name} colours with {samples} samples per pixel")
    alpha = extra[0] if extra and extra[0] in (_ASSOCIATED, _UNASSOCIATED) and samples > colours else 0
    ignored = samples - colours - bool(alpha)
    if ignored and (name != "RGB" or samples > 4):
        raise Unsupported(f"{samples} channels per pixel, not red, green and blue")
    kind = {"YCBCR": "YCbCr", "PALETTE": "palette", "SEPARATED": "CMYK", "RGB": "RGB"}.get(name, "grey")
    if kind == "YCbCr" and (stored != 8 or page.planarconfig != 1 or samples != 3):
        raise Unsupported(f"YCbCr colours of {stored} bits that no JPEG holds")
    if kind == "CMYK" and int(page.tags.valueof("InkSet", 1)) != 1:
        raise Unsupported("inks other than cyan, magenta, yellow and black")
    if kind == "palette" and page.colormap is None:
        raise Unsupported("palette colours without a palette")
    return Colours(kind, bits or stored, alpha=alpha, inverted=name == "MINISWHITE", ignored=ignored)


def _check_numbers(page: tifffile.TiffPage) -> None:
    """Raise ``Unsupported`` unless all samples are unsigned integers of the same number of bits, at most 16."""
    bits, form = page.bitspersample, page.sampleformat
    if page.dtype is None or page.dtype.kind not in "ub":
        names = {2: "signed integers", 3: "floating-point numbers", 5: "complex integers", 6: "complex numbers"}
        what = names.get(int(form or 1), "numbers that kin does not know")
        raise Unsupported(f"its samples are {what} of {bits} bits, not 8- or 16-bit colours")
    if not 1 <= int(bits) <= 16:
        raise Unsupported(f"its samples have {bits} bits, not 8 or 16")


def to_rgb(page: tifffile.TiffPage, colours: Colours) -> Callable[[AnyArray], Pixels]:
    """The conversion of samples (h, w, n) of ``page``, or of several pages like it, to RGB."""
    if colours.kind == "palette":
        palette = np.ascontiguousarray(page.colormap.T)
        # old writers store 8 bits, as libtiff knows
        palette = palette.astype(np.uint8) if palette.max() <= 255 else palette
        return partial(_palette_to_rgb, to_uint8(palette), colours.alpha)
    if colours.kind == "CMYK":
        return partial(_cmyk_to_rgb, colours.bits)
    if colours.kind == "YCbCr":
        luma = np.array(page.tags.valueof("YCbCrCoefficients", _BT601), np.float32).ravel()
        luma = luma[::2] / luma[1::2] if luma.size == 6 else luma  # rationals
        reference = np.array(page.tags.valueof("ReferenceBlackWhite", ()), np.float32).ravel()
        reference = reference[::2] / reference[1::2] if reference.size == 12 else reference
        return partial(_ycbcr_to_rgb, luma, reference)
    if colours.planes == 3:
        return partial(_planes_to_rgb, colours)
    return partial(_additive_to_rgb, colours)


def _planes_to_rgb(colours: Colours, samples: AnyArray) -> Pixels:
    rgb: Pixels = to_uint8(samples, bits=colours.bits)[..., list(colours.order)]
    return 255 - rgb if colours.inverted else rgb


def _additive_to_rgb(colours: Colours, samples: AnyArray) -> Pixels:
    values = to_uint8(samples, bits=colours.bits)
    count = 3 if colours.kind == "RGB" else 1
    rgb = values[..., :count]
    if colours.inverted:
        rgb = 255 - rgb
    if count == 1:
        rgb = np.repeat(rgb, 3, axis=-1)
    if colours.alpha == _UNASSOCIATED:
        return composite(rgb, values[..., count], fill_colour=WHITE)
    if colours.alpha == _ASSOCIATED:
        return composite_premultiplied(rgb, values[..., count], fill_colour=WHITE)
    return rgb


def _palette_to_rgb(palette: Pixels, alpha: int, samples: AnyArray) -> Pixels:
    rgb: Pixels = palette[samples[..., 0].astype(np.intp)].astype(np.uint8, copy=False)
    return composite(rgb, to_uint8(samples[..., 1]), fill_colour=WHITE) if alpha else rgb


def _cmyk_to_rgb(bits: int, samples: AnyArray) -> Pixels:
    light = 255 - to_uint8(samples[..., :4], bits=bits).astype(np.uint16)
    return ((light[..., :3] * light[..., 3:] + 127) // 255).astype(np.uint8)


def _ycbcr_to_rgb(luma: Floats, reference: Floats, samples: AnyArray) -> Pixels:
    """YCbCr by the coefficients and the reference black and white of the TIFF specification, section 21."""
    low, high = (reference[::2], reference[1::2]) if reference.size == 6 else ([0, 128, 128], [255, 255, 255])
    span = np.array([255, 127, 127], np.float32) / (np.array(high, np.float32) - np.array(low, np.float32))
    y, cb, cr = np.moveaxis((samples[..., :3].astype(np.float32) - np.array(low, np.float32)) * span, -1, 0)
    red = cr * (2 - 2 * luma[0]) + y
    blue = cb * (2 - 2 * luma[2]) + y
    green = (y - luma[2] * blue - luma[0] * red) / luma[1]
    rgb: Pixels = np.rint(np.stack([red, green, blue], axis=-1).clip(0, 255)).astype(np.uint8)
    return rgb


def unpacked_ycbcr(data: bytes, shape: tuple[int, int], subsampling: tuple[int, int]) -> AnyArray:
    """Samples (h, w, 3) of a segment of YCbCr data units: h × v luma samples, then one Cb and one Cr.

    ``shape`` is (h, w) of the whole segment; ``subsampling`` is (horizontal, vertical).

    Raises:
        ValueError: there are too few bytes.
    """
    across, down = subsampling
    rows, cols = -(-shape[0] // down), -(-shape[1] // across)
    unit = across * down + 2
    flat = np.frombuffer(data, np.uint8, rows * cols * unit).reshape(rows, cols, unit)
    luma = flat[..., :-2].reshape(rows, cols, down, across).swapaxes(1, 2).reshape(rows * down, cols * across)
    chroma = flat[..., -2:].repeat(down, axis=0).repeat(across, axis=1)
    return np.concatenate([luma[..., None], chroma], axis=-1)[: shape[0], : shape[1]]
