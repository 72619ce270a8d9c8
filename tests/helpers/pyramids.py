"""Pyramids, and the stores of tiles that they are written from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import ImageCms

from kin_cli.geometry import Cell, Pixels, Size
from kin_cli.pyramid.codec import Codec
from kin_cli.pyramid.levels import PyramidLayout, build_levels, pad_tile
from kin_cli.pyramid.metadata import ImageInfo
from kin_cli.pyramid.writer import write_flat, write_pyramid
from kin_cli.store.blobs import BlobStore

LOSSLESS = Codec("deflate")
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def layout_of(image: Pixels, tile: int, min_side: int = 1024) -> PyramidLayout:
    return PyramidLayout(Size(image.shape[1], image.shape[0]), tile, min_side)


def info(
    mpp: float | None = 0.2525, icc: bytes | None = None, settings: Mapping[str, object] | None = None
) -> ImageInfo:
    return ImageInfo(mpp, icc, "kin 9.8.7", "a slide", settings or {"kernel": "gaussian:7"})


def put_base(store: BlobStore, image: Pixels, layout: PyramidLayout, codec: Codec, cells: Iterable[Cell]) -> None:
    for cell in cells:
        box = layout.grid(0).clipped(cell)
        store.put(layout.key(0, cell), codec.encode(pad_tile(image[box.slices()], layout.tile)))


def filled(folder: Path, image: Pixels, layout: PyramidLayout, codec: Codec, *, workers: int = 1) -> BlobStore:
    """A store of all tiles of all levels."""
    folder.mkdir(exist_ok=True)
    store = BlobStore(folder, "tiles", capacity=layout.tile_count)
    put_base(store, image, layout, codec, layout.grid(0))
    build_levels(store, layout, codec=codec, workers=workers)
    return store


def written(
    destination: Path,
    image: Pixels,
    *,
    tile: int = 128,
    min_side: int = 256,
    codec: Codec = LOSSLESS,
    about: ImageInfo | None = None,
) -> Path:
    """A finished pyramid of ``image``."""
    layout = layout_of(image, tile, min_side)
    with filled(destination.with_name(f"{destination.name}.store"), image, layout, codec) as store:
        write_pyramid(store, layout, codec=codec, info=about or info(), destination=destination)
    return destination


def assembled(store: BlobStore, layout: PyramidLayout, level: int, codec: Codec) -> Pixels:
    """The pixels of a level, with those of its last tiles beyond the image."""
    grid, tile = layout.grid(level), layout.tile
    pixels = np.zeros((grid.rows * tile, grid.cols * tile, 3), np.uint8)
    for cell in grid:
        pixels[grid.box(cell).slices()] = codec.decode(store.get(layout.key(level, cell)), tile)
    return pixels


def write_photo_file(destination: Path, image: Pixels, *, codec: Codec = LOSSLESS, mpp: float | None = 0.5) -> Path:
    """A PNG or JPEG of ``image`` with pixel size and profile."""
    layout = layout_of(image, 64, 4096)
    folder = destination.with_name("store")
    folder.mkdir()
    with BlobStore(folder, "tiles", capacity=layout.tile_count) as store:
        put_base(store, image, layout, codec, layout.grid(0))
        write_flat(store, layout, codec=codec, info=info(mpp, ICC), destination=destination)
    assert sorted(path.name for path in folder.iterdir()) == ["tiles-0.dat", "tiles-0.journal"]
    return destination
