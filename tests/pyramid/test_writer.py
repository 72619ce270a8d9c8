from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import openslide
import pytest
import pyvips
import tifffile
import tiffslide
from PIL import Image

from kin_cli.errors import OutputError, UsageError
from kin_cli.geometry import Pixels, Size
from kin_cli.pyramid import writer
from kin_cli.pyramid.check import check_file
from kin_cli.pyramid.codec import Codec
from kin_cli.pyramid.levels import PyramidLayout, build_levels
from kin_cli.pyramid.metadata import ImageInfo
from kin_cli.pyramid.writer import write_flat, write_pyramid
from kin_cli.store.blobs import BlobStore
from tests.helpers.pictures import smooth_picture
from tests.helpers.pyramids import (
    ICC,
    LOSSLESS,
    assembled,
    filled,
    info,
    layout_of,
    put_base,
    write_photo_file,
    written,
)

SIDE, OTHER_SIDE = 703, 511  # no multiple of anything


@pytest.fixture(scope="module")
def image() -> Pixels:
    return smooth_picture(SIDE, OTHER_SIDE)


def levels_of(image: Pixels, folder: Path, codec: Codec) -> list[Pixels]:
    """What every level must show: the stored tiles, put together and cropped."""
    layout = layout_of(image, 128, 256)
    with filled(folder, image, layout, codec) as store:
        pixels = [assembled(store, layout, level, codec) for level in range(len(layout.sizes))]
    return [level[: size.height, : size.width] for level, size in zip(pixels, layout.sizes, strict=True)]


def by_openslide(path: Path) -> tuple[list[Pixels], float | None]:
    with openslide.OpenSlide(path) as slide:
        reads = [slide.read_region((0, 0), level, size) for level, size in enumerate(slide.level_dimensions)]
        mpp = slide.properties.get("openslide.mpp-x")
        assert mpp == slide.properties.get("openslide.mpp-y")
    assert all(np.asarray(read)[..., 3].min() == 255 for read in reads)
    return [np.asarray(read)[..., :3] for read in reads], None if mpp is None else float(mpp)


def by_tiffslide(path: Path) -> tuple[list[Pixels], float | None]:
    with tiffslide.TiffSlide(path) as slide:
        reads = [
            np.asarray(slide.read_region((0, 0), level, size)) for level, size in enumerate(slide.level_dimensions)
        ]
        return reads, slide.properties.get("tiffslide.mpp-x")


def by_tifffile(path: Path) -> tuple[list[Pixels], float | None]:
    with tifffile.TiffFile(path) as tiff:
        (series,) = tiff.series
        assert series.kind == ("ome" if path.name.endswith(".ome.tif") else "generic")
        tags = tiff.pages[0].tags
        if "XResolution" not in tags:
            return [level.asarray() for level in series.levels], None
        assert tags["ResolutionUnit"].value == 3
        numerator, denominator = tags["XResolution"].value
        return [level.asarray() for level in series.levels], 1e4 * denominator / numerator


def by_pyvips(path: Path) -> tuple[list[Pixels], float | None]:
    first = pyvips.Image.tiffload(str(path), fail_on="error")
    pages = [pyvips.Image.tiffload(str(path), page=page, fail_on="error") for page in range(first.get("n-pages"))]
    if path.name.endswith(".ome.tif"):
        count = first.get("n-subifds") if first.get_typeof("n-subifds") else 0
        subs = [pyvips.Image.tiffload(str(path), subifd=n, fail_on="error") for n in range(count)]
        assert all(np.array_equal(page.numpy(), sub.numpy()) for page, sub in zip(pages[1:], subs, strict=True))
    # libvips says 1 pixel a mm where the file says nothing
    return [page.numpy() for page in pages], None if first.xres == 1 else 1e3 / first.xres


