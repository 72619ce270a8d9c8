"""Directories of TIFF files against tifffile, in both byte orders and sizes; damage; links to SubIFDs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tifffile

from kin_cli.pyramid.ifd import MalformedTiffError, Tag, TiffDirectories, relink
from tests.helpers.pictures import random_pixels

KINDS = [{"byteorder": order, "bigtiff": big} for order in "<>" for big in (False, True)]


def write(path: Path, *, pages: int = 2, subifds: int = 0, byteorder: str = "<", bigtiff: bool = False) -> Path:
    """Pages of a tiled picture with resolutions, texts and SubIFDs."""
    options = {"photometric": "rgb", "tile": (64, 64), "resolution": (20000, 10000), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path, byteorder=byteorder, bigtiff=bigtiff) as writer:
        for page in range(pages):
            pixels = random_pixels(150 + page, 200)
            levels = subifds if page == 0 else 0
            writer.write(pixels, subifds=levels, software="kin 1", description="what it is", metadata=None, **options)
            for level in range(levels):
                writer.write(np.ascontiguousarray(pixels[:: 2 << level, :: 2 << level]), subfiletype=1, **options)
    return path


@contextmanager
def opened(path: Path, mode: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, mode)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_fields_are_those_of_tifffile(tmp_path: Path, kind: dict[str, object]) -> None:
    path = write(tmp_path / "a.tif", subifds=2, **kind)  # type: ignore[arg-type]
    with opened(path) as fd, tifffile.TiffFile(path) as reference:
        tiff = TiffDirectories(fd)
        assert (tiff.order, tiff.big) == (reference.byteorder, reference.is_bigtiff)
        chain = tiff.chain()
        assert [directory.offset for directory in chain] == [page.offset for page in reference.pages]
        for directory, page in zip(chain, reference.pages, strict=True):
            assert set(directory.entries) == {tag.code for tag in page.tags}
            assert tiff.number(directory, Tag.WIDTH) == page.imagewidth
            assert tiff.text(directory, Tag.SOFTWARE) == b"kin 1"
            assert tuple(tiff.values(directory, Tag.TILE_OFFSETS)) == page.dataoffsets
            assert tuple(tiff.values(directory, Tag.TILE_BYTES)) == page.databytecounts
            for tag in (Tag.X_RESOLUTION, Tag.Y_RESOLUTION):
                assert tuple(tiff.values(directory, tag)[0]) == page.tags[tag.value].value
            assert tiff.values(directory, Tag.CHROMA_SUBSAMPLING).size == 0
            assert tiff.number(directory, Tag.CHROMA_SUBSAMPLING, 17) == 17
        assert tuple(tiff.values(chain[0], Tag.SUB_IFDS)) == reference.pages[0].tags["SubIFDs"].value


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_relinked_levels_are_pages_too_and_dropped_fields_are_gone(tmp_path: Path, kind: dict[str, object]) -> None:
    path = write(tmp_path / "a.tif", pages=1, subifds=2, **kind)  # type: ignore[arg-type]
    with tifffile.TiffFile(path) as before:
        levels = [before.pages[0].asarray(), *(page.asarray() for page in before.pages[0].pages)]
    with opened(path, os.O_RDWR) as fd:
        relink(fd, dropped={Tag.SOFTWARE})
    with tifffile.TiffFile(path) as after:
        assert len(after.pages) == 3
        for page, pixels in zip(after.pages, levels, strict=True):
            np.testing.assert_array_equal(page.asarray(), pixels)
            assert Tag.SOFTWARE not in {tag.code for tag in page.tags}
        assert [page.offset for page in after.pages[0].pages] == [page.offset for page in list(after.pages)[1:]]


@pytest.mark.parametrize(
    "content", [b"", b"II", b"II*", b"MM\0\x2a", b"\x89PNG\r\n\x1a\n" + bytes(99), b"IM*\0" + bytes(99)]
)
def test_what_is_no_tiff(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tif").write_bytes(content)
    with opened(tmp_path / "a.tif") as fd, pytest.raises(MalformedTiffError):
        TiffDirectories(fd).chain()


def test_every_truncation_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif")
    content, cut = path.read_bytes(), tmp_path / "cut.tif"
    with opened(path) as fd:
        last = TiffDirectories(fd).chain()[-1]
    for end in range(4, last.offset + 2 + 12 * len(last.entries), 211):
        cut.write_bytes(content[:end])
        with opened(cut) as fd, pytest.raises(MalformedTiffError):
            TiffDirectories(fd).chain()


def test_a_chain_that_bites_its_tail_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif")
    with opened(path, os.O_RDWR) as fd:
        tiff = TiffDirectories(fd)
        first, second = tiff.chain()
        raw = list(tiff.raw_entries(second).values())
        os.lseek(fd, second.offset, os.SEEK_SET)
        os.write(fd, tiff.packed(raw, first.offset))
        with pytest.raises(MalformedTiffError, match="does not end"):
            tiff.chain()


def test_fields_that_lie_outside_the_file_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", pages=1)
    with tifffile.TiffFile(path, mode="r+b") as file:
        at = file.pages[0].tags["TileOffsets"].offset
    with opened(path, os.O_RDWR) as fd:
        os.pwrite(fd, (1 << 30).to_bytes(4, "little"), at + 8)
        tiff = TiffDirectories(fd)
        with pytest.raises(MalformedTiffError, match="cut short"):
            tiff.values(tiff.chain()[0], Tag.TILE_OFFSETS)
