"""Write a procedural sample slide, with the same stores and writers as a translation."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from kin_cli import __version__
from kin_cli.concurrency import available_cores, prefetch
from kin_cli.errors import OutputError
from kin_cli.geometry import Box, Cell, Pixels, Size
from kin_cli.progress import Progress
from kin_cli.pyramid.codec import Codec
from kin_cli.pyramid.levels import PyramidLayout, build_levels, fit_blocks, pad_tile
from kin_cli.pyramid.metadata import ImageInfo
from kin_cli.pyramid.writer import write_flat, write_pyramid
from kin_cli.settings import OutputSettings
from kin_cli.slide.synthetic import SampleSlide
from kin_cli.store.blobs import BlobStore
from kin_cli.store.files import work_folder
from kin_cli.store.work import about_to_name, made_by, open_work

_TILE_PX = 512


def write_sample(output: OutputSettings, size: Size, *, seed: int, workers: int | None, progress: Progress) -> None:
    """Write a procedural H&E-like slide; equal sizes and seeds give equal files.

    Memory bound: 2 · workers tiles.
    """
    slide = SampleSlide(size, seed=seed)
    fingerprint = {"sample": seed, "width": size.width, "height": size.height, "kin": __version__}
    read = partial(slide.read, 0)
    write_picture(output, size, read, mpp=slide.mpp, made="sample", by=fingerprint, workers=workers, progress=progress)


def write_picture(
    output: OutputSettings,
    size: Size,
    read: Callable[[Box], Pixels],
    *,
    mpp: float | None,
    made: str,
    by: dict[str, Any],
    workers: int | None,
    progress: Progress,
) -> None:
    """Write pixels that ``read`` gives for any box inside ``size``, as a pyramid, resuming work that was interrupted.

    ``made`` names the stage; ``by`` says what the pixels depend on, and is kept in the file.

    Memory bound: 2 · workers tiles.

    Raises:
        OutputError: the output exists, or cannot be written.
    """
    _check(output)
    workers = workers or min(8, available_cores())
    tile = fit_blocks(_TILE_PX, size).tile
    codec = Codec("deflate" if output.flat else output.compression, output.quality, output.subsampling)
    layout = PyramidLayout(size, tile, min_side=max(size.width, size.height) + 1 if output.flat else 1024)
    grid = layout.grid(0)
    with open_work(output.path, by, overwrite=output.overwrite) as work:
        if made_by(work, output.path):  # a run was killed between naming the output and removing its work
            work.remove()
            return

        def before_naming(finished: Path) -> bool:
            _refuse_existing(output)
            about_to_name(work, finished, output.path)
            return output.overwrite

        _refuse_existing(output)
        with BlobStore(work.folder, "tiles", capacity=layout.tile_count) as tiles:

            def make(cell: Cell) -> None:
                pixels = pad_tile(read(grid.clipped(cell)), tile)
                tiles.put(layout.key(0, cell), codec.encode(pixels))

            _fill(tiles, layout, make, progress, (made, workers))
            with progress.stage("pyramid", layout.reduced_count, "tiles") as advance:
                build_levels(tiles, layout, codec=codec, workers=workers, advance=advance)
            info = ImageInfo(mpp=mpp, icc=None, software=f"kin {__version__}", name=output.path.name, settings=by)
            how: dict[str, Any] = {
                "codec": codec,
                "info": info,
                "destination": output.path,
                "before_naming": before_naming,
            }
            if output.flat:
                write_flat(tiles, layout, **how)
            else:
                with progress.stage("write", layout.tile_count, "tiles") as advance:
                    write_pyramid(tiles, layout, advance=advance, **how)
        work.remove()


def _fill(
    tiles: BlobStore,
    layout: PyramidLayout,
    make: Callable[[Cell], None],
    progress: Progress,
    how: tuple[str, int],
) -> None:
    """Make the tiles of level 0 that are missing; ``how``: name of the stage and number of threads."""
    made, workers = how
    todo = [cell for cell in layout.grid(0) if layout.key(0, cell) not in tiles]
    with progress.stage(made, len(todo), "tiles") as advance:
        for _ in prefetch(make, todo, workers=workers, ahead=2 * workers):
            advance(1)


def _check(output: OutputSettings) -> None:
    """Raise ``OutputError`` unless the output can be written; it may exist if work on it was interrupted."""
    path = output.path
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: is not a file, so it is not replaced", "give the output another name")
    if not os.path.lexists(work_folder(path)):
        _refuse_existing(output)


def _refuse_existing(output: OutputSettings) -> None:
    if os.path.lexists(output.path) and not output.overwrite:
        raise OutputError(f"{output.path}: exists already", "--overwrite replaces it")
