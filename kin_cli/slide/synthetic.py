"""A synthetic H&E slide of any size, computed when it is read.

``SampleSlide`` composes periodic textures, which are drawn once from a seed as amounts of haematoxylin and eosin and
converted to colour by the law of Beer and Lambert. The periods are 16 times numbers without a common factor: textures
can be halved four times, and a combination of two repeats only after more than 40,000 pixels. Where which texture shows
is decided by smooth noise on a lattice of nodes, 16 pixels of level 0 apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops
from scipy import ndimage

from kin_cli.geometry import AnyArray, Box, Doubles, Floats, Indices, Pixels, Size
from kin_cli.slide.base import Slide

_FACTORS, _LEAST_PX = (1, 4, 16), 128  # reduction of the levels, and the least side of a reduced level
_NODE_PX = 16
# (period, sigma) in nodes of the noise that shapes the outline of the tissue and the areas of each kind of tissue
_NOISES = ((503, 18.0), (419, 11.0), (367, 5.0), (331, 2.0), (461, 15.0))
_SHAPE_NODES = 128
_TISSUE_FRACTION = 0.55
_FRAGMENTS = 6
_EDGE_PX = 24
# factors (of 255) for red, green and blue, for tones 0 (pink) to 255 (violet)
_TINT = [np.rint(np.linspace(*ends, 256)).astype(int).tolist() for ends in ((255, 236), (232, 246), (240, 255))]
_MPP, _OBJECTIVE = 0.5, 20.0
# absorbance of red, green and blue for one unit of each stain
_HAEMATOXYLIN = np.array([0.65, 0.70, 0.29], np.float32)
_EOSIN = np.array([0.08, 0.88, 0.45], np.float32)
_BACKGROUND = (243, 242, 244)


class SampleSlide(Slide):
    """A synthetic slide: pieces of tissue on background, with stroma, glands, sheets of cells and lymphocytes.

    The value of a pixel depends only on its position, ``size`` and ``seed``. The pieces scale with the slide (about
    55 % of the area), cells do not (nuclei of 6 to 13 px, as at 20×). Larger slides have levels reduced 4 and 16 times.

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
            return np.array(_cut(bank.background, box))
        tissue = _cut(bank.stroma, box)
        for texture, kind in zip((bank.sheet, bank.glands, bank.lymphocytes), self._kinds(nodes), strict=True):
            if kind.any():
                tissue.paste(_cut(texture, box), mask=lattice.enlarged(kind))
        tissue = ImageChops.multiply(tissue, _tint(lattice.enlarged(self._shape.tone(nodes))))
        if opacity.min() == 255:
            return np.array(tissue)
        picture = _cut(bank.background, box)
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
        # two periods, and a zone that scales with the slide: a single period would be visible on an overview
        slow = self._noise(nodes, (0, 4), (0.7, 0.7)) + self._shape.zone(nodes)
        middle, fast = (self._noise(nodes, (layer,), (1.0,)) for layer in (1, 2))
        wobble = 0.15 * fast
        sheets = 4 * (slow + 0.3 * middle + wobble - 0.35)
        glands = 4 * (-slow + 0.3 * middle + wobble - 0.35)
        lymphocytes = 4 * (middle - 0.5 * np.abs(slow) + wobble - 1.25)
        return [_opacity(kind) for kind in (sheets, glands, lymphocytes)]

    def _noise(self, nodes: Box, layers: tuple[int, ...], weights: tuple[float, ...]) -> Floats:
        total = np.zeros((nodes.height, nodes.width), np.float32)
        for layer, weight in zip(layers, weights, strict=True):
            bank = self._noises[layer]
            rows = np.arange(nodes.y, nodes.bottom) % len(bank)
            cols = np.arange(nodes.x, nodes.right) % len(bank)
            total += np.float32(weight) * bank[np.ix_(rows, cols)]
        return total


class _Shape:
    """The properties that scale with the slide: the outline of the tissue, its tone, and its zones."""

    def __init__(self, size: Size, rng: np.random.Generator) -> None:
        longest = max(size.width, size.height)
        # the nodes of the shape are a power of two nodes apart, so that positions between them are exact
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

    def inside(self, nodes: Box) -> Floats:
        """Approximate depth in the tissue at each node (h, w), in units of the long side; negative on background."""
        return self._at(self._inside, nodes)

    def tone(self, nodes: Box) -> Pixels:
        """Tone at each node (h, w): 0 where eosin is strongest, 255 where haematoxylin is."""
        return _opacity(0.4 * self._at(self._tone, nodes))

    def zone(self, nodes: Box) -> Floats:
        """Slow noise at each node (h, w): decides which kinds of tissue prevail in a part of the slide."""
        return self._at(0.8 * self._zone, nodes)

    def _at(self, field: Floats, nodes: Box) -> Floats:
        rows, cols = (
            np.clip(np.arange(start, stop) / self._spacing, 0, side - 1.001).astype(np.float32)
            for start, stop, side in ((nodes.y, nodes.bottom, field.shape[0]), (nodes.x, nodes.right, field.shape[1]))
        )
        row, col = rows.astype(np.intp), cols.astype(np.intp)
        down, right = (rows - row)[:, None], cols - col
        upper = field[np.ix_(row, col)] * (1 - right) + field[np.ix_(row, col + 1)] * right
        lower = field[np.ix_(row + 1, col)] * (1 - right) + field[np.ix_(row + 1, col + 1)] * right
        value: Floats = upper * (1 - down) + lower * down
        return value


