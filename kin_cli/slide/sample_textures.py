"""Periodic H&E-like textures, drawn once from a seed: the ink of ``SampleSlide``.

Each is drawn as amounts of haematoxylin and eosin and turned into colour by the law of Beer and Lambert. The periods
are 16 times numbers without a common factor: textures can be halved four times, and two of them together repeat only
after 40,000 pixels and more.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

Field = npt.NDArray[np.float32]

# absorbance of red, green and blue by one unit of each stain
_HAEMATOXYLIN = np.array([0.65, 0.70, 0.29], np.float32)
_EOSIN = np.array([0.08, 0.88, 0.45], np.float32)
_GLASS = (243, 242, 244)


@dataclass(frozen=True)
class Textures:
    """Square pictures (mode RGB) that continue seamlessly where they end."""

    stroma: Image.Image
    glands: Image.Image
    sheet: Image.Image
    lymphocytes: Image.Image
    glass: Image.Image

    def reduced(self, factor: int) -> Textures:
        """The textures at 1/``factor`` of their size."""
        return Textures(*(getattr(self, field.name).reduce(factor) for field in fields(self)))


@lru_cache(maxsize=2)
def textures(seed: int) -> Textures:
    """The textures of a seed.

    Memory bound: 30 MB, for each of the last two seeds.
    """
    rng = np.random.default_rng(seed)
    return Textures(
        _stroma(rng, 16 * 67),
        _glands(rng, 16 * 71),
        _sheet(rng, 16 * 61),
        _lymphocytes(rng, 16 * 57),
        _glass(rng, 16 * 47),
    )


def smooth_noise(rng: np.random.Generator, period: int, *, sigma: float | tuple[float, float]) -> Field:
    """Gaussian noise (period, period), smoothed by ``sigma`` nodes; periodic, of mean 0 and standard deviation 1."""
    noise: Field = ndimage.gaussian_filter(rng.standard_normal((period, period), dtype=np.float32), sigma, mode="wrap")
    noise -= noise.mean()
    noise /= noise.std()
    return noise


def _colour(haematoxylin: Field, eosin: Field) -> Image.Image:
    absorbance = haematoxylin[..., None] * _HAEMATOXYLIN + eosin[..., None] * _EOSIN
    return Image.fromarray(np.rint(np.array(_GLASS, np.float32) * np.exp(-absorbance)).astype(np.uint8))


def _fibres(rng: np.random.Generator, period: int) -> Field:
    """Wavy strands: noise that is long in x, each column moved by a periodic wave."""
    strands = smooth_noise(rng, period, sigma=(2.2, 18.0))
    turn = 2 * np.pi * np.arange(period) / period
    wave = (35 * np.sin(turn) + 14 * np.sin(3 * turn + 1)).astype(int)
    rows = (np.arange(period)[:, None] + wave) % period
    return np.take_along_axis(strands, rows, axis=0)


def _stroma(rng: np.random.Generator, period: int) -> Image.Image:
    fibres = _fibres(rng, period)
    eosin = np.clip(0.42 + 0.13 * fibres, 0.05, None)
    haematoxylin = np.full_like(eosin, 0.06)
    _strew(haematoxylin, rng, spacing=54, radius=(9.0, 13.0), slimness=(0.3, 0.5))
    return _colour(haematoxylin, eosin)


def _sheet(rng: np.random.Generator, period: int) -> Image.Image:
    cytoplasm = smooth_noise(rng, period, sigma=5.0)
    eosin = np.clip(0.33 + 0.06 * cytoplasm, 0.0, None)
    haematoxylin = np.clip(0.20 + 0.04 * cytoplasm, 0.0, None)
    _strew(haematoxylin, rng, spacing=27, radius=(8.0, 11.5), slimness=(0.65, 1.0))
    return _colour(haematoxylin, eosin)


def _lymphocytes(rng: np.random.Generator, period: int) -> Image.Image:
    eosin = np.clip(0.22 + 0.05 * smooth_noise(rng, period, sigma=4.0), 0.0, None)
    haematoxylin = np.full_like(eosin, 0.12)
    _strew(haematoxylin, rng, spacing=19, radius=(6.0, 8.0), slimness=(0.8, 1.0))
    return _colour(haematoxylin, eosin)


def _glands(rng: np.random.Generator, period: int) -> Image.Image:
    eosin = np.clip(0.40 + 0.12 * _fibres(rng, period), 0.05, None)
    haematoxylin = np.full_like(eosin, 0.06)
    _strew(haematoxylin, rng, spacing=46, radius=(8.0, 12.0), slimness=(0.3, 0.5))
    rough = 0.06 * smooth_noise(rng, period, sigma=9.0)
    for centre, radius in _packed(rng, period):
        _draw_gland(haematoxylin, eosin, rng, _Gland(centre, radius, rough))
    return _colour(haematoxylin, eosin)


@dataclass(frozen=True)
class _Gland:
    centre: npt.NDArray[np.float64]
    radius: float
    rough: Field


def _packed(rng: np.random.Generator, period: int) -> list[tuple[npt.NDArray[np.float64], float]]:
    """Discs (centre, radius) thrown on a periodic canvas wherever they do not touch one that lies there."""
    centres, radii = np.empty((0, 2)), np.empty(0)
    for _ in range(1500):
        centre, radius = rng.uniform(0, period, 2), rng.uniform(48, 96)
        apart = (centres - centre + period / 2) % period - period / 2
        if (np.hypot(apart[:, 0], apart[:, 1]) > radii + radius + 12).all():
            centres, radii = np.vstack([centres, centre]), np.append(radii, radius)
    return list(zip(centres, radii.tolist(), strict=True))


def _draw_gland(haematoxylin: Field, eosin: Field, rng: np.random.Generator, gland: _Gland) -> None:
    squeeze, angle = rng.uniform(0.7, 1.0), rng.uniform(0, np.pi)
    place, distance = _ellipse(len(eosin), gland.centre, gland.radius, squeeze, angle)
    distance = distance + gland.rough[place]
    epithelium = _soft(1 - distance, 0.03)
    lumen = _soft(rng.uniform(0.2, 0.5) - distance, 0.04)
    for stain, amount in ((haematoxylin, 0.22), (eosin, 0.28)):
        stain[place] = stain[place] * (1 - epithelium) + amount * epithelium * (1 - lumen)
    turns = np.arange(0, 2 * np.pi, 20 / gland.radius)
    for turn in turns + rng.uniform(-0.08, 0.08, len(turns)):
        along, across = gland.radius * rng.uniform(0.72, 0.84) * np.array([np.cos(turn), squeeze * np.sin(turn)])
        x, y = along * np.cos(angle) - across * np.sin(angle), along * np.sin(angle) + across * np.cos(angle)
        _draw_nucleus(haematoxylin, rng, gland.centre + (y, x), (rng.uniform(8, 10.5), rng.uniform(0.55, 0.75)))


def _strew(
    haematoxylin: Field,
    rng: np.random.Generator,
    *,
    spacing: int,
    radius: tuple[float, float],
    slimness: tuple[float, float],
) -> None:
    for centre in _scattered(rng, len(haematoxylin), spacing, jitter=0.38):
        _draw_nucleus(haematoxylin, rng, centre, (rng.uniform(*radius), rng.uniform(*slimness)))


def _scattered(rng: np.random.Generator, period: int, spacing: int, jitter: float) -> npt.NDArray[np.float64]:
    """Points (n, 2) near the nodes of a periodic grid, every other row moved by half a step."""
    steps = max(2, round(period / spacing))
    row, col = np.mgrid[0:steps, 0:steps].reshape(2, -1)
    points = np.stack([row + 0.5, col + 0.5 * (row % 2)], axis=1) + rng.uniform(-jitter, jitter, (steps * steps, 2))
    return points * (period / steps)


def _draw_nucleus(
    haematoxylin: Field, rng: np.random.Generator, centre: npt.NDArray[np.float64], form: tuple[float, float]
) -> None:
    radius, slimness = form
    place, distance = _ellipse(len(haematoxylin), centre, radius, slimness, rng.uniform(0, np.pi))
    chromatin = 1 - 0.25 * np.cos(4 * distance) * rng.uniform(0, 1)
    nucleus = rng.uniform(0.85, 1.35) * chromatin * _soft(1 - distance, 0.12)
    haematoxylin[place] = np.maximum(haematoxylin[place], nucleus)


def _ellipse(
    period: int, centre: npt.NDArray[np.float64], radius: float, slimness: float, angle: float
) -> tuple[tuple[npt.NDArray[np.intp], ...], Field]:
    """Index of the pixels around an ellipse on a periodic canvas, and their distance from its centre (border: 1)."""
    reach = int(radius * 1.3) + 2
    whole = np.floor(centre).astype(int)
    steps = np.arange(-reach, reach + 1)
    y, x = steps[:, None] - (centre[0] - whole[0]), steps - (centre[1] - whole[1])
    along = x * np.cos(angle) + y * np.sin(angle)
    across = (y * np.cos(angle) - x * np.sin(angle)) / slimness
    place = np.ix_((whole[0] + steps) % period, (whole[1] + steps) % period)
    return place, (np.hypot(along, across) / radius).astype(np.float32)


def _soft(inside: Field, width: float) -> Field:
    """0 to 1 across a border at 0, over ``width`` to both sides."""
    opacity: Field = np.clip(0.5 + inside / (2 * width), 0, 1)
    return opacity


def _glass(rng: np.random.Generator, period: int) -> Image.Image:
    noise = 0.7 * smooth_noise(rng, period, sigma=1.2)
    return Image.fromarray(np.rint(np.array(_GLASS) + noise[..., None]).astype(np.uint8))
