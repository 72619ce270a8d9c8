"""SSIM against scikit-image, however the picture is cut."""

from __future__ import annotations

import math

import pytest
from skimage import metrics

from kin_cli.geometry import Pixels
from kin_cli.metrics.colour import luma
from kin_cli.metrics.ssim import Ssim
from tests.helpers.pictures import noisy


@pytest.mark.parametrize("deviation", [3, 25])
def test_ssim_is_scikit_images_however_it_is_cut(tissue: Pixels, deviation: float) -> None:
    other = noisy(tissue, deviation)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    expected = metrics.structural_similarity(luma(tissue), luma(other), **options)
    whole, halves = Ssim(), Ssim()
    whole.add(whole.measure(tissue, other))
    for rows in (slice(0, 261), slice(251, 512)):
        halves.add(halves.measure(tissue[rows], other[rows]))
    assert whole.values()["ssim"] == pytest.approx(expected, abs=1e-9)
    assert halves.values()["ssim"] == pytest.approx(expected, abs=1e-9)
    assert math.isnan(Ssim().values()["ssim"])