def _fragments(rng: np.random.Generator, y: Floats, x: Floats) -> Floats:
    """Depth in the nearest of six ellipses, for coordinates of 0 to 1 (h, w)."""
    depth = np.full(y.shape, -9.0, np.float32)
    for number in range(_FRAGMENTS):
        # on a 2 × 3 pattern, so that they do not overlap
        cy, cx = (number // 2 + 0.5) / 3, (number % 2 + 0.5) / 2
        cy, cx = cy + rng.uniform(-0.06, 0.06), cx + rng.uniform(-0.08, 0.08)
        ry, rx, angle = rng.uniform(0.11, 0.16), rng.uniform(0.16, 0.24), rng.uniform(-0.5, 0.5)
        along = ((x - cx) * math.cos(angle) + (y - cy) * math.sin(angle)) / rx
        across = ((y - cy) * math.cos(angle) - (x - cx) * math.sin(angle)) / ry
        np.maximum(depth, (1 - np.hypot(along, across)) * min(rx, ry), out=depth)
    from_border = np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y))
    return np.minimum(depth, 1.5 * from_border - 0.12, out=depth)


class _Lattice:
    """The nodes around the pixels of a box; nodes are ``spacing`` pixels of the level apart."""

    def __init__(self, box: Box, spacing: int) -> None:
        x, y = box.x // spacing - 1, box.y // spacing - 1
        self.nodes = Box(x, y, (box.right - 1) // spacing + 2 - x, (box.bottom - 1) // spacing + 2 - y)
        # quotients by a power of two are exact, so a pixel has the same value in every box
        self._left, self._top = box.x / spacing - x, box.y / spacing - y
        self._width, self._height = box.width, box.height
        self._span = (box.width / spacing, box.height / spacing)

    def enlarged(self, values: Pixels) -> Image.Image:
        """Values at the nodes (h, w), interpolated at the pixels of the box (mode L)."""
        # one axis at a time: Pillow rounds between the axes, and their order depends on the sizes
        across = (self._left, 0.0, self._left + self._span[0], float(self.nodes.height))
        wide = Image.fromarray(values).resize((self._width, self.nodes.height), Image.Resampling.BILINEAR, box=across)
        down = (0.0, self._top, float(self._width), self._top + self._span[1])
        return wide.resize((self._width, self._height), Image.Resampling.BILINEAR, box=down)


def _tint(tone: Image.Image) -> Image.Image:
    """The colour (mode RGB) to multiply with, from a tone (mode L)."""
    return Image.merge("RGB", [tone.point(ramp) for ramp in _TINT])


def _cut(texture: Image.Image, box: Box) -> Image.Image:
    """The pixels of ``box`` from a texture that repeats without end."""
    period = texture.width
    x, y = box.x % period, box.y % period
    if x + box.width <= period and y + box.height <= period:
        return texture.crop((x, y, x + box.width, y + box.height))
    cut = Image.new("RGB", (box.width, box.height))
    for top in range(-y, box.height, period):
        for left in range(-x, box.width, period):
            cut.paste(texture, (left, top))
    return cut


def _opacity(inside: AnyArray) -> Pixels:
    """Opacity from 0 to 255, rising linearly where ``inside`` goes from -0.5 to 0.5."""
    opacity: Pixels = np.rint(255 * np.clip(inside + 0.5, 0, 1)).astype(np.uint8)
    return opacity


# Textures


@dataclass(frozen=True)
class Textures:
    """Square images (mode RGB) that are seamless when repeated."""

    stroma: Image.Image
    glands: Image.Image
    sheet: Image.Image
    lymphocytes: Image.Image
    background: Image.Image

    def reduced(self, factor: int) -> Textures:
        """The textures reduced ``factor`` times."""
        return Textures(*(getattr(self, field.name).reduce(factor) for field in fields(self)))


@lru_cache(maxsize=2)
def textures(seed: int) -> Textures:
    """Draw the textures of a seed.

    Memory bound: 30 MB for each of the last two seeds.
    """
    rng = np.random.default_rng(seed)
    return Textures(
        _stroma(rng, 16 * 67),
        _glands(rng, 16 * 71),
        _sheet(rng, 16 * 61),
        _lymphocytes(rng, 16 * 57),
        _background(rng, 16 * 47),
    )


def smooth_noise(rng: np.random.Generator, period: int, *, sigma: float | tuple[float, float]) -> Floats:
    """Periodic Gaussian noise (period, period), smoothed by ``sigma``, with mean 0 and standard deviation 1."""
    noise: Floats = ndimage.gaussian_filter(rng.standard_normal((period, period), dtype=np.float32), sigma, mode="wrap")
    noise -= noise.mean()
    noise /= noise.std()
    return noise


def _colour(haematoxylin: Floats, eosin: Floats) -> Image.Image:
    """The colour of amounts of the two stains (h, w), by the law of Beer and Lambert."""
    absorbance = haematoxylin[..., None] * _HAEMATOXYLIN + eosin[..., None] * _EOSIN
    return Image.fromarray(np.rint(np.array(_BACKGROUND, np.float32) * np.exp(-absorbance)).astype(np.uint8))


def _fibres(rng: np.random.Generator, period: int) -> Floats:
    """Wavy strands: noise elongated in x, with each column shifted by a periodic wave."""
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
    """Centre (y, x) and radius in pixels, and the noise (period, period) that roughens the outline."""

    centre: Doubles
    radius: float
    rough: Floats


def _packed(rng: np.random.Generator, period: int) -> list[tuple[Doubles, float]]:
    """Random discs (centre, radius) on a periodic canvas; a disc that would touch an earlier one is dropped."""
    centres, radii = np.empty((0, 2)), np.empty(0)
    for _ in range(1500):
        centre, radius = rng.uniform(0, period, 2), rng.uniform(48, 96)
        apart = (centres - centre + period / 2) % period - period / 2
        if (np.hypot(apart[:, 0], apart[:, 1]) > radii + radius + 12).all():
            centres, radii = np.vstack([centres, centre]), np.append(radii, radius)
    return list(zip(centres, radii.tolist(), strict=True))


def _draw_gland(haematoxylin: Floats, eosin: Floats, rng: np.random.Generator, gland: _Gland) -> None:
    """Draw an epithelium with a ring of nuclei around a lumen."""
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
    haematoxylin: Floats,
    rng: np.random.Generator,
    *,
    spacing: int,
    radius: tuple[float, float],
    slimness: tuple[float, float],
) -> None:
    """Draw nuclei about ``spacing`` pixels apart, with radii and slimness from the given ranges."""
    for centre in _scattered(rng, len(haematoxylin), spacing, jitter=0.38):
        _draw_nucleus(haematoxylin, rng, centre, (rng.uniform(*radius), rng.uniform(*slimness)))


