"""The pictures of a study as tiles that give nothing away: names are hidden, and all tiles at a place are as long."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kin_cli.geometry import Size
from kin_cli.slide.base import Slide
from kin_cli.slide.open import open_slide
from kin_cli.study.make import check_unchanged
from kin_cli.study.plan import Image, Item, Study
from kin_cli.view.pictures import TILE_PX, Picture, TileCache, encoded

KIND = ".jpg"
_OPEN_SLIDES = 16


class StudyPictures:
    """Tiles of the images of a study; thread-safe.

    Memory bound: 16 open slides, and that of ``TileCache``.
    """

    def __init__(self, study: Study) -> None:
        self._study, self._tiles = study, TileCache()
        self._slides: OrderedDict[Path, list[Any]] = OrderedDict()  # a slide and how many threads read it
        self._lock = threading.Lock()

    def check(self) -> None:
        """Raise ``InputError`` if a slide is missing or was changed since the study was made."""
        for image in {image.path: image for item in self._study.items for image in images_of(item).values()}.values():
            check_unchanged(image)

    def tile(self, item: int, name: str, beside: Sequence[str], place: tuple[int, int, int]) -> bytes:
        """The tile (level from the coarsest, column, row) of an image, as long as those of the images ``beside``.

        Raises:
            LookupError: there is no such tile.
        """
        tile = self._tile(item, name, place)
        longest = len(tile)
        for other in beside:
            try:
                longest = max(longest, len(self._tile(item, other, place)))
            except LookupError:  # a whole slide of another shape
                continue
        return tile.ljust(longest, b"\0")  # readers of JPEG ignore what follows its end

    def close(self) -> None:
        """Close all slides; no tile may be asked for any more."""
        for slide, _ in self._slides.values():
            slide.close()

    def _tile(self, item: int, name: str, place: tuple[int, int, int]) -> bytes:
        level, col, row = place
        image = self._study.items[item].image(name)
        levels = picture_levels(image)
        finer = len(levels) - 1 - level

        def make() -> bytes:
            with self._opened(image) as slide:
                return encoded(Picture.cut(slide, image.part, Size(*image.size)).tile(finer, col, row), KIND)

        return self._tiles.get((item, name, place), make)

    @contextmanager
    def _opened(self, image: Image) -> Iterator[Slide]:
        path = Path(image.path)
        with self._lock:
            entry = self._slides.get(path)
            if entry is None:
                self._make_room()
                entry = self._slides[path] = [open_slide(path, mpp=image.mpp), 0]
            self._slides.move_to_end(path)
            entry[1] += 1
        try:
            yield entry[0]
        finally:
            with self._lock:
                entry[1] -= 1

    def _make_room(self) -> None:
        for path, (slide, users) in list(self._slides.items()):
            if len(self._slides) < _OPEN_SLIDES:
                return
            if users == 0:
                del self._slides[path]
                slide.close()


def images_of(item: Item) -> dict[str, Image]:
    """All images of an item by their names."""
    return {"source": item.source, "reference": item.reference, **item.methods}


def picture_levels(image: Image) -> tuple[Size, ...]:
    """The levels of an image's picture, the finest first."""
    return Picture.levels_of(Size(*image.size))


def picture_as_dict(image: Image) -> dict[str, Any]:
    """What a page needs to know of an image: nothing but its size and tiles."""
    levels = picture_levels(image)
    return Picture.geometry(levels, (Size(TILE_PX, TILE_PX),) * len(levels))
