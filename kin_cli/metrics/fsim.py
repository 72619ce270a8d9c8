"""FSIM: similarity of phase congruency and gradients, with colour (FSIMc); 1 means identical.

L. Zhang, L. Zhang, X. Mou, D. Zhang, "FSIM: a feature similarity index for image quality assessment", IEEE Transactions
on Image Processing 20(8), 2011. An image is first averaged over squares of round(shorter side / 256) pixels: on a whole
slide FSIM compares thumbnails and cannot see seams. The mean over tiles compares at full resolution.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy import ndimage

from kin_cli.geometry import Doubles, Pixels
from kin_cli.metrics.colour import pooled

_SIDE_PX = 256
_CONGRUENCY, _GRADIENT, _CHROMA = 0.85, 160.0, 200.0  # constants of the similarities (T1, T2, T3 and T4)
_CHROMA_POWER = 0.03
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_SCHARR = np.array([[3.0, 0.0, -3.0], [10.0, 0.0, -10.0], [3.0, 0.0, -3.0]]) / 16
# phase congruency
_SCALES = 4
_ORIENTATIONS = 4
_SHORTEST_PX = 6.0  # wavelength of the first scale; each further one is twice as long
_BANDWIDTH = 0.55
_ANGULAR_SIGMA = math.pi / _ORIENTATIONS / 1.2
_NOISE_SIGMAS = 2.0
# Kovesi derived the threshold for another measure of congruency; for this one it is empirically 1.7 times too high.
_NOISE_OVERESTIMATED = 1.7
_TINY = 1e-4


class Fsim:
    """Mean FSIMc over all tiles. Memory bound: two numbers, and 20 MB for the filters."""

    halo_px = 0

    def __init__(self) -> None:
        self._sum, self._tiles = 0.0, 0

    def measure(self, tile: Pixels, source: Pixels) -> float:
        """FSIMc of a tile (h, w, 3) and its source; NaN if neither has any feature."""
        return fsim(tile, source)

    def add(self, value: float) -> None:
        """Add a result of ``measure``."""
        if not math.isnan(value):
            self._sum += value
            self._tiles += 1

    def values(self) -> dict[str, float]:
        """Mean over the tiles; NaN if none was measured."""
        return {"fsim": self._sum / self._tiles if self._tiles else float("nan")}


def fsim(one: Pixels, other: Pixels) -> float:
    """FSIMc of two 8-bit RGB images (h, w, 3) of equal size; NaN if neither has any feature."""
    step = pooling_px(one.shape[0], one.shape[1])
    return fsim_of_pooled(pooled(one, step), pooled(other, step))


def pooling_px(height: int, width: int) -> int:
    """Side of the squares over which FSIM averages an image first."""
    return max(1, round(min(height, width) / _SIDE_PX))


def fsim_of_pooled(one: Doubles, other: Doubles) -> float:
    """FSIMc of two averaged RGB images (h, w, 3), 0 to 255; NaN if neither has any feature."""
    first, second = one @ _YIQ.T, other @ _YIQ.T
    congruencies = [phase_congruency(image[..., 0]) for image in (first, second)]
    similarity = _similarity(congruencies[0], congruencies[1], _CONGRUENCY)
    similarity *= _similarity(_gradient(first[..., 0]), _gradient(second[..., 0]), _GRADIENT)
    chroma = _similarity(first[..., 1:], second[..., 1:], _CHROMA).prod(axis=-1)
    # As in the published code: the real part of a complex power.
    similarity *= np.power(chroma.astype(np.complex128), _CHROMA_POWER).real
    weight = np.maximum(*congruencies)
    total = float(weight.sum())
    return float((similarity * weight).sum()) / total if total > 0 else float("nan")


def _gradient(values: Doubles) -> Doubles:
    gradients = [ndimage.correlate(values, kernel, mode="constant") for kernel in (_SCHARR, _SCHARR.T)]
    magnitude: Doubles = np.hypot(*gradients)
    return magnitude


def _similarity(one: Doubles, other: Doubles, constant: float) -> Doubles:
    return (2 * one * other + constant) / (one**2 + other**2 + constant)


def phase_congruency(values: Doubles) -> Doubles:
    """Phase congruency (h, w), 0 to 1, of an image (h, w) in 8-bit units that is taken as periodic.

    It is high where the Fourier components agree in phase, whatever the contrast: at edges and lines. P. Kovesi,
    "Image features from phase congruency", Videre 1(3), 1999, with the parameters of FSIM: log-Gabor filters of four
    scales and four orientations; the noise, estimated from the smallest scale, is subtracted.
    """
    filters, noise_gains = _bank(*values.shape)
    spectrum = np.fft.fft2(values)
    energy, amplitude = np.zeros(values.shape), np.zeros(values.shape)
    for bank, noise_gain in zip(filters, noise_gains, strict=True):
        responses = np.fft.ifft2(spectrum * bank)  # (scales, h, w), real part even, imaginary part odd
        direction = responses.sum(axis=0)
        direction /= np.abs(direction) + _TINY
        aligned = responses * direction.conj()
        power = np.median(np.abs(responses[0]) ** 2) / math.log(2)
        energy += np.maximum((aligned.real - np.abs(aligned.imag)).sum(axis=0) - _threshold(power * noise_gain), 0)
        amplitude += np.abs(responses).sum(axis=0)
    return energy / np.maximum(amplitude, _TINY)


def _threshold(energy: float) -> float:
    """Upper bound of noise of the given energy: mean plus two standard deviations of a Rayleigh distribution."""
    tau = math.sqrt(energy / 2)
    return tau * (math.sqrt(math.pi / 2) + _NOISE_SIGMAS * math.sqrt(2 - math.pi / 2)) / _NOISE_OVERESTIMATED


@lru_cache(maxsize=2)
def _bank(height: int, width: int) -> tuple[Doubles, Doubles]:
    """Filters (orientations, scales, h, w), and (orientations,) the energy of noise of power 1 at scale 0."""
    x, y = np.meshgrid(_frequencies(width), _frequencies(height))
    radius, angle = np.hypot(x, y), np.arctan2(-y, x)
    low_pass = 1 / (1 + (radius / 0.45) ** 30)
    radius[0, 0] = 1
    wavelengths = _SHORTEST_PX * 2.0 ** np.arange(_SCALES)
    log_distance = np.log(radius * wavelengths[:, None, None])
    radial = np.exp(-(log_distance**2) / (2 * math.log(_BANDWIDTH) ** 2)) * low_pass
    radial[:, 0, 0] = 0
    turned = angle - (np.arange(_ORIENTATIONS) * math.pi / _ORIENTATIONS)[:, None, None]
    distance = np.arctan2(np.sin(turned), np.cos(turned))
    filters = np.exp(-(distance**2) / (2 * _ANGULAR_SIGMA**2))[:, None] * radial
    impulses = np.fft.ifft2(filters).real * math.sqrt(height * width)
    # 2 Σ aₛ² + 4 Σ aₛ aₜ over all pairs of scales is 2 (Σ aₛ)²
    gains = 2 * (impulses.sum(axis=1) ** 2).sum(axis=(1, 2)) / (filters[:, 0] ** 2).sum(axis=(1, 2))
    return filters, gains


def _frequencies(length: int) -> Doubles:
    """Frequencies in cycles per pixel, in FFT order; odd lengths end at exactly ±½, as in Kovesi's code."""
    if length % 2 == 0:
        return np.fft.fftfreq(length).astype(np.float64)
    return np.fft.ifftshift(np.arange(-(length - 1) // 2, (length - 1) // 2 + 1) / max(1, length - 1))