def _scattered(rng: np.random.Generator, period: int, spacing: int, jitter: float) -> Doubles:
    """Points (n, 2) near the nodes of a periodic grid in which every other row is shifted by half a step."""
    steps = max(2, round(period / spacing))
    row, col = np.mgrid[0:steps, 0:steps].reshape(2, -1)
    points = np.stack([row + 0.5, col + 0.5 * (row % 2)], axis=1) + rng.uniform(-jitter, jitter, (steps * steps, 2))
    return points * (period / steps)


def _draw_nucleus(haematoxylin: Floats, rng: np.random.Generator, centre: Doubles, form: tuple[float, float]) -> None:
    """Draw a nucleus; ``form`` is its long radius in pixels and the ratio of the short to the long radius."""
    radius, slimness = form
    place, distance = _ellipse(len(haematoxylin), centre, radius, slimness, rng.uniform(0, np.pi))
    chromatin = 1 - 0.25 * np.cos(4 * distance) * rng.uniform(0, 1)
    nucleus = rng.uniform(0.85, 1.35) * chromatin * _soft(1 - distance, 0.12)
    haematoxylin[place] = np.maximum(haematoxylin[place], nucleus)


def _ellipse(
    period: int, centre: Doubles, radius: float, slimness: float, angle: float
) -> tuple[tuple[Indices, ...], Floats]:
    """Index of the pixels around an ellipse on a periodic canvas, and their distance from its centre (edge: 1)."""
    reach = int(radius * 1.3) + 2
    whole = np.floor(centre).astype(int)
    steps = np.arange(-reach, reach + 1)
    y, x = steps[:, None] - (centre[0] - whole[0]), steps - (centre[1] - whole[1])
    along = x * np.cos(angle) + y * np.sin(angle)
    across = (y * np.cos(angle) - x * np.sin(angle)) / slimness
    place = np.ix_((whole[0] + steps) % period, (whole[1] + steps) % period)
    return place, (np.hypot(along, across) / radius).astype(np.float32)


def _soft(inside: Floats, width: float) -> Floats:
    """Opacity from 0 to 1, rising linearly where ``inside`` goes from -``width`` to ``width``."""
    opacity: Floats = np.clip(0.5 + inside / (2 * width), 0, 1)
    return opacity


def _background(rng: np.random.Generator, period: int) -> Image.Image:
    noise = 0.7 * smooth_noise(rng, period, sigma=1.2)
    return Image.fromarray(np.rint(np.array(_BACKGROUND) + noise[..., None]).astype(np.uint8))
