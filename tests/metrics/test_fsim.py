"""FSIM: phase congruency against the published definition, term by term, and known limits."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kin_cli.geometry import Pixels
from kin_cli.metrics.colour import luma
from kin_cli.metrics.fsim import Fsim, fsim, phase_congruency
from tests.helpers.pictures import blurred, noisy


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
    assert metric.values()["fsim"] == pytest.approx(np.mean(parts))
