"""A made-up H&E slide of any size, computed where it is read."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops
from scipy import ndimage

from kin_cli.geometry import Box, Size
from kin_cli.slide.base import Pixels, Slide

_FACTORS, _LEAST_PX = (1, 4, 16), 128
_NODE_PX = 16
# periods and widths, in nodes, of the noise that draws borders between kinds of tissue and of tissue
_NOISES = ((503, 18.0), (419, 11.0), (367, 5.0), (331, 2.0), (461, 15.0))
_SHAPE_NODES = 128
_TISSUE_FRACTION = 0.55
_FRAGMENTS = 6
_EDGE_PX = 24
# what red, green and blue are multiplied with, for tones 0 (pink) to 255 (violet)
_TINT = [np.rint(np.linspace(*ends, 256)).astype(int).tolist() for ends in ((255, 236), (232, 246), (240, 255))]
_MPP, _OBJECTIVE = 0.5, 20.0
Field = npt.NDArray[np.float32]

# absorbance of red, green and blue by one unit of each stain
_HAEMATOXYLIN = np.array([0.65, 0.70, 0.29], np.float32)
_EOSIN = np.array([0.08, 0.88, 0.45], np.float32)
_GLASS = (243, 242, 244)


# FROM slide.sample: A made-up H&E slide of any size, computed where it is read.


class SampleSlide(Slide):
    """A procedural slide: pieces of tissue on glass, with stroma, glands, sheets of cells and lymphocytes.

    Every pixel depends only on its place, ``size`` and ``seed``. The pieces scale with the slide (about 55 % of the
    area), cells do not (nuclei of 6 to 13 px, as at 20×). Larger slides have levels reduced 4 and 16 times.

    Memory bound: 60 MB, whatever the size.
    """

    format = "sample"

    def __init__(self, size: Size, *, seed: int = 0) -> None:
        self.path = Path(f"sample-{size.width}x{size.height}")
        factors = [factor for factor in _FACTORS if factor == 1 or min(size.width, size.height) // factor >= _LEAST_PX]
        self.levels = tuple(Size(size.width // factor, size.height // factor) for factor in factors)
        self.downsamples = tuple(float(factor) for factor in factors)
        self.mpp = _MPP
        self.objective = _OBJECTIVE
        self._banks = [textures(seed).reduced(factor) for factor in factors]
        rng = np.random.default_rng([seed, size.width, size.height])
        self._noises = [smooth_noise(rng, period, sigma=sigma) for period, sigma in _NOISES]
        self._shape = _Shape(size, rng)

    def _fetch(self, level: int, box: Box) -> Pixels:
        bank, lattice = self._banks[level], _Lattice(box, _NODE_PX // _FACTORS[level])
        nodes = lattice.nodes
        opacity = self._tissue(nodes)
        if not opacity.any():
            return np.array(_cut(bank.glass, box))
        tissue = _cut(bank.stroma, box)
        for texture, kind in zip((bank.sheet, bank.glands, bank.lymphocytes), self._kinds(nodes), strict=True):
            if kind.any():
                tissue.paste(_cut(texture, box), mask=lattice.enlarged(kind))
        tissue = ImageChops.multiply(tissue, _tint(lattice.enlarged(self._shape.tone(nodes))))
        if opacity.min() == 255:
            return np.array(tissue)
        picture = _cut(bank.glass, box)
        picture.paste(tissue, mask=lattice.enlarged(opacity))
        return np.array(picture)

    def _tissue(self, nodes: Box) -> Pixels:
        """Opacity of the tissue at the nodes (h, w)."""
        long_side = max(self.levels[0].width, self.levels[0].height)
        ragged = min(110.0, 0.03 * long_side)
        noise = self._noise(nodes, (1, 2, 3), (1.0, 0.5, 0.25))
        inside_px = self._shape.inside(nodes) * long_side + ragged * noise
        return _opacity(inside_px / _EDGE_PX)

    def _kinds(self, nodes: Box) -> list[Pixels]:
        """Opacity of the sheets, glands and lymphocytes at the nodes, each (h, w)."""
        # two periods and what scales with the slide: or the pattern of one period would show on an overview
        slow = self._noise(nodes, (0, 4), (0.7, 0.7)) + self._shape.zone(nodes)
        middle, fast = (self._noise(nodes, (layer,), (1.0,)) for layer in (1, 2))
        wobble = 0.15 * fast
        sheets = 4 * (slow + 0.3 * middle + wobble - 0.35)
        glands = 4 * (-slow + 0.3 * middle + wobble - 0.35)
        lymphocytes = 4 * (middle - 0.5 * np.abs(slow) + wobble - 1.25)
        return [_opacity(kind) for kind in (sheets, glands, lymphocytes)]

    def _noise(self, nodes: Box, layers: tuple[int, ...], weights: tuple[float, ...]) -> Field:
        total = np.zeros((nodes.height, nodes.width), np.float32)
        for layer, weight in zip(layers, weights, strict=True):
            bank = self._noises[layer]
            rows = np.arange(nodes.y, nodes.bottom) % len(bank)
            cols = np.arange(nodes.x, nodes.right) % len(bank)
            total += np.float32(weight) * bank[np.ix_(rows, cols)]
        return total


class _Shape:
    """What scales with the slide: where tissue is, and how strongly it took the stains."""

    def __init__(self, size: Size, rng: np.random.Generator) -> None:
        longest = max(size.width, size.height)
        # nodes of the shape are whole numbers of nodes apart, so that positions are exact
        self._spacing = 1 << max(0, math.ceil(math.log2(longest / (_SHAPE_NODES * _NODE_PX))))
        step = self._spacing * _NODE_PX
        rows, cols = math.ceil(size.height / step) + 2, math.ceil(size.width / step) + 2
        y, x = np.mgrid[0:rows, 0:cols].astype(np.float32) * np.float32(step)
        field = _fragments(rng, y / size.height, x / size.width)
        field += 0.03 * smooth_noise(rng, _SHAPE_NODES * 2, sigma=5.0)[:rows, :cols]
        inside = field[: max(1, size.height // step), : max(1, size.width // step)]
        self._inside = field - np.float32(np.quantile(inside, 1 - _TISSUE_FRACTION))
        self._tone, self._zone = (
            smooth_noise(rng, _SHAPE_NODES * 2, sigma=sigma)[:rows, :cols] for sigma in (12.0, 7.0)
        )

    def inside(self, nodes: Box) -> Field:
        """About how deep in tissue each node (h, w) lies, in long sides of the slide; negative on glass."""
        return self._at(self._inside, nodes)

    def tone(self, nodes: Box) -> Pixels:
        """0 where eosin is stronger than elsewhere, 255 where haematoxylin is, at each node (h, w)."""
        return _opacity(0.4 * self._at(self._tone, nodes))

    def zone(self, nodes: Box) -> Field:
        """Noise (h, w), which decides what kinds of tissue prevail in a part of the slide."""
        return self._at(0.8 * self._zone, nodes)

    def _at(self, field: Field, nodes: Box) -> Field:
        rows, cols = (
            np.clip(np.arange(start, stop) / self._spacing, 0, side - 1.001).astype(np.float32)
            for start, stop, side in ((nodes.y, nodes.bottom, field.shape[0]), (nodes.x, nodes.right, field.shape[1]))
        )
        row, col = rows.astype(np.intp), cols.astype(np.intp)
        down, right = (rows - row)[:, None], cols - col
        upper = field[np.ix_(row, col)] * (1 - right) + field[np.ix_(row, col + 1)] * right
        lower = field[np.ix_(row + 1, col)] * (1 - right) + field[np.ix_(row + 1, col + 1)] * right
        value: Field = upper * (1 - down) + lower * down
        return value


def _fragments(rng: np.random.Generator, y: Field, x: Field) -> Field:
    """Depth in the nearest of some ellipses, for coordinates of 0 to 1 (h, w)."""
    depth = np.full(y.shape, -9.0, np.float32)
    for number in range(_FRAGMENTS):
        # spread over a 2 × 3 pattern, so that no two lie on each other
        cy, cx = (number // 2 + 0.5) / 3, (number % 2 + 0.5) / 2
        cy, cx = cy + rng.uniform(-0.06, 0.06), cx + rng.uniform(-0.08, 0.08)
        ry, rx, angle = rng.uniform(0.11, 0.16), rng.uniform(0.16, 0.24), rng.uniform(-0.5, 0.5)
        along = ((x - cx) * math.cos(angle) + (y - cy) * math.sin(angle)) / rx
        across = ((y - cy) * math.cos(angle) - (x - cx) * math.sin(angle)) / ry
        np.maximum(depth, (1 - np.hypot(along, across)) * min(rx, ry), out=depth)
    from_border = np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y))
    return np.minimum(depth, 1.5 * from_border - 0.12, out=depth)


class _Lattice:
    """The nodes, ``spacing`` pixels of a level apart, between which the pixels of a box lie."""

    def __init__(self, box: Box, spacing: int) -> None:
        x, y = box.x // spacing - 1, box.y // spacing - 1
        self.nodes = Box(x, y, (box.right - 1) // spacing + 2 - x, (box.bottom - 1) // spacing + 2 - y)
        # quotients by a power of two are exact, hence a pixel is the same in every box
        self._left, self._top = box.x / spacing - x, box.y / spacing - y
        self._width, self._height = box.width, box.height
        self._span = (box.width / spacing, box.height / spacing)

    def enlarged(self, values: Pixels) -> Image.Image:
        """Values at the nodes (h, w), interpolated at the pixels of the box."""
        # one axis at a time: Pillow rounds in between, and which axis it takes first depends on the sizes
        across = (self._left, 0.0, self._left + self._span[0], float(self.nodes.height))
        wide = Image.fromarray(values).resize((self._width, self.nodes.height), Image.Resampling.BILINEAR, box=across)
        down = (0.0, self._top, float(self._width), self._top + self._span[1])
        return wide.resize((self._width, self._height), Image.Resampling.BILINEAR, box=down)


def _tint(tone: Image.Image) -> Image.Image:
    """The colour to multiply with, from a tone (mode L)."""
    return Image.merge("RGB", [tone.point(ramp) for ramp in _TINT])


def _cut(texture: Image.Image, box: Box) -> Image.Image:
    """The pixels of ``box`` from a texture that repeats for ever."""
    period = texture.width
    x, y = box.x % period, box.y % period
    if x + box.width <= period and y + box.height <= period:
        return texture.crop((x, y, x + box.width, y + box.height))
    cut = Image.new("RGB", (box.width, box.height))
    for top in range(-y, box.height, period):
        for left in range(-x, box.width, period):
            cut.paste(texture, (left, top))
    return cut


def _opacity(inside: npt.NDArray[np.floating[Any]]) -> Pixels:
    """0 to 255 across a border at 0, over half a unit to both sides."""
    opacity: Pixels = np.rint(255 * np.clip(inside + 0.5, 0, 1)).astype(np.uint8)
    return opacity


# FROM slide.sample_textures: Periodic H&E-like textures, drawn once from a seed: the ink of ``SampleSlide``. Each is drawn as amounts of haematoxylin and eosin and turned into colour by the law of Beer and Lambert. The periods are 16 times numbers without a common factor: textures can be halved four times, and two of them together repeat only after 40,000 pixels and more.


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
