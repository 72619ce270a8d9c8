"""PNG and JPEG: the pixels that Pillow stored against those that are read."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import pyvips
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from kin_cli.errors import InputError
from kin_cli.geometry import Box
from kin_cli.slide import photo
from kin_cli.slide.open import open_slide
from tests.helpers.cases_slides import write_density_0
from tests.helpers.pictures import over_white
from tests.helpers.slides import assert_opens_as, read_all


def test_alpha_of_png_is_composited_on_white(tmp_path: Path, rgb: NDArray[np.uint8]) -> None:
    alpha = np.random.default_rng(5).integers(0, 256, rgb.shape[:2], dtype=np.uint8)
    Image.fromarray(np.dstack([rgb, alpha])).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png") as slide:
        np.testing.assert_allclose(read_all(slide), over_white(rgb, alpha), atol=0.51)


def test_png_and_jpeg(tmp_path: Path, rgb: NDArray[np.uint8]) -> None:
    Image.fromarray(rgb).save(tmp_path / "a.png")
    assert_opens_as(tmp_path / "a.png", rgb)
    Image.fromarray(rgb).save(tmp_path / "misnamed.tif", "jpeg", quality=90)
    with Image.open(tmp_path / "misnamed.tif") as image, open_slide(tmp_path / "misnamed.tif") as slide:
        assert (slide.format, slide.mpp, slide.expects_background) == ("jpeg", None, False)
        # another JPEG decoder, one that smooths colours differently
        np.testing.assert_allclose(read_all(slide).astype(int), np.asarray(image), atol=3)


def test_grey_deep_and_palette_png(tmp_path: Path, rgb: NDArray[np.uint8]) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(rgb[..., 1]).save(path)
    assert_opens_as(path, np.repeat(rgb[..., 1:2], 3, axis=-1))
    deep = np.random.default_rng(0).integers(0, 65536, rgb.shape[:2], dtype=np.uint16)
    Image.fromarray(deep).save(path)
    assert_opens_as(path, np.repeat(np.rint(deep / 257).astype(np.uint8)[..., None], 3, axis=-1))
    indexed = Image.fromarray(rgb).quantize(16)
    indexed.save(path)
    assert_opens_as(path, np.asarray(indexed.convert("RGB")))


def test_exif_orientation_is_applied(tmp_path: Path, rgb: NDArray[np.uint8]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(rgb).save(tmp_path / "turned.png", exif=exif)
    assert_opens_as(tmp_path / "turned.png", np.rot90(rgb, -1))


def test_cmyk_jpeg(tmp_path: Path) -> None:
    colours = np.zeros((64, 64, 3), np.uint8)
    colours[:, :32], colours[:, 32:] = (240, 240, 240), (30, 30, 30)
    Image.fromarray(colours).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    with open_slide(tmp_path / "cmyk.jpg") as slide:
        pixels = read_all(slide)
        assert slide.icc is None
    assert pixels[:, :24].min() > 200
    assert pixels[:, 40:].max() < 90


def test_a_density_of_0_and_a_single_pixel(tmp_path: Path) -> None:
    with open_slide(write_density_0(tmp_path / "jfif_density_0.jpg")) as slide:
        assert slide.mpp is None
        expected = np.asarray(Image.open(slide.path)).astype(int)
        np.testing.assert_allclose(read_all(slide), expected, atol=2)
    Image.fromarray(np.array([[77]], np.uint8)).save(tmp_path / "grey_1x1.png")
    with open_slide(tmp_path / "grey_1x1.png") as slide:
        assert slide.mpp is None
        assert read_all(slide).tolist() == [[[77, 77, 77]]]


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("large", [False, True])
def test_all_orientations_in_memory_and_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, orientation: int, large: bool
) -> None:
    if large:
        monkeypatch.setattr(photo, "_IN_MEMORY_PX", 0)
        monkeypatch.setattr(photo, "_BAND_PX", 700)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = np.random.default_rng(0).integers(0, 255, (40, 64, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / name, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / name))).astype(int)
    with open_slide(tmp_path / name) as slide:
        assert slide.temporary_bytes == (3 * 64 * 40 if large else 0)
        pixels = read_all(slide)
        np.testing.assert_allclose(pixels, expected, atol=1 if name.endswith("jpg") else 0)
        box = Box(3, 5, 20, 11)
        np.testing.assert_array_equal(slide.read(0, box), pixels[box.slices()])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "I;16", "P"])
def test_large_pictures_of_all_kinds_are_the_same_from_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rgb: NDArray[np.uint8], mode: str
) -> None:
    path = tmp_path / "a.png"
    if mode == "I;16":
        Image.fromarray(np.random.default_rng(0).integers(0, 65536, (90, 70), dtype=np.uint16)).save(path)
    else:
        picture = Image.fromarray(rgb).convert("RGBA")
        picture.putalpha(Image.fromarray(rgb[..., 0]))
        picture.convert(mode).save(path)
    with open_slide(path) as slide:
        expected = read_all(slide)
    monkeypatch.setattr(photo, "_IN_MEMORY_PX", 0)
    monkeypatch.setattr(photo, "_BAND_PX", 5000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with open_slide(path) as slide:
        assert slide.memory_bytes == 0
        assert list(tmp_path.iterdir()) == [path]  # the temporary file has no name
        np.testing.assert_array_equal(read_all(slide), expected)


def test_no_room_for_the_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    monkeypatch.setattr(photo, "_IN_MEMORY_PX", 0)
    monkeypatch.setattr(photo, "_FREE_BYTES", 1 << 60)
    with pytest.raises(InputError, match="no room for a temporary file") as caught:
        open_slide(tmp_path / "a.png")
    assert "TMPDIR" in (caught.value.hint or "")


def test_pictures_that_decoders_hold_whole_state_it(tmp_path: Path) -> None:
    picture = Image.new("RGB", (64, 48), (9, 8, 7))
    picture.save(tmp_path / "a.jpg", progressive=True)
    picture.save(tmp_path / "b.jpg")
    with open_slide(tmp_path / "a.jpg") as progressive, open_slide(tmp_path / "b.jpg") as baseline:
        assert progressive.memory_bytes - baseline.memory_bytes == 2 * 3 * 64 * 48


def test_a_large_picture_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    pyvips.Image.black(12_000, 12_000, bands=3).pngsave(str(path), compression=1)
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from kin_cli.geometry import Box; from kin_cli.slide.open import open_slide\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "with open_slide(Path(sys.argv[1])) as slide: slide.read(0, Box(11000, 11000, 64, 64))\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 250  # MiB, where the decoded picture takes 412


@pytest.mark.parametrize("how", ["cut", "zeros"])
@pytest.mark.parametrize("progressive", [False, True])
def test_damaged_jpeg_is_refused(tmp_path: Path, rgb: NDArray[np.uint8], how: str, progressive: bool) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(rgb).save(path, quality=90, progressive=progressive)
    data = path.read_bytes()
    half = len(data) // 2
    path.write_bytes(data[:half] if how == "cut" else data[:half] + bytes(len(data) - half))
    with pytest.raises(InputError, match="damaged"):
        open_slide(path)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_fewer_bits_in_a_16_bit_png(tmp_path: Path, rgb: NDArray[np.uint8], bits: int) -> None:
    path = tmp_path / "deep.png"
    deep = (rgb.astype(np.uint32) * (2**bits - 1) // 255).astype(np.uint16)
    path.write_bytes(imagecodecs.png_encode(deep))
    with open_slide(path) as slide:
        assert np.abs(read_all(slide).astype(int) - rgb).max() <= 1
        assert any(f"{bits} bits" in note for note in slide.notes) == (bits < 16)


def test_a_picture_that_takes_more_memory_than_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((200, 300, 3), np.uint8)).save(tmp_path / "a.jpg", progressive=True)
    monkeypatch.setattr(photo, "free_memory", lambda: 9 * 200 * 300 - 1)  # coefficients of 16 bits and pixels
    with pytest.raises(InputError, match="GB of memory") as caught:
        open_slide(tmp_path / "a.jpg")
    assert "damaged" not in str(caught.value)
    monkeypatch.setattr(photo, "free_memory", lambda: 9 * 200 * 300)
    open_slide(tmp_path / "a.jpg").close()


def test_profiles_of_other_colours_are_dropped(tmp_path: Path) -> None:
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[16:20] = b"GRAY"
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "a.png", icc_profile=bytes(profile))
    with open_slide(tmp_path / "a.png") as slide:
        assert slide.icc is None


def test_a_png_of_impossible_size_is_not_called_damaged(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[16:20] = (2**31 - 1).to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(InputError, match="2147483647×20 pixels") as caught:
        open_slide(tmp_path / "a.png")
    assert "damaged" not in str(caught.value)