READERS = [by_openslide, by_tiffslide, by_tifffile, by_pyvips]
CODECS = [Codec(), Codec(subsampling="422"), Codec(subsampling="444"), LOSSLESS]


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.compression + codec.subsampling)
@pytest.mark.parametrize(("name", "mpp"), [("a.ome.tif", 0.2525), ("a.tif", 0.5), ("a.ome.tif", None), ("a.tif", None)])
def test_every_reader_sees_every_level_and_the_pixel_size(
    tmp_path: Path, image: Pixels, codec: Codec, name: str, mpp: float | None
) -> None:
    path = written(tmp_path / name, image, codec=codec, about=info(mpp, ICC))
    expected = levels_of(image, tmp_path / "expected", codec)
    for reader in READERS:
        levels, found = reader(path)
        assert [level.shape for level in levels] == [level.shape for level in expected], reader
        for level, want in zip(levels, expected, strict=True):
            # libjpeg builds differ by a grey level or two where they upsample the chroma
            assert abs(level.astype(int) - want).max() <= (0 if codec.lossless else 3), reader
        assert found == (None if mpp is None else pytest.approx(mpp, rel=1e-6)), reader
    with openslide.OpenSlide(path) as slide:
        assert slide.color_profile.tobytes() == ICC
    assert check_file(path) == []


def test_deflate_gives_back_the_very_pixels(tmp_path: Path, image: Pixels) -> None:
    assert np.array_equal(tifffile.imread(written(tmp_path / "a.ome.tif", image)), image)


def test_every_level_tells_its_own_pixel_size(tmp_path: Path, image: Pixels) -> None:
    path = written(tmp_path / "a.ome.tif", image, about=info(0.25))
    with tifffile.TiffFile(path) as tiff:
        for page in tiff.pages:
            for tag, side, full in (
                ("XResolution", page.imagewidth, SIDE),
                ("YResolution", page.imagelength, OTHER_SIDE),
            ):
                numerator, denominator = page.tags[tag].value
                assert 1e4 * denominator / numerator * side == pytest.approx(0.25 * full, rel=1e-8)


def test_directories_are_both_chained_and_subifds(tmp_path: Path, image: Pixels) -> None:
    with tifffile.TiffFile(written(tmp_path / "a.ome.tif", image)) as tiff:
        chain = [page.offset for page in tiff.pages]
        assert [page.offset for page in tiff.pages[0].pages] == chain[1:]
        assert [page.subfiletype for page in tiff.pages] == [0, 1, 1]
        assert not tiff.is_bigtiff
        assert "DateTime" not in tiff.pages[0].tags


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.compression + codec.subsampling)
def test_colour_tags(tmp_path: Path, codec: Codec) -> None:
    path = written(tmp_path / "a.ome.tif", smooth_picture(300, 200), codec=codec)
    with tifffile.TiffFile(path) as tiff:
        for page in tiff.pages:
            found = page.tags.get(530)
            if codec.lossless:
                assert (page.photometric, page.compression, page.predictor, found) == (2, 8, 2, None)
            else:
                assert (page.photometric, page.compression) == (6, 7)
                # (1, 1) must not be said: Bio-Formats then converts the colours twice
                assert (found and found.value) == {"420": (2, 2), "422": (2, 1), "444": None}[codec.subsampling]


def test_ome_xml_says_what_the_file_is(tmp_path: Path) -> None:
    about = ImageInfo(0.2525, None, "kin 9.8.7", 'süß <&> "\x01\udcff', {"kernel": "gaussian:7", "size": [1, None]})
    path = written(tmp_path / "a.ome.tif", smooth_picture(300, 200), about=about)
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_ome
        text = tiff.pages[0].tags[270].value
        assert tiff.pages[0].software == "kin 9.8.7"
    assert 'PhysicalSizeXUnit="µm"' in text  # as itself: Bio-Formats cannot read a character reference here
    name = {"o": "http://www.openmicroscopy.org/Schemas/OME/2016-06"}
    root = ElementTree.fromstring(text)
    (one,) = root.findall("o:Image", name)
    assert one.get("Name") == 'süß <&> "\ufffd\ufffd'
    pixels = one.find("o:Pixels", name)
    assert pixels is not None
    sizes = {f"Size{axis}": value for axis, value in zip("XYZCT", ("300", "200", "1", "3", "1"), strict=True)}
    assert sizes.items() <= pixels.attrib.items()
    assert pixels.get("PhysicalSizeX") == pixels.get("PhysicalSizeY") == "0.2525"
    refs = [ref.get("ID") for ref in one.findall("o:AnnotationRef", name)]
    assert refs == [note.get("ID") for note in root.findall("o:StructuredAnnotations/o:MapAnnotation", name)]
    values = {m.get("K"): m.text for m in root.iterfind(".//o:M", name)}
    assert values["kernel"] == "gaussian:7"
    assert values["size"] == "[1, null]"
    assert {"kin:crc32:0", "kin:crc32:1"} <= values.keys()


