"""Colour spaces against scikit-image and Pillow."""

from __future__ import annotations

import numpy as np
from PIL import Image
from skimage import color

from kin_cli.geometry import Pixels
from kin_cli.metrics.colour import lab, luma, ycbcr


def test_colours_agree_with_scikit_image_and_pillow(tissue: Pixels) -> None:
    np.testing.assert_allclose(lab(tissue), color.rgb2lab(tissue), atol=0.02)
    planes = np.array(Image.fromarray(tissue).convert("YCbCr"))
    np.testing.assert_allclose(ycbcr(tissue) + (0, 128, 128), planes, atol=1.01)
    np.testing.assert_allclose(luma(tissue), ycbcr(tissue)[..., 0])
