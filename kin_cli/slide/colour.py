"""Whatever an image stores, as 8-bit RGB."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kin_cli.slide.source import Pixels


def to_uint8(values: npt.NDArray[Any]) -> Pixels:
    """Samples of 1, 8 or 16 bits scaled to 0 to 255; 16 bits are divided by 257 and rounded.

    Raises:
        ValueError: the samples are of another type.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        white: Pixels = np.where(values, np.uint8(255), np.uint8(0))
        return white
    if values.dtype == np.uint16:
        scaled: Pixels = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
        return scaled
    raise ValueError(f"samples of type {values.dtype}")


def composite(rgb: Pixels, alpha: Pixels, *, background: tuple[int, int, int]) -> Pixels:
    """``rgb`` (h, w, 3), not premultiplied, laid over a colour with opacity ``alpha`` (h, w); rounded to nearest."""
    opacity = alpha[..., None].astype(np.uint16)
    under = np.array(background, np.uint16) * (255 - opacity)
    mixed: Pixels = ((rgb * opacity + under + 127) // 255).astype(np.uint8)
    return mixed


def composite_premultiplied(rgb: Pixels, alpha: Pixels, *, background: tuple[int, int, int]) -> Pixels:
    """Like ``composite`` for colours that were multiplied with ``alpha`` when they were stored."""
    under = np.array(background, np.uint16) * (255 - alpha[..., None].astype(np.uint16))
    return np.minimum(rgb + (under + 127) // 255, 255).astype(np.uint8)
