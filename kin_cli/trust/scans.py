"""Other scans of a slide, imitated: what differs between scanners, days and laboratories, and is no news.

Few generators are trained on slides of several scanners. ``rescanned`` shows a patch as another scan would, so that a
reference learned from one slide calls the next one usual.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from scipy import ndimage

from kin_cli.geometry import AnyArray, Box, Pixels
from kin_cli.slide.stain import jittered_stains

CHANGES = ("pixel size", "stains", "focus", "white balance", "gamma", "compression")
"""What may differ, in the order in which a slide meets it."""
_PIXEL_SIZE = 0.05  # ± relative
_BLUR, _SHARPENING = (0.2, 0.6), (0.1, 0.5)  # standard deviation in px; fraction of what 1 px of blur takes away
_WHITE, _GAMMA = 0.025, 1.1  # ± relative gain of each channel; exponent up to this or its inverse
_QUALITIES = (60, 90)  # of JPEG


def rescanned(
    read: Callable[[Box], Pixels], box: Box, change: str, rng: np.random.Generator, *, stain_jitter: float = 0.15
) -> Pixels:
    """The pixels of a square box after one of ``CHANGES``, by a random amount; uint8 of the box's size.

    Pixel size ± 5 %, strength of stains ± ``stain_jitter``, a blur of up to 0.6 px or a sharpening of up to 50 %, the
    gain of each channel ± 2.5 %, a gamma of 0.91 to 1.1, or JPEG of quality 60 to 90. ``read`` gives a box's pixels.
    """
    if change == "pixel size":
        return _resized(read, box, 1 + rng.uniform(-_PIXEL_SIZE, _PIXEL_SIZE))
    patch = read(box)
    if change == "stains":
        return jittered_stains(patch, rng, amount=stain_jitter)
    if change == "compression":
        return compressed(patch, int(rng.integers(_QUALITIES[0], _QUALITIES[1] + 1)))
    if change == "focus":
        if rng.random() < 0.5:
            return blurred(patch, rng.uniform(*_BLUR))
        return _rounded(patch + rng.uniform(*_SHARPENING) * (patch - _smooth(patch, 1.0)))
    if change == "white balance":
        return _rounded(patch * rng.uniform(1 - _WHITE, 1 + _WHITE, 3))
    return _rounded(255 * (patch / 255.0) ** (_GAMMA ** rng.uniform(-1, 1)))


def blurred(patch: Pixels, sigma: float) -> Pixels:
    """A patch (H, W, 3) after a Gaussian blur of ``sigma`` px."""
    return _rounded(_smooth(patch, sigma))


def compressed(patch: Pixels, quality: int) -> Pixels:
    """A patch (H, W, 3) after JPEG of this quality, 1 to 95."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(patch)).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file).convert("RGB"))


def _resized(read: Callable[[Box], Pixels], box: Box, ratio: float) -> Pixels:
    from PIL import Image

    side = round(box.width * ratio)
    around = Box(box.x + (box.width - side) // 2, box.y + (box.height - side) // 2, side, side)
    return np.array(Image.fromarray(read(around)).resize((box.width, box.height), Image.Resampling.BICUBIC))


def _smooth(patch: Pixels, sigma: float) -> AnyArray:
    smooth: AnyArray = ndimage.gaussian_filter(patch.astype(np.float32), (sigma, sigma, 0))
    return smooth


def _rounded(values: AnyArray) -> Pixels:
    found: Pixels = np.rint(values).clip(0, 255).astype(np.uint8)
    return found