def test_plain_pyramid_tells_its_settings_in_json(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tif", smooth_picture(300, 200), about=info(settings={"kernel": "µ"}))
    with tifffile.TiffFile(path) as tiff:
        assert not tiff.is_ome
        assert '"settings": {"kernel": "\\u00b5"}' in tiff.pages[0].description


def test_bigtiff_is_forced_or_chosen_by_size(tmp_path: Path, image: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = layout_of(image, 128, 256)
    with filled(tmp_path / "store", image, layout, LOSSLESS) as store:
        options: dict[str, Any] = {"codec": LOSSLESS, "info": info(0.25, ICC)}
        write_pyramid(store, layout, destination=tmp_path / "classic.ome.tif", **options)
        write_pyramid(store, layout, destination=tmp_path / "big.ome.tif", force_bigtiff=True, **options)
        bound = writer._bytes_needed(store, layout, 10_000)
        monkeypatch.setattr(writer, "_CLASSIC_LIMIT", (tmp_path / "classic.ome.tif").stat().st_size)
        write_pyramid(store, layout, destination=tmp_path / "chosen.ome.tif", **options)
    assert (tmp_path / "chosen.ome.tif").read_bytes() == (tmp_path / "big.ome.tif").read_bytes()
    assert (tmp_path / "big.ome.tif").stat().st_size <= bound <= (tmp_path / "big.ome.tif").stat().st_size + 300_000
    assert check_file(tmp_path / "big.ome.tif") == []
    with tifffile.TiffFile(tmp_path / "big.ome.tif") as tiff:
        assert tiff.is_bigtiff
    for reader in READERS:
        classic, big = reader(tmp_path / "classic.ome.tif"), reader(tmp_path / "big.ome.tif")
        assert all(np.array_equal(*pair) for pair in zip(classic[0], big[0], strict=True))
        assert classic[1] == big[1]


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (1023, 16)])
def test_odd_shapes_open_everywhere(tmp_path: Path, size: tuple[int, int]) -> None:
    image = smooth_picture(*size)
    path = written(tmp_path / "a.ome.tif", image, tile=16, min_side=1024)
    assert check_file(path) == []
    for reader in READERS:
        assert np.array_equal(reader(path)[0][0], image)


