"""Pixels (height, width, 3) uint8, and what blur, noise and borders make of them."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter

from kin_cli.geometry import Doubles, Pixels
from kin_cli.metrics.piqe import grey


def smooth_picture(width: int, height: int) -> Pixels:
    """A smooth, mildly coloured picture, so that JPEG stays near it, and of which no two regions are alike."""
    noise = np.random.default_rng(width * 100_003 + height).random((height, width, 4))
    smooth = gaussian_filter(noise, (4, 4, 0), mode="nearest")
    mixed = 0.7 * smooth[..., :1] + 0.3 * smooth[..., 1:]
    low, high = mixed.min(), mixed.max()
    return np.asarray((mixed - low) / max(high - low, 1e-9) * 255).astype(np.uint8)


def random_pixels(height: int, width: int, seed: int = 0) -> Pixels:
    """Every value of its own."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def blurred(pixels: Pixels, radius: float) -> Pixels:
    """By Pillow's Gaussian."""
    return np.array(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def noisy(pixels: Pixels, deviation: float) -> Pixels:
    """With normal noise of a standard deviation in grey levels."""
    noise = np.random.default_rng(0).normal(0, deviation, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def padded(pixels: Pixels, margin: int) -> Pixels:
    """With its edge pixels repeated."""
    return np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), "edge")


def speckled_ramps(width: int, height: int) -> Pixels:
    """Ramps of three directions under noise: every region and every channel tells itself from the others."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(3).integers(0, 40, (height, width, 3))
    return (np.stack([x % 200, y % 180, (x + y) % 150], axis=-1) + noise).astype(np.uint8)


def over_white(rgb: Pixels, alpha: Pixels) -> Doubles:
    """Colours laid over white with an opacity of 0 to 255."""
    opacity = alpha[..., None] / 255
    return rgb * opacity + 255 * (1 - opacity)


def mscn_coefficients(pixels: Pixels) -> Doubles:
    """MSCN by SciPy's Gaussian filter, which stops after 3 pixels here."""
    values = grey(pixels)
    mean = gaussian_filter(values, 7 / 6, truncate=18 / 7, mode="nearest")
    square = gaussian_filter(values**2, 7 / 6, truncate=18 / 7, mode="nearest")
    return (values - mean) / (np.sqrt(np.abs(square - mean**2)) + 1)
