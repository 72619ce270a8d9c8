"""Slides: small files that readers open, and slides in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyvips
import tifffile
from numpy.typing import NDArray
from PIL import Image

from kin_cli.errors import InputError
from kin_cli.geometry import Box, Pixels, Size
from kin_cli.slide.base import Slide
from kin_cli.slide.open import open_slide


def write_slide(path: Path, *, width: int = 520, height: int = 1040, seed: int = 0) -> Path:
    """A tiled JPEG TIFF of coloured squares, read by OpenSlide: tiles of 128 px, 0.5 µm/px."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 240, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
    pixels = np.kron(coarse, np.ones((16, 16, 1), np.uint8))[:height, :width]
    options = {"compression": "jpeg", "resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(128, 128), metadata=None, **options)
    return path


def break_tile(path: Path, number: int) -> None:
    """Overwrite the beginning of a tile, so that it is no JPEG any more."""
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[number]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(64))


def write_photo(
    path: Path, size: tuple[int, int], *, coarse: tuple[int, int], seed: int = 0, noise: Sequence[float] = ()
) -> Path:
    """A PNG of ``size`` (width, height): ``coarse`` (width, height) random colours, enlarged smoothly.

    ``noise`` is the standard deviation of grey noise on top, either one number or one at each end of a row.
    """
    draws = np.random.default_rng(seed)
    colours = Image.fromarray(draws.integers(0, 255, (coarse[1], coarse[0], 3), np.uint8))
    pixels = np.asarray(colours.resize(size, Image.Resampling.BICUBIC), float)
    if noise:
        pixels = pixels + draws.normal(size=(*pixels.shape[:2], 1)) * np.linspace(noise[0], noise[-1], size[0])[:, None]
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


class ArraySlide(Slide):
    """A slide in memory, which counts what is read of it; boxes of ``bad`` cannot be read at level 0."""

    def __init__(self, *levels: NDArray[np.uint8], mpp: float | None = 0.25, bad: Sequence[Box] = ()) -> None:
        self.path, self.format, self.mpp = Path("array.svs"), "array", mpp
        self.levels = tuple(Size(level.shape[1], level.shape[0]) for level in levels)
        self.downsamples = tuple(levels[0].shape[1] / level.shape[1] for level in levels)
        self.arrays, self.bad, self.largest_read = levels, list(bad), 0

    def _fetch(self, level: int, box: Box) -> Pixels:
        self.largest_read = max(self.largest_read, box.width * box.height)
        if any(not box.intersection(bad).empty for bad in self.bad):
            raise InputError("damaged")
        return self.arrays[level][box.slices()]


def plain_slide(width: int, height: int, colour: int = 200) -> ArraySlide:
    """A slide of one shade of grey that takes no memory."""
    return ArraySlide(np.broadcast_to(np.uint8(colour), (height, width, 3)))


def read_all(slide: Slide, level: int = 0) -> Pixels:
    """All pixels of a level."""
    size = slide.levels[level]
    return slide.read(level, Box(0, 0, size.width, size.height))


def assert_opens_as(path: Path, expected: Pixels) -> None:
    """A file shows these very pixels, whole and in a part."""
    with open_slide(path) as slide:
        assert slide.levels[0] == Size(expected.shape[1], expected.shape[0])
        np.testing.assert_array_equal(read_all(slide), expected)
        box = Box(101, 57, 230, 201)
        np.testing.assert_array_equal(slide.read(0, box), expected[box.slices()])


def write_tiled(path: Path, pixels: NDArray[np.uint8], *, tile: int, quality: int | None = None) -> Path:
    """A tiled TIFF by libvips: lossless, or JPEG, whose chroma is subsampled below quality 90."""
    how = {"compression": "deflate"} if quality is None else {"compression": "jpeg", "Q": quality}
    pyvips.Image.new_from_array(pixels).tiffsave(str(path), tile=True, tile_width=tile, tile_height=tile, **how)
    return path