@pytest.mark.parametrize("seed", range(3))
def test_order_interruptions_and_workers_do_not_change_the_bytes(tmp_path: Path, image: Pixels, seed: int) -> None:
    codec, layout, chance = Codec(), layout_of(image, 64, 256), random.Random(seed)
    with filled(tmp_path / "store", image, layout, codec, workers=1) as store:
        write_pyramid(store, layout, codec=codec, info=info(), destination=tmp_path / "whole.ome.tif")
    for round_ in range(5):
        with BlobStore(tmp_path, "tiles", capacity=layout.tile_count) as store:
            cells = list(layout.grid(0))
            chance.shuffle(cells)
            if round_ >= 3:
                put_base(store, image, layout, codec, cells)
                build_levels(store, layout, codec=codec, workers=4)
            else:
                put_base(store, image, layout, codec, cells[: len(cells) // 2])
        for path in tmp_path.glob("tiles-0.*"):
            os.truncate(path, chance.randrange(path.stat().st_size // 2, path.stat().st_size))
    with BlobStore(tmp_path, "tiles", capacity=layout.tile_count) as store:
        assert len(store) < layout.tile_count
        put_base(store, image, layout, codec, layout.grid(0))
        build_levels(store, layout, codec=codec, workers=1 + 3 * (seed % 2))
        write_pyramid(store, layout, codec=codec, info=info(), destination=tmp_path / "pieces.ome.tif")
    assert (tmp_path / "pieces.ome.tif").read_bytes() == (tmp_path / "whole.ome.tif").read_bytes()


KILLED = """
import os, signal, sys
from pathlib import Path
from kin_cli.pyramid.codec import Codec
from tests.helpers.pictures import smooth_picture
from tests.helpers.pyramids import *
folder, after, stage = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
image, codec = smooth_picture(703, 511), Codec()
layout = layout_of(image, 64, 256)
store = BlobStore(folder, "tiles", capacity=layout.tile_count)
done = [0]
def die(tiles=1):
    done[0] += 1
    if done[0] % 16 == 0: store.commit()
    if done[0] == after: os.kill(os.getpid(), signal.SIGKILL)
def counted(cells):
    for cell in cells:
        yield cell
        if stage == "base": die()
put_base(store, image, layout, codec, counted(layout.grid(0)))
build_levels(store, layout, codec=codec, workers=1, advance=die if stage == "levels" else None)
store.commit()
write_pyramid(store, layout, codec=codec, info=info(), destination=folder / "a.ome.tif", advance=die)
"""


def test_kill_9_at_every_stage_then_again(tmp_path: Path, image: Pixels) -> None:
    expected = written(tmp_path / "whole.ome.tif", image, tile=64, codec=Codec())
    folder = tmp_path / "killed"
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for stage, after in (("base", 40), ("levels", 9), ("write", 70), ("done", 10**9)):
        run = subprocess.run(
            [sys.executable, "-c", KILLED, str(folder), str(after), stage],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (run.returncode, run.stderr) == ((0, "") if stage == "done" else (-signal.SIGKILL, ""))
        assert (folder / "a.ome.tif").exists() == (stage == "done")
        assert (folder / "output.part").exists() == (stage == "write")
    assert (folder / "a.ome.tif").read_bytes() == expected.read_bytes()


def test_a_full_disk_leaves_no_file_and_can_be_resumed(
    tmp_path: Path, image: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, destination = layout_of(image, 128, 256), tmp_path / "a.ome.tif"
    destination.write_bytes(b"an older output")

    def full(tiles: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with filled(tmp_path / "store", image, layout, LOSSLESS) as store:
        options: dict[str, Any] = {"codec": LOSSLESS, "info": info(), "destination": destination}
        with pytest.raises(OutputError, match=r"a\.ome\.tif: no space left on the disk .*continues where it stopped"):
            write_pyramid(store, layout, advance=full, **options)
        little = type("Usage", (), {"free": 1000})
        monkeypatch.setattr(shutil, "disk_usage", lambda _: little)
        with pytest.raises(OutputError, match=r"needs [\d.]+ .iB, but only 1000 B are free"):
            write_pyramid(store, layout, **options)
        monkeypatch.undo()
        assert destination.read_bytes() == b"an older output"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ome.tif", "store"]
        write_pyramid(store, layout, **options)
    assert check_file(destination) == []


def test_a_file_that_fails_its_check_is_not_published(
    tmp_path: Path, image: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(fd: int, **options: Any) -> None:
        os.pwrite(fd, b"rot", os.fstat(fd).st_size - 5000)
        real(fd, **options)

    real = writer.relink
    monkeypatch.setattr(writer, "relink", spoil)
    with pytest.raises(OutputError, match="was written wrongly: level"):
        written(tmp_path / "a.ome.tif", image)
    assert [path.name for path in tmp_path.iterdir()] == ["a.ome.tif.store"]


def test_an_incomplete_store_is_refused(tmp_path: Path, image: Pixels) -> None:
    layout = layout_of(image, 128, 256)
    with BlobStore(tmp_path, "tiles", capacity=layout.tile_count) as store:
        put_base(store, image, layout, LOSSLESS, layout.grid(0))
        with pytest.raises(OutputError, match=r"tile \(0, 0\) \(row, col\) of level 1 is missing"):
            write_pyramid(store, layout, codec=LOSSLESS, info=info(), destination=tmp_path / "a.ome.tif")
        for name in ("a.png", "a.svs", "a"):
            with pytest.raises(UsageError):
                write_pyramid(store, layout, codec=LOSSLESS, info=info(), destination=tmp_path / name)


@pytest.mark.parametrize("mpp", [0.0, -0.25, float("inf"), float("nan")])
def test_pixel_sizes_that_make_no_sense(mpp: float) -> None:
    with pytest.raises(ValueError, match="pixel size"):
        info(mpp)


DISK_FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from kin_cli.pyramid import writer
from tests.helpers.pyramids import write_photo_file
image = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
real = writer._convert
def limited(*arguments):
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    real(*arguments)
writer._convert = limited
write_photo_file(Path(sys.argv[1]) / 'a.png', image)
"""


@pytest.mark.parametrize("mpp", [0.5, None])
def test_png_holds_the_very_pixels(tmp_path: Path, mpp: float | None) -> None:
    image = smooth_picture(333, 222)
    path = write_photo_file(tmp_path / "a [1].png", image, mpp=mpp)
    with Image.open(path) as png:
        assert np.array_equal(np.asarray(png), image)
        assert png.info["icc_profile"] == ICC
        dpi = 72 if mpp is None else 25.4e3 / mpp
        assert png.info["dpi"] == pytest.approx((dpi, dpi), rel=1e-3)
    assert check_file(path) == []


@pytest.mark.parametrize(("subsampling", "luma"), [("420", (2, 2)), ("444", (1, 1))])
def test_jpeg_has_the_quality_and_subsampling_of_the_codec(
    tmp_path: Path, subsampling: str, luma: tuple[int, int]
) -> None:
    image = smooth_picture(333, 222)
    codec = Codec("deflate", quality=93, subsampling="420" if subsampling == "420" else "444")
    path = write_photo_file(tmp_path / "a.jpg", image, codec=codec)
    with Image.open(path) as jpeg:
        assert abs(np.asarray(jpeg).astype(int) - image).mean() < 1.5
        assert jpeg.info["icc_profile"] == ICC
        assert jpeg.layer[0][1:3] == luma  # type: ignore[attr-defined]
        assert jpeg.info["dpi"] == pytest.approx((50800, 50800), rel=1e-3)
    assert check_file(path) == []


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_truncation_is_found(tmp_path: Path, name: str) -> None:
    path = write_photo_file(tmp_path / name, smooth_picture(333, 222))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 9 // 10])
    (problem,) = check_file(path)
    assert problem.startswith("does not decode: ")


def test_too_large_for_a_jpeg(tmp_path: Path) -> None:
    layout = PyramidLayout(Size(65_501, 1), 16, 1 << 20)
    with (
        BlobStore(tmp_path, "tiles", capacity=layout.tile_count) as store,
        pytest.raises(OutputError, match=r"65501×1 pixels are more than a JPEG can hold .*\.ome\.tif"),
    ):
        write_flat(store, layout, codec=LOSSLESS, info=info(), destination=tmp_path / "a.jpg")


def test_no_name_for_a_photograph(tmp_path: Path) -> None:
    layout = PyramidLayout(Size(5, 5), 16)
    with BlobStore(tmp_path, "tiles", capacity=1) as store, pytest.raises(UsageError, match="PNG or JPEG"):
        write_flat(store, layout, codec=LOSSLESS, info=info(), destination=tmp_path / "a.tif")


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "check_flat", lambda *_: ["rotten"])
    with pytest.raises(OutputError, match="was written wrongly: rotten"):
        write_photo_file(tmp_path / "a.png", smooth_picture(50, 40))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["store", "tiles-0.dat", "tiles-0.journal"]


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", DISK_FULL, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "OutputError" in run.stderr.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]
