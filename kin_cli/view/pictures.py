"""Tiles of a slide, or of a part of it, for a deep-zoom viewer: which levels there are, and each tile as JPEG or PNG.

The levels of a whole slide are those of its file, so that a tile shows stored pixels; where the file has gaps of a
factor of three or more, or no small level, levels of half the size are averaged in between. The tiles of a level are
those of the file, too: a JPEG tile is sent as it lies there, and of other files each tile is decoded once.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from kin_cli.concurrency import available_cores
from kin_cli.errors import InputError
from kin_cli.geometry import Box, Pixels, Size
from kin_cli.pyramid.codec import Codec
from kin_cli.slide.base import Slide
from kin_cli.slide.view import averaged

TILE_PX = 512
_SMALLEST_TILE_PX, _LARGEST_TILE_PX = 192, 1024  # of a file; others are put together or cut up
_GAP = 3  # ratio of two levels of a file from which on there is one in between
_MOST_LEVELS = 40
_CACHE_BYTES = 128 << 20
# Chroma at full resolution: subsampling would blur the very edges that people come to judge.
_JPEG = Codec("jpeg", 92, "444")


_TILE = Size(TILE_PX, TILE_PX)


@dataclass(frozen=True, eq=False)
class Picture:
    """A part of a slide as a pyramid of tiles.

    Attributes:
        slide: the slide.
        part: corner x, y, width and height of the part, in pixels of level 0 of the slide.
        levels: size of each level of the pyramid, the finest first; all show the same part.
        tiles: size of the tiles of each level.
        stored: the level of the slide that a level shows tile by tile; None if it is computed.
    """

    slide: Slide
    part: tuple[float, float, float, float]
    levels: tuple[Size, ...]
    tiles: tuple[Size, ...]
    stored: tuple[int | None, ...]

    @classmethod
    def whole(cls, slide: Slide, *, finest: float = 1.0) -> Picture:
        """All of a slide, in the levels of its file where these are not too far apart.

        ``finest`` is the least number of level-0 pixels per pixel of a level; finer levels are left out.
        """
        full = slide.levels[0]
        sizes = _with_smaller(list(_without_gaps(slide.levels)))
        while full.width / sizes[-1].width < finest * (1 - 1e-6) and sizes[-1].width > 1:
            sizes.append(_halved(sizes[-1]))
        kept = tuple(size for size in sizes if full.width / size.width >= finest * (1 - 1e-6)) or tuple(sizes[-1:])
        stored = tuple(slide.levels.index(size) if size in slide.levels else None for size in kept)
        tiles = tuple(_shown_tile(None if level is None else slide.tile_size(level)) for level in stored)
        return cls(slide, (0.0, 0.0, float(full.width), float(full.height)), kept, tiles, stored)

    @classmethod
    def cut(cls, slide: Slide, part: tuple[float, float, float, float], size: Size) -> Picture:
        """A part of a slide as a picture of ``size``; the part lies inside the slide."""
        levels = cls.levels_of(size)
        return cls(slide, part, levels, (_TILE,) * len(levels), (None,) * len(levels))

    @staticmethod
    def levels_of(size: Size) -> tuple[Size, ...]:
        """The levels of a picture that is cut out in this size."""
        return tuple(_with_smaller([size]))

    def grid(self, level: int) -> tuple[int, int]:
        """Number of columns and rows of tiles of a level."""
        size, tile = self.levels[level], self.tiles[level]
        return math.ceil(size.width / tile.width), math.ceil(size.height / tile.height)

    def box(self, level: int, col: int, row: int) -> Box:
        """The pixels of a level that a tile shows. Raises ``LookupError`` if there is no such tile."""
        if not 0 <= level < len(self.levels):
            raise LookupError(f"no level {level}")
        cols, rows = self.grid(level)
        if not (0 <= col < cols and 0 <= row < rows):
            raise LookupError(f"no tile {col}, {row}")
        tile = self.tiles[level]
        return Box(col * tile.width, row * tile.height, tile.width, tile.height).clipped(self.levels[level])

    def tile(self, level: int, col: int, row: int) -> Pixels:
        """Pixels (h, w, 3) of a tile; hatched where the slide is damaged. Thread-safe.

        Memory bound: 8 MiB.

        Raises:
            LookupError: there is no such tile.
        """
        box, size, full = self.box(level, col, row), self.levels[level], self.slide.levels[0]
        x, y, width, height = self.part
        left, right = (x + edge * (width / size.width) for edge in (box.x, box.right))
        top, bottom = (y + edge * (height / size.height) for edge in (box.y, box.bottom))
        part = (left / full.width, top / full.height, right / full.width, bottom / full.height)
        try:
            return averaged(self.slide, part, Size(box.width, box.height))
        except InputError:
            return _hatched(box)

    def jpeg(self, level: int, col: int, row: int) -> bytes | None:
        """A tile as a JPEG file, as it is stored; None if it is not, or damaged. Thread-safe.

        At the right and lower edge it may be larger than ``box``, with anything beyond that.
        """
        stored = self.stored[level]
        if stored is None or self.slide.tile_size(stored) != self.tiles[level]:
            return None
        try:
            return self.slide.jpeg_tile(stored, col, row)
        except InputError:
            return None

    def places(self) -> Iterator[tuple[int, int, int]]:
        """Level, column and row of every tile, the coarsest level first."""
        for level in reversed(range(len(self.levels))):
            cols, rows = self.grid(level)
            yield from ((level, col, row) for row in range(rows) for col in range(cols))

    def as_dict(self) -> dict[str, Any]:
        """What a page needs to know, see ``geometry``."""
        return self.geometry(self.levels, self.tiles)

    @staticmethod
    def geometry(levels: tuple[Size, ...], tiles: tuple[Size, ...]) -> dict[str, Any]:
        """Full size, and the sizes of the levels and of their tiles, with the coarsest level first."""
        return {
            "size": [levels[0].width, levels[0].height],
            "levels": [[size.width, size.height] for size in reversed(levels)],
            "tiles": [[size.width, size.height] for size in reversed(tiles)],
        }


def encoded(pixels: Pixels, kind: str) -> bytes:
    """A tile as ".jpg" (quality 92, chroma at full resolution) or as lossless ".png"."""
    if kind == ".jpg":
        return _JPEG.encode(pixels)
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


class TileCache:
    """Encoded tiles, the most recently used, each made once however many ask for it at the same time.

    Memory bound: 128 MiB, and the tiles that are being made, as many as there are cores.
    """

    def __init__(self, capacity_bytes: int = _CACHE_BYTES) -> None:
        self._capacity, self._held = capacity_bytes, 0
        self._tiles: OrderedDict[Hashable, Future[bytes]] = OrderedDict()
        self._lock = threading.Lock()
        self._making = threading.BoundedSemaphore(available_cores())

    def get(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        """The tile of a key, made by ``make`` if it is not there; what that raises is raised to all who wait for it."""
        with self._lock:
            future = self._tiles.get(key)
            ours = future is None
            if future is None:
                future = self._tiles[key] = Future()
            else:
                self._tiles.move_to_end(key)
        if ours:
            self._make(key, future, make)
        return future.result()

    def _make(self, key: Hashable, future: Future[bytes], make: Callable[[], bytes]) -> None:
        try:
            with self._making:
                tile = make()
        except BaseException as error:
            with self._lock:
                self._tiles.pop(key, None)
            future.set_exception(error)
            return
        future.set_result(tile)
        with self._lock:
            self._held += len(tile)
            while self._held > self._capacity and self._drop_oldest():
                pass

    def _drop_oldest(self) -> bool:
        """Drop the finished tile that was not used for longest; False if none is finished."""
        for key, future in self._tiles.items():
            if future.done() and future.exception() is None:
                self._held -= len(future.result())
                del self._tiles[key]
                return True
        return False


def _shown_tile(stored: Size | None) -> Size:
    """The tiles to show of a level that is stored in tiles of this size."""
    if stored is None or max(stored.width, stored.height) > _LARGEST_TILE_PX:
        return _TILE
    width, height = (side * math.ceil(_SMALLEST_TILE_PX / side) for side in (stored.width, stored.height))
    return Size(width, height)


def _halved(size: Size) -> Size:
    return Size(math.ceil(size.width / 2), math.ceil(size.height / 2))


def _without_gaps(levels: tuple[Size, ...]) -> Iterator[Size]:
    """The levels of a file that are smaller than those before them, with halves where they are far apart."""
    last = levels[0]
    yield last
    for size in levels[1:]:
        if size.width >= last.width or size.height > last.height:
            continue
        ratio = last.width / size.width
        for _ in range(round(math.log2(ratio)) - 1 if ratio >= _GAP else 0):
            last = _halved(last)
            yield last
        last = size
        yield last


def _with_smaller(sizes: list[Size]) -> list[Size]:
    """Levels, and halves of the last one until one fits a tile."""
    while max(sizes[-1].width, sizes[-1].height) > TILE_PX and len(sizes) < _MOST_LEVELS:
        sizes.append(_halved(sizes[-1]))
    return sizes


def _hatched(box: Box) -> Pixels:
    """A pattern that no slide has, for a tile that cannot be read."""
    x, y = np.arange(box.x, box.right), np.arange(box.y, box.bottom)[:, None]
    stripes = (x + y) // 16 % 2 == 0
    return np.where(stripes[..., None], np.uint8(255), np.array([213, 94, 0], np.uint8))
