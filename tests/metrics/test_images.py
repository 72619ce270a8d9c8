"""Sobel, histogram, SSIM and FSIM: against scikit-image, NumPy, the definition, and known limits; on real tissue."""

from __future__ import annotations

import colorsys
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from skimage import color, filters, metrics

from kin_cli.geometry import Box
from kin_cli.metrics.colour import Pixels, lab, luma, ycbcr
from kin_cli.metrics.fsim import Fsim, fsim, phase_congruency
from kin_cli.metrics.histogram import HueHistogram, LabHistogram, correlations, opencv_hue
from kin_cli.metrics.sobel import ClippedSobel, SobelGradient
from kin_cli.metrics.ssim import Ssim
from kin_cli.slide.open import open_slide


@pytest.fixture(scope="module")
def tissue(shared_data: Path) -> Pixels:
    with open_slide(shared_data / "CMU-1-Small-Region.svs") as slide:
        return slide.read(0, Box(700, 900, 512, 512))


def blurred(pixels: Pixels, radius: float) -> Pixels:
    return np.array(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def noisy(pixels: Pixels, deviation: float) -> Pixels:
    noise = np.random.default_rng(0).normal(0, deviation, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def test_colours_agree_with_scikit_image_and_pillow(tissue: Pixels) -> None:
    np.testing.assert_allclose(lab(tissue), color.rgb2lab(tissue), atol=0.02)
    planes = np.array(Image.fromarray(tissue).convert("YCbCr"))
    np.testing.assert_allclose(ycbcr(tissue) + (0, 128, 128), planes, atol=1.01)
    np.testing.assert_allclose(luma(tissue), ycbcr(tissue)[..., 0])


def test_hue_is_opencvs(tissue: Pixels) -> None:
    """Known values, and Python's own HSV everywhere to within the table's rounding."""
    known = {(255, 0, 0): 0, (0, 255, 0): 60, (0, 0, 255): 120, (255, 255, 0): 30, (255, 0, 255): 150, (7, 7, 7): 0}
    assert opencv_hue(np.array(list(known), np.uint8)).tolist() == list(known.values())
    sample = tissue[::37, ::23].reshape(-1, 3)
    expected = np.array([colorsys.rgb_to_hsv(*pixel)[0] * 180 for pixel in sample / 255])
    distance = np.abs(opencv_hue(sample) - expected)
    assert np.minimum(distance, 180 - distance).max() < 0.52
    # just short of red from the blue side
    assert opencv_hue(np.array([[255, 0, 5], [255, 0, 4]], np.uint8)).tolist() == [179, 0]


def test_histograms_are_those_of_numpy(tissue: Pixels) -> None:
    one, other = tissue[:, :256], noisy(tissue[:, 256:], 20)
    for kind, bins in (
        (LabHistogram, [(-2.0, 254.0), (-130.0, 126.0), (-130.0, 126.0)]),
        (HueHistogram, [(0.0, 256.0)]),
    ):
        gathered = []
        for image in (one, other):
            histogram = kind()
            for half in (image[:200], image[200:]):
                histogram.add(histogram.measure(half))
            gathered.append(histogram)
        planes = [lab(i) if kind is LabHistogram else opencv_hue(i)[..., None] for i in (one, other)]
        number = 64 if kind is LabHistogram else 10
        for channel, limits in enumerate(bins):
            counts = [np.histogram(plane[..., channel], number, limits)[0] for plane in planes]
            expected = np.corrcoef(*counts)[0, 1]
            assert correlations(*gathered)[channel] == pytest.approx(expected, abs=1e-9)
        assert correlations(gathered[0], gathered[0]) == pytest.approx(1)
        assert np.isnan(correlations(gathered[0], kind())).all()


def test_sobel_is_scikit_images_without_its_scale(tissue: Pixels) -> None:
    metric = SobelGradient()
    for half in (tissue[:258], tissue[256:]):
        metric.add(metric.measure(half))
    planes = ycbcr(tissue)
    for channel, value in enumerate(metric.figures().values()):
        expected = (filters.sobel(planes[..., channel]) * 4 * math.sqrt(2))[1:-1, 1:-1].mean()
        assert value == pytest.approx(expected, rel=1e-9)


def test_sobel_of_a_ramp() -> None:
    """Slope 1 per pixel is 8 for a 3×3 Sobel kernel; the authors' sees half of it, one way only."""
    ramp = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None], 32, axis=0).repeat(3, axis=2)
    for pixels, authors in ((ramp, 4), (np.ascontiguousarray(ramp[:, ::-1]), 0)):
        proper, clipped = SobelGradient(), ClippedSobel()
        proper.add(proper.measure(pixels))
        clipped.add(clipped.measure(pixels))
        assert proper.figures() == pytest.approx({"sobel_y": 8, "sobel_cb": 0, "sobel_cr": 0}, abs=1e-6)
        assert clipped.figures() == {"sobel_authors": authors}
    assert math.isnan(SobelGradient().figures()["sobel_y"])


def test_the_authors_sobel_is_a_third_of_the_magnitude_on_tissue(tissue: Pixels) -> None:
    proper, clipped = SobelGradient(), ClippedSobel()
    proper.add(proper.measure(tissue))
    clipped.add(clipped.measure(tissue))
    assert 0.2 < clipped.figures()["sobel_authors"] / proper.figures()["sobel_y"] < 0.45


