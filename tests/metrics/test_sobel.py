"""Sobel gradients against scikit-image, and by hand on a ramp."""

from __future__ import annotations

import math

import numpy as np
import pytest
from skimage import filters

from kin_cli.geometry import Pixels
from kin_cli.metrics.colour import ycbcr
from kin_cli.metrics.sobel import ClippedSobel, SobelGradient


def test_sobel_is_scikit_images_without_its_scale(tissue: Pixels) -> None:
    metric = SobelGradient()
    for half in (tissue[:258], tissue[256:]):
        metric.add(metric.measure(half))
    planes = ycbcr(tissue)
    for channel, value in enumerate(metric.values().values()):
        expected = (filters.sobel(planes[..., channel]) * 4 * math.sqrt(2))[1:-1, 1:-1].mean()
        assert value == pytest.approx(expected, rel=1e-9)


def test_sobel_of_a_ramp() -> None:
    """Slope 1 per pixel is 8 for a 3×3 Sobel kernel; the authors' sees half of it, one way only."""
    ramp = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None], 32, axis=0).repeat(3, axis=2)
    for pixels, authors in ((ramp, 4), (np.ascontiguousarray(ramp[:, ::-1]), 0)):
        proper, clipped = SobelGradient(), ClippedSobel()
        proper.add(proper.measure(pixels))
        clipped.add(clipped.measure(pixels))
        assert proper.values() == pytest.approx({"sobel_y": 8, "sobel_cb": 0, "sobel_cr": 0}, abs=1e-6)
        assert clipped.values() == {"sobel_authors": authors}
    assert math.isnan(SobelGradient().values()["sobel_y"])


def test_the_authors_sobel_is_a_third_of_the_magnitude_on_tissue(tissue: Pixels) -> None:
    proper, clipped = SobelGradient(), ClippedSobel()
    proper.add(proper.measure(tissue))
    clipped.add(clipped.measure(tissue))
    assert 0.2 < clipped.values()["sobel_authors"] / proper.values()["sobel_y"] < 0.45
