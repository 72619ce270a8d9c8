"""A made-up H&E slide of any size, computed where it is read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops

from kin_cli.geometry import Box, Size
from kin_cli.slide.sample_textures import Field, smooth_noise, textures
from kin_cli.slide.source import Pixels, Slide

_FACTORS, _LEAST_PX = (1, 4, 16), 128
_NODE_PX = 16
# periods and widths, in nodes, of the noise that draws borders between kinds of tissue and of tissue
_NOISES = ((503, 18.0), (419, 11.0), (367, 5.0), (331, 2.0), (461, 15.0))
_SHAPE_NODES = 128
_TISSUE_SHARE = 0.55
_FRAGMENTS = 6
_EDGE_PX = 24
# what red, green and blue are multiplied with, for tones 0 (pink) to 255 (violet)
_TINT = [np.rint(np.linspace(*ends, 256)).astype(int).tolist() for ends in ((255, 236), (232, 246), (240, 255))]
_MPP, _OBJECTIVE = 0.5, 20.0


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
        self._inside = field - np.float32(np.quantile(inside, 1 - _TISSUE_SHARE))
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
