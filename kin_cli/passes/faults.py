"""What of a slide could not be read, kept with the unfinished work so that no interruption forgets it."""

from __future__ import annotations

import threading

from kin_cli.geometry import Box, Cell, Grid
from kin_cli.slide.faults import FillingSlide, filled_box
from kin_cli.slide.view import SlideView
from kin_cli.store.blobs import BlobStore

_LISTED = 100


class Faults:
    """The tiles that show filled pixels, and the patches that were not measured because they could not be read.

    Each is durable before the pixels that it warns of can be. ``store`` has room for ``capacity_for`` keys.
    """

    def __init__(self, store: BlobStore, view: SlideView, *, tiles: Grid, patches: Grid) -> None:
        self._store, self._view, self._tiles, self._patches = store, view, tiles, patches
        self._lock = threading.Lock()
        if isinstance(view.slide, FillingSlide):
            view.slide.listen(self.add_block)

    @staticmethod
    def capacity_for(*, tiles: Grid, patches: Grid) -> int:
        """Keys that the store needs: one for every tile and every patch."""
        return len(tiles) + len(patches)

    def add_block(self, level: int, block: Box) -> None:
        """A block of a level of the slide is filled."""
        self._add([self._tiles.index(tile) for tile in self._tiles.cells_in(filled_box(self._view, level, block))])

    def add_patch(self, patch: Cell) -> None:
        """A patch has no statistics."""
        self._add([len(self._tiles) + self._patches.index(patch)])

    def _add(self, keys: list[int]) -> None:
        with self._lock:
            for key in keys:
                self._store.put(key, b"")
            self._store.commit()

    def summary(self) -> dict[str, object]:
        """Numbers of filled tiles and of unmeasured patches, and (row, col) of up to 100 of the tiles."""
        count = len(self._tiles)
        found = [key for key in range(count) if key in self._store]
        patches = sum(key in self._store for key in range(count, self._store.capacity))
        where = [list(self._tiles.cell(key)) for key in found[:_LISTED]]
        return {"tiles": len(found), "patches": patches, "where": where}