@pytest.mark.parametrize("deviation", [3, 25])
def test_ssim_is_scikit_images_however_it_is_cut(tissue: Pixels, deviation: float) -> None:
    other = noisy(tissue, deviation)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    expected = metrics.structural_similarity(luma(tissue), luma(other), **options)
    whole, halves = Ssim(), Ssim()
    whole.add(whole.measure(tissue, other))
    for rows in (slice(0, 261), slice(251, 512)):
        halves.add(halves.measure(tissue[rows], other[rows]))
    assert whole.figures()["ssim"] == pytest.approx(expected, abs=1e-9)
    assert halves.figures()["ssim"] == pytest.approx(expected, abs=1e-9)
    assert math.isnan(Ssim().figures()["ssim"])


def test_phase_congruency_is_blind_to_contrast_and_marks_the_edge() -> None:
    step = np.where(np.indices((96, 96))[1] // 48 == 0, 60.0, 180.0)
    found = phase_congruency(step)
    assert found.min() >= 0
    assert found.max() <= 1
    # the picture is periodic, so that it has an edge in the middle and another at its rim
    assert set(np.argsort(found[48])[-4:]) == {0, 47, 48, 95}
    np.testing.assert_allclose(phase_congruency(0.5 * step + 30), found, atol=1e-3)
    np.testing.assert_allclose(phase_congruency(step.T), found.T, atol=1e-9)
    assert phase_congruency(np.full((64, 65), 99.0)).max() == pytest.approx(0, abs=1e-6)


def published_congruency(image: np.ndarray) -> np.ndarray:
    """Kovesi's measure with FSIM's parameters, filter by filter and term by term as the MATLAB code has it."""
    height, width = image.shape
    x, y = np.meshgrid(*(np.arange(-side // 2, side // 2) / side for side in (width, height)))
    radius, theta = np.hypot(x, y), np.arctan2(-y, x)
    low = 1 / (1 + (radius / 0.45) ** 30)
    radius[height // 2, width // 2] = 1
    energy_all = amplitude_all = 0
    for orientation in range(4):
        angle = orientation * np.pi / 4
        sine = np.sin(theta) * np.cos(angle) - np.cos(theta) * np.sin(angle)
        cosine = np.cos(theta) * np.cos(angle) + np.sin(theta) * np.sin(angle)
        spread = np.exp(-(np.arctan2(sine, cosine) ** 2) / (2 * (np.pi / 4 / 1.2) ** 2))
        even, odd, impulses, gain = [], [], [], 0.0
        for scale in range(4):
            band = np.exp(-(np.log(radius * 6 * 2**scale) ** 2) / (2 * np.log(0.55) ** 2)) * low
            band[height // 2, width // 2] = 0
            mask = np.fft.ifftshift(band * spread)
            response = np.fft.ifft2(np.fft.fft2(image) * mask)
            even.append(response.real)
            odd.append(response.imag)
            impulses.append(np.fft.ifft2(mask).real * np.sqrt(height * width))
            gain = gain or (mask**2).sum()
        length = np.sqrt(sum(even) ** 2 + sum(odd) ** 2) + 1e-4
        mean_even, mean_odd = sum(even) / length, sum(odd) / length
        energy = sum(
            e * mean_even + o * mean_odd - abs(e * mean_odd - o * mean_even) for e, o in zip(even, odd, strict=True)
        )
        power = -np.median(even[0] ** 2 + odd[0] ** 2) / np.log(0.5) / gain
        squares = sum((a**2).sum() for a in impulses)
        products = sum((impulses[i] * impulses[j]).sum() for i in range(3) for j in range(i + 1, 4))
        tau = np.sqrt((2 * power * squares + 4 * power * products) / 2)
        threshold = (tau * np.sqrt(np.pi / 2) + 2 * np.sqrt((2 - np.pi / 2) * tau**2)) / 1.7
        energy_all = energy_all + np.maximum(energy - threshold, 0)
        amplitude_all = amplitude_all + sum(np.hypot(e, o) for e, o in zip(even, odd, strict=True))
    return energy_all / amplitude_all


def test_phase_congruency_is_the_published_one(tissue: Pixels) -> None:
    image = luma(tissue[:128, :192])
    np.testing.assert_allclose(phase_congruency(image), published_congruency(image), atol=1e-9)


def test_fsim_has_its_published_properties(tissue: Pixels) -> None:
    assert fsim(tissue, tissue) == pytest.approx(1)
    falling = [fsim(tissue, noisy(tissue, deviation)) for deviation in (5, 15, 40)]
    assert falling == sorted(falling, reverse=True)
    assert 0.5 < falling[-1] < falling[0] < 1
    assert fsim(tissue, noisy(tissue, 15)) == pytest.approx(fsim(noisy(tissue, 15), tissue))
    assert fsim(tissue, blurred(tissue, 3)) < fsim(tissue, blurred(tissue, 1)) < 1
    turned = [np.ascontiguousarray(np.rot90(image)) for image in (tissue, blurred(tissue, 2))]
    assert fsim(*turned) == pytest.approx(fsim(tissue, blurred(tissue, 2)), abs=0.003)
    flat = np.full((64, 64, 3), 200, np.uint8)
    assert math.isnan(fsim(flat, flat))


def test_fsim_of_tiles_is_their_mean(tissue: Pixels) -> None:
    metric, other = Fsim(), blurred(tissue, 2)
    parts = [metric.measure(tissue[rows], other[rows]) for rows in (slice(0, 256), slice(256, 512))]
    for part in [*parts, float("nan")]:
        metric.add(part)
    assert metric.figures()["fsim"] == pytest.approx(np.mean(parts))
