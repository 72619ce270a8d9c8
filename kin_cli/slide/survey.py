"""Reading a slide from its first to its last pixel, to see whether all of it can be read."""

from __future__ import annotations

from pathlib import Path

from kin_cli.concurrency import available_cores, prefetch
from kin_cli.errors import InputError
from kin_cli.geometry import Box, Grid
from kin_cli.slide.open import open_slide

_BLOCK_PX = 1024
_LISTED = 10


def unreadable_parts(path: Path) -> list[str]:
    """Read every block of every level of a slide; return a line for each that cannot be read, at most eleven.

    A slide that cannot be opened gives the one line that says why. Memory bound: a few blocks of 1024 × 1024 px.
    """
    try:
        slide = open_slide(path)
    except InputError as error:
        return [str(error).removeprefix(f"{path}: ")]
    found: list[str] = []
    with slide:
        for level, size in enumerate(slide.levels):
            grid = Grid(size, _BLOCK_PX)

            def failure(box: Box, level: int = level) -> str | None:
                try:
                    slide.read(level, box)
                except InputError as error:
                    return f"level {level}, {box.width}×{box.height} px at x {box.x}, y {box.y}: {error.message}"
                return None

            boxes = (grid.clipped(cell) for cell in grid)
            workers = available_cores()
            found += [line for line in prefetch(failure, boxes, workers=workers, ahead=2 * workers) if line is not None]
    if len(found) > _LISTED:
        found[_LISTED:] = [f"{len(found) - _LISTED} more parts cannot be read"]
    return found
