from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from kin_cli.pyramid.check import check_file
from kin_cli.pyramid.codec import Codec
from tests.helpers.pictures import smooth_picture
from tests.helpers.pyramids import ICC, LOSSLESS, info, written


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    return written(folder / "a.ome.tif", smooth_picture(600, 500), codec=Codec(), about=info(0.25, ICC))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("plain") / "a.tif", smooth_picture(600, 500), codec=LOSSLESS)


def tile_bytes(path: Path, level: int, row: int, col: int) -> tuple[int, int]:
    """Offset and size of a tile, as tifffile reads them."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[level]
        index = row * -(-page.imagewidth // page.tilewidth) + col
        return page.dataoffsets[index], page.databytecounts[index]


def patched(path: Path, folder: Path, changes: dict[int, bytes]) -> Path:
    content = bytearray(path.read_bytes())
    for at, new in changes.items():
        content[at : at + len(new)] = new
    copy = folder / path.name
    copy.write_bytes(content)
    return copy


def flipped(path: Path, folder: Path, *positions: int) -> Path:
    content = path.read_bytes()
    return patched(path, folder, {at: bytes([content[at] ^ 16]) for at in positions})


def test_sound_files_have_no_problems(sound: Path, plain: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert check_file(sound, workers=3, advance=lambda *numbers: seen.append(numbers)) == []
    # 600×500, 300×250 and 150×125 pixels in tiles of 128
    assert seen == [(done, 28) for done in (5, 10, 15, 20, 23, 26, 28)]
    assert check_file(plain) == []
    assert check_file(plain, decode=False) == []


@pytest.mark.parametrize(("level", "row", "col"), [(0, 0, 0), (0, 3, 4), (0, 2, 1), (1, 1, 2), (2, 0, 0)])
@pytest.mark.parametrize("decode", [True, False])
def test_one_flipped_bit_names_the_tile(
    sound: Path, plain: Path, tmp_path: Path, level: int, row: int, col: int, decode: bool
) -> None:
    for path in (sound, plain):
        offset, size = tile_bytes(path, level, row, col)
        problems = check_file(flipped(path, tmp_path, offset + size * 2 // 3), decode=decode)
        assert len(problems) == 1
        assert problems[0].startswith(f"level {level}, tile (row {row}, col {col}): ")


def test_several_damaged_tiles(sound: Path, tmp_path: Path) -> None:
    spots = [sum(tile_bytes(sound, 0, *cell)) - 40 for cell in ((1, 2), (1, 4))]
    assert check_file(flipped(sound, tmp_path, *spots), decode=False) == [
        f"level 0, tile (row 1, col {col}): its bytes are damaged (checksum)" for col in (2, 4)
    ]
    spots = [sum(tile_bytes(sound, 0, *cell)) - 40 for cell in ((1, 2), (3, 4))]
    assert check_file(flipped(sound, tmp_path, *spots), decode=False) == [
        "level 0: tiles are damaged (checksum) where rows 1, 3 meet columns 2, 4"
    ]


@pytest.mark.parametrize("fraction", [0.0, 0.0005, 0.5, 0.99, 1.0])
def test_truncation_is_found(sound: Path, plain: Path, tmp_path: Path, fraction: float) -> None:
    for path in (sound, plain):
        content = path.read_bytes()
        copy = tmp_path / path.name
        copy.write_bytes(content[: min(int(len(content) * fraction), len(content) - 1)])
        problems = check_file(copy)
        assert problems
        assert any("end" in problem or "start like a TIFF" in problem for problem in problems)


def test_a_tile_that_decodes_to_another_size(plain: Path, tmp_path: Path) -> None:
    offset, size = tile_bytes(plain, 0, 1, 1)
    small = LOSSLESS.encode(np.zeros((16, 16, 3), np.uint8))
    problems = check_file(patched(plain, tmp_path, {offset: small.ljust(size, b"\0")}))
    assert len(problems) == 1
    assert problems[0].startswith("level 0, tile (row 1, col 1): does not decode")


def entry(path: Path, level: int, tag: int) -> Any:
    with tifffile.TiffFile(path) as tiff:
        return tiff.pages[level].tags[tag]


@pytest.mark.parametrize(
    ("level", "tag", "value", "problem"),
    [
        (1, 254, (0).to_bytes(4, "little"), "level 1: is marked wrongly as the full image"),
        (1, 282, (1).to_bytes(4, "little"), "level 1: has 1/"),
        (2, 296, (2).to_bytes(2, "little"), "level 2: its resolution is not in centimetres"),
        (1, 256, (299).to_bytes(2, "little"), "level 1: is 299×250 pixels, not half of 600×500"),
        (0, 324, bytes(4), "level 0, tile (row 0, col 0): has no bytes"),
        (0, 325, (99).to_bytes(4, "little"), "level 0, tile (row 0, col 0): "),
        (2, 324, (10**9).to_bytes(4, "little"), "beyond the end of the file"),
        (0, 259, (50000).to_bytes(2, "little"), "level 0 has compression 50000, which kin does not write"),
        (0, 257, (5000).to_bytes(2, "little"), "not a sound TIFF: level 0 has 20 offsets"),
    ],
)
def test_wrong_fields(sound: Path, tmp_path: Path, level: int, tag: int, value: bytes, problem: str) -> None:
    field = entry(sound, level, tag)
    problems = check_file(patched(sound, tmp_path, {field.valueoffset: value}))
    assert any(problem in line for line in problems), problems


def test_subifds_must_be_the_chain(sound: Path, tmp_path: Path) -> None:
    field = entry(sound, 0, 330)
    swapped = b"".join(offset.to_bytes(4, "little") for offset in reversed(field.value))
    assert check_file(patched(sound, tmp_path, {field.valueoffset: swapped})) == [
        "its SubIFDs are not the directories chained behind the first"
    ]


def test_pixel_sizes_must_agree_with_the_description(sound: Path, tmp_path: Path) -> None:
    at = sound.read_bytes().index(b'PhysicalSizeX="0.25"')
    problems = check_file(patched(sound, tmp_path, {at: b'PhysicalSizeX="0.52"'}))
    assert len(problems) == 6
    assert problems[0] == "level 0: has 40000/1 pixels a cm, not 19230.8"


def test_a_damaged_description_is_told(sound: Path, tmp_path: Path) -> None:
    content = sound.read_bytes()
    problems = check_file(patched(sound, tmp_path, {content.index(b"<Pixels"): b"<<<"}))
    assert problems == ["its description is damaged: the checksums of the tiles cannot be read"]
    at = content.index(b"kin:crc32:1") + 13
    assert check_file(flipped(sound, tmp_path, at + 1)) != []


def test_a_chain_without_end(sound: Path, tmp_path: Path) -> None:
    with tifffile.TiffFile(sound) as tiff:
        first, last = tiff.pages[0].offset, tiff.pages[2]
        pointer = last.offset + 2 + 12 * len(last.tags)
    problems = check_file(patched(sound, tmp_path, {pointer: first.to_bytes(4, "little")}))
    assert problems == ["not a sound TIFF: the chain of its directories does not end"]


def test_no_damage_raises_and_damaged_tiles_are_always_found(sound: Path, tmp_path: Path) -> None:
    chance, content = random.Random(0), sound.read_bytes()
    with tifffile.TiffFile(sound) as tiff:
        tiles = [
            range(o, o + n) for page in tiff.pages for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)
        ]
        heads = [page.offset for page in tiff.pages]
    for number in range(150):
        at = chance.choice(heads) + chance.randrange(300) if number % 3 else chance.randrange(len(content))
        problems = check_file(flipped(sound, tmp_path, at))
        if any(at in tile for tile in tiles):
            assert problems, at


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"I",
        b"II*\0",
        b"plain text in a file",
        b"II*\0\0\0\0\0",
        b"II*\0\x08\0\0\0\xff\xff",
        b"II+\0" + b"\xff" * 40,
    ],
)
def test_what_is_no_tiff(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    (problem,) = check_file(path)
    assert problem.startswith("not a sound TIFF: it ")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert check_file(tmp_path / "a.tif") == ["cannot be read: No such file or directory"]
    assert check_file(tmp_path) == ["cannot be read: Is a directory"]


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("options", [{"tile": (32, 32)}, {"rowsperstrip": 7}, {"planarconfig": "separate"}])
def test_foreign_tiffs(tmp_path: Path, bigtiff: bool, byteorder: Any, options: dict[str, Any]) -> None:
    path = tmp_path / "a.tif"
    image = smooth_picture(100, 70)
    if "planarconfig" in options:
        image = np.moveaxis(image, -1, 0)
    tifffile.imwrite(path, image, bigtiff=bigtiff, byteorder=byteorder, photometric="rgb", compression="lzw", **options)
    assert check_file(path) == []
    offset = tifffile.TiffFile(path).pages[0].dataoffsets[-1]
    path.write_bytes(path.read_bytes()[: offset + 4])
    assert any("beyond the end of the file" in problem for problem in check_file(path))


def test_real_slides_are_sound(shared_data: Path) -> None:
    for name in ("CMU-1-Small-Region.svs", "CMU-1-Small-Region.pyramid.tif", "os_crops/OS-2-vsi.ome.tif"):
        assert check_file(shared_data / name) == []


def test_half_a_real_slide_is_not(shared_data: Path, tmp_path: Path) -> None:
    content = (shared_data / "CMU-1-Small-Region.svs").read_bytes()
    (tmp_path / "half.svs").write_bytes(content[: len(content) // 2])
    assert check_file(tmp_path / "half.svs") != []
