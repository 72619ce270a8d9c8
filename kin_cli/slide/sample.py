"""A made-up H&E slide of any size, computed where it is read."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops

from kin_cli.geometry import Box, Size
from kin_cli.slide.sample_textures import Field, smooth_noise, textures
from kin_cli.slide.source import Pixels, Slide

_NODE_PX = 16
_SHAPE_NODES = 128
_TISSUE_SHARE = 0.55
_FRAGMENTS = 6
_EDGE_PX = 24
_MPP, _OBJECTIVE = 0.5, 20.0


class SampleSlide(Slide):
    """A procedural slide: pieces of tissue on glass, with stroma, glands, sheets of cells and lymphocytes.

    Every pixel depends only on its place, ``size`` and ``seed``. The pieces scale with the slide (about 55 % of the
    area), cells do not (nuclei of 6 to 13 px, as at 20×).

    Memory bound: 60 MB, whatever the size.
    """

    format = "sample"

    def __init__(self, size: Size, *, seed: int = 0) -> None:
        self.path = Path(f"sample-{size.width}x{size.height}")
        self.levels = (size,)
        self.downsamples = (1.0,)
        self.mpp = _MPP
        self.objective = _OBJECTIVE
        self._textures = textures(seed)
        self._shape = _Shape(size, seed)

    def _fetch(self, level: int, box: Box) -> Pixels:
        nodes = _nodes_around(box)
        tissue = self._tissue(nodes)
        if tissue.max() == 0:
            return np.array(_cut(self._textures.glass, box))
        weights = np.stack([tissue, *self._kinds(nodes)], axis=-1)
        masks = _enlarged(weights, "CMYK", nodes, box).split()
        picture = _cut(self._textures.stroma, box)
        bank = self._textures
        for texture, mask in zip((bank.sheet, bank.glands, bank.lymphocytes), masks[1:], strict=True):
            picture = _laid_over(picture, texture, mask, box)
        tint = _enlarged(self._shape.tint(nodes), "RGB", nodes, box)
        picture = ImageChops.multiply(picture, tint)
        if masks[0].getextrema()[0] < 255:
            picture = Image.composite(picture, _cut(bank.glass, box), masks[0])
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
        slow, middle, fast = (self._noise(nodes, (kind,), (1.0,)) for kind in (0, 1, 2))
        wobble = 0.15 * fast
        sheets = 4 * (slow + 0.3 * middle + wobble - 0.35)
        glands = 4 * (-slow + 0.3 * middle + wobble - 0.35)
        lymphocytes = 4 * (middle - 0.5 * np.abs(slow) + wobble - 1.25)
        return [_opacity(kind) for kind in (sheets, glands, lymphocytes)]

    def _noise(self, nodes: Box, layers: tuple[int, ...], weights: tuple[float, ...]) -> Field:
        total = np.zeros((nodes.height, nodes.width), np.float32)
        for layer, weight in zip(layers, weights, strict=True):
            bank = self._textures.noise[layer]
            rows = np.arange(nodes.y, nodes.bottom) % len(bank)
            cols = np.arange(nodes.x, nodes.right) % len(bank)
            total += np.float32(weight) * bank[np.ix_(rows, cols)]
        return total


class _Shape:
    """What scales with the slide: where tissue is, and how strongly it took the stains."""

    def __init__(self, size: Size, seed: int) -> None:
        rng = np.random.default_rng([seed, size.width, size.height])
        longest = max(size.width, size.height)
        # nodes of the shape are whole numbers of nodes apart, so that positions are exact
        self._spacing = max(1, 2 ** math.ceil(math.log2(longest / (_SHAPE_NODES * _NODE_PX))))
        step = self._spacing * _NODE_PX
        rows, cols = math.ceil(size.height / step) + 2, math.ceil(size.width / step) + 2
        y, x = np.mgrid[0:rows, 0:cols].astype(np.float32) * np.float32(step)
        field = _fragments(rng, y / size.height, x / size.width)
        field += 0.05 * smooth_noise(rng, _SHAPE_NODES * 2, 5.0)[:rows, :cols]
        inside = field[: max(1, size.height // step), : max(1, size.width // step)]
        self._inside = field - np.float32(np.quantile(inside, 1 - _TISSUE_SHARE))
        self._tints = [smooth_noise(rng, _SHAPE_NODES * 2, 12.0)[:rows, :cols] for _ in range(2)]

    def inside(self, nodes: Box) -> Field:
        """About how deep in tissue each node (h, w) lies, in long sides of the slide; negative on glass."""
        return self._at(self._inside, nodes)

    def tint(self, nodes: Box) -> Pixels:
        """Colour (h, w, 3) to multiply with: a little more eosin here, more haematoxylin there."""
        eosin, haematoxylin = (0.04 * np.clip(self._at(tint, nodes) + 1, 0, 2) for tint in self._tints)
        tint = np.stack([1 - haematoxylin, 1 - eosin - haematoxylin, 1 - 0.3 * eosin - 0.3 * haematoxylin], axis=-1)
        return np.rint(255 * tint).astype(np.uint8)

    def _at(self, field: Field, nodes: Box) -> Field:
        rows, cols = (
            np.clip(np.arange(start, stop) / self._spacing, 0, side - 1.001).astype(np.float32)
            for start, stop, side in ((nodes.y, nodes.bottom, field.shape[0]), (nodes.x, nodes.right, field.shape[1]))
        )
        row, col = rows.astype(np.intp), cols.astype(np.intp)
        down, right = (rows - row)[:, None], cols - col
        upper = field[np.ix_(row, col)] * (1 - right) + field[np.ix_(row, col + 1)] * right
        lower = field[np.ix_(row + 1, col)] * (1 - right) + field[np.ix_(row + 1, col + 1)] * right
        return upper * (1 - down) + lower * down


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
    return depth


def _nodes_around(box: Box) -> Box:
    """The nodes that pixels of ``box`` are interpolated from."""
    x, y = box.x // _NODE_PX - 1, box.y // _NODE_PX - 1
    return Box(x, y, (box.right - 1) // _NODE_PX + 2 - x, (box.bottom - 1) // _NODE_PX + 2 - y)


def _enlarged(values: Pixels, mode: str, nodes: Box, box: Box) -> Image.Image:
    left, top = box.x / _NODE_PX - nodes.x, box.y / _NODE_PX - nodes.y
    span = (left, top, left + box.width / _NODE_PX, top + box.height / _NODE_PX)
    # steps of 1/16 are exact, hence a pixel is the same in every box
    return Image.fromarray(values, mode).resize((box.width, box.height), Image.Resampling.BILINEAR, box=span)


def _laid_over(picture: Image.Image, texture: Image.Image, mask: Image.Image, box: Box) -> Image.Image:
    least, most = mask.getextrema()
    if most == 0:
        return picture
    over = _cut(texture, box)
    return over if least == 255 else Image.composite(over, picture, mask)


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


def _opacity(inside: npt.NDArray[np.float32]) -> Pixels:
    """0 to 255 across a border at 0, over half a unit to both sides."""
    return np.rint(255 * np.clip(inside + 0.5, 0, 1)).astype(np.uint8)
