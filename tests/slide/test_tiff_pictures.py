"""Which picture of a TIFF file is the slide, and which files hold none: the same in tiles and in strips."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from kin_cli.errors import InputError, UsageError
from kin_cli.geometry import Size
from kin_cli.slide.open import open_slide
from kin_cli.slide.tiff_pictures import Channel, colour_order
from tests.helpers.cases_slides import (
    CHANNELS,
    PICTURE,
    STORED,
    write_label_first,
    write_masked_pyramid,
    write_ome_planes,
    write_pages,
    write_qptiff,
)
from tests.helpers.slides import read_all

BOTH = pytest.mark.parametrize("stored", STORED)


def refused(path: Path) -> str:
    with pytest.raises(InputError, match=path.name) as caught:
        open_slide(path)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert "damaged" not in str(caught.value)
    return caught.value.message


def shown(path: Path, **options: Any) -> tuple[Any, tuple[str, ...]]:
    with open_slide(path, **options) as slide:
        return read_all(slide), slide.notes


@BOTH
def test_channels_in_pages_are_refused(tmp_path: Path, stored: str) -> None:
    assert "5 planes of uint8" in refused(write_pages(tmp_path / "pages.tif", list(CHANNELS), stored=stored))
    three = write_pages(tmp_path / "three.tif", list(CHANNELS[:3]), stored=stored)
    assert "3 planes of uint8" in refused(three)
    deep = [plane.astype(np.int16) for plane in CHANNELS]
    assert "5 planes of int16" in refused(write_pages(tmp_path / "int16.tif", deep, stored=stored))
    pictures: list[Any] = [PICTURE, PICTURE]
    assert "a stack of 2 pictures" in refused(
        write_pages(tmp_path / "stack.tif", pictures, stored=stored, photometric="rgb")
    )


@BOTH
def test_a_qptiff_is_read_in_rgb_and_refused_in_channels(tmp_path: Path, stored: str) -> None:
    # its thumbnail is RGB, but it is not the slide
    assert "5 channels of uint8" in refused(write_qptiff(tmp_path / "fluor5.qptiff", stored=stored))
    with open_slide(write_qptiff(tmp_path / "he.qptiff", stored=stored, brightfield=True)) as slide:
        assert slide.levels[0] == Size(320, 256)
        assert slide.mpp == 0.5
        np.testing.assert_array_equal(read_all(slide), PICTURE)


def test_the_thumbnail_of_a_qptiff_can_be_asked_for(tmp_path: Path) -> None:
    pixels, notes = shown(write_qptiff(tmp_path / "fluor5.qptiff"), series=1)
    np.testing.assert_array_equal(pixels, PICTURE[::4, ::4])
    assert notes == ()


@pytest.mark.parametrize(
    "channels",
    [
        {"Name": ["DAPI", "FITC", "Cy5"], "EmissionWavelength": [461, 520, 670]},
        {"Name": ["DAPI", "FITC", "Cy5"]},
        {"Name": ["Red", "Green", "Blue"], "EmissionWavelength": [640, 520, 460]},
        {"Fluor": ["one", "two", "three"]},
        {"Name": ["CD3", "CD8", "PanCK"]},
        {"Name": ["Hematoxylin", "Eosin", "Residual"]},
        {"Color": [65535, 16711935, -16776961]},
    ],
)
def test_three_markers_are_no_rgb(tmp_path: Path, channels: dict[str, Any]) -> None:
    assert "3 channels" in refused(write_ome_planes(tmp_path / "markers.ome.tif", channels))


@pytest.mark.parametrize(
    ("channels", "order"),
    [
        ({"Name": ["Red", "Green", "Blue"]}, (0, 1, 2)),
        ({"Name": ["B", "G", "R"]}, (2, 1, 0)),
        ({"Name": ["Channel:0", "Channel:1", "Channel:2"]}, (0, 1, 2)),
        (None, (0, 1, 2)),
    ],
)
def test_red_green_and_blue_in_pages(tmp_path: Path, channels: dict[str, Any] | None, order: tuple[int, ...]) -> None:
    pixels, notes = shown(write_ome_planes(tmp_path / "rgb.ome.tif", channels))
    np.testing.assert_array_equal(pixels, PICTURE[..., list(order)])
    told = channels is not None and not channels["Name"][0].startswith("Channel")
    assert bool(notes) != told


def test_order_of_colours_by_their_names() -> None:
    assert colour_order([Channel("blue"), Channel("rot"), Channel("vert")]) == (1, 2, 0)
    assert colour_order([Channel("C1"), Channel("C2"), Channel("C3")]) == (0, 1, 2)
    assert colour_order([Channel("red"), Channel("red"), Channel("blue")]) is None
    assert colour_order([Channel("red")]) is None


def test_one_channel_of_fluorescence_is_no_grey_picture(tmp_path: Path) -> None:
    path = tmp_path / "dapi.ome.tif"
    tifffile.imwrite(path, CHANNELS[0], ome=True, photometric="minisblack", metadata={"Channel": {"Name": "DAPI"}})
    assert "fluorescence (DAPI)" in refused(path)
    tifffile.imwrite(tmp_path / "composite.tif", np.stack(CHANNELS[:3]), imagej=True, metadata={"axes": "CYX"})
    assert "3 channels" in refused(tmp_path / "composite.tif")


@pytest.mark.parametrize("ome", [True, False])
def test_the_label_is_not_the_slide(tmp_path: Path, ome: bool) -> None:
    path = write_label_first(tmp_path / "label_first.ome.tif" if ome else tmp_path / "label_first.tif", ome=ome)
    pixels, notes = shown(path)
    np.testing.assert_array_equal(pixels, PICTURE)
    assert "this is 1" in notes[0]
    assert "--series" in notes[0]
    label, _ = shown(path, series=0)
    np.testing.assert_array_equal(label, PICTURE[:64, :96])
    with pytest.raises(UsageError, match="no picture 7"):
        open_slide(path, series=7)


def test_pictures_of_a_vendor_file_by_number(shared_data: Path) -> None:
    path = shared_data / "CMU-1-Small-Region.svs"
    with open_slide(path, series=0) as slide:
        assert (slide.format, slide.mpp) == ("aperio", 0.499)
    with open_slide(path, series=3) as macro, tifffile.TiffFile(path) as file:
        np.testing.assert_array_equal(read_all(macro), file.series[3].asarray())


def test_series_are_of_tiff_files_only(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="no picture 1"):
        open_slide(tmp_path / "a.png", series=1)


@BOTH
def test_masks_are_no_levels(tmp_path: Path, stored: str) -> None:
    with open_slide(write_masked_pyramid(tmp_path / "cog.tif", stored=stored)) as slide:
        assert slide.levels == (Size(320, 256), Size(160, 128))
        np.testing.assert_array_equal(read_all(slide), PICTURE)
        np.testing.assert_array_equal(read_all(slide, 1), PICTURE[::2, ::2])
        assert slide.notes == ()


def test_deep_planes_need_the_names_of_the_colours(tmp_path: Path) -> None:
    deep = np.stack(CHANNELS[:3]).astype(np.uint16) * 257
    named = write_ome_planes(tmp_path / "named.ome.tif", {"Name": ["Red", "Green", "Blue"]}, deep)
    np.testing.assert_array_equal(shown(named)[0], PICTURE)
    assert "3 channels of uint16" in refused(write_ome_planes(tmp_path / "nameless.ome.tif", None, deep))


def test_names_in_the_file_do_not_break_lines(tmp_path: Path) -> None:
    channels = {"Name": ["DA\nPI" * 30, "a\x7f", "b"]}
    assert "DA PIDA" in refused(write_ome_planes(tmp_path / "odd.ome.tif", channels))


@pytest.mark.parametrize(
    "names",
    [("405", "488", "561"), ("far red", "green", "blue"), ("CD3 Red", "CD8 Green", "CD20 Blue"), ("488 red", "g", "b")],
)
def test_names_that_only_sound_like_colours(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert "3 channels" in refused(write_ome_planes(tmp_path / "markers.ome.tif", {"Name": list(names)}))


@pytest.mark.parametrize(
    "channels",
    [{"Name": ["DAPI", "FITC", "Cy5"]}, {"EmissionWavelength": [460, 520, 660]}],
)
def test_fluorescence_stored_as_rgb(tmp_path: Path, channels: dict[str, Any]) -> None:
    path, planes = tmp_path / "rgb.ome.tif", np.stack(CHANNELS[:3])
    metadata = {"axes": "CYX", "Channel": channels}
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate", metadata=metadata)
    assert "stored as RGB" in refused(path)


@pytest.mark.parametrize("channel", [{"Name": "DAPI"}, {"EmissionWavelength": 460}])
def test_a_channel_of_fluorescence_in_three_samples(tmp_path: Path, channel: dict[str, Any]) -> None:
    path = tmp_path / "rgb.ome.tif"
    tifffile.imwrite(path, PICTURE, photometric="rgb", metadata={"axes": "YXS", "Channel": channel})
    assert "stored as RGB" in refused(path)


@pytest.mark.parametrize("name", ["CD3", "Ki-67", "PAS", "H&E"])
def test_a_chromogenic_stain_may_name_an_rgb_picture(tmp_path: Path, name: str) -> None:
    path = tmp_path / "ihc.ome.tif"
    tifffile.imwrite(path, PICTURE, photometric="rgb", metadata={"axes": "YXS", "Channel": {"Name": name}})
    with open_slide(path) as slide:
        np.testing.assert_array_equal(read_all(slide), PICTURE)


def test_an_image_without_pixels_does_not_hide_the_channels(tmp_path: Path) -> None:
    path = write_ome_planes(tmp_path / "two.ome.tif", {"Name": ["DAPI", "FITC", "Cy5"]})
    xml = tifffile.tiffcomment(path)
    assert isinstance(xml, str)
    sizes = 'SizeX="9" SizeY="9" SizeC="1" SizeZ="1" SizeT="1"'
    image = f'<Image ID="Image:9"><Pixels {sizes} Type="uint8" DimensionOrder="XYCZT"/></Image></OME>'
    tifffile.tiffcomment(path, xml.replace("</OME>", image))
    assert "DAPI" in refused(path)


def test_three_pages_of_a_qptiff_are_channels(tmp_path: Path) -> None:
    kind = "<PerkinElmer-QPI-ImageDescription><ImageType>FullResolution</ImageType><Name>{}</Name>"
    text = kind + "</PerkinElmer-QPI-ImageDescription>"
    path = tmp_path / "three.qptiff"
    with tifffile.TiffWriter(path) as writer:
        for plane, name in zip(CHANNELS[:3], ("DAPI", "Opal 520", "Opal 690"), strict=True):
            options: dict[str, Any] = {"software": "PerkinElmer-QPI", "metadata": None, "tile": (128, 128)}
            writer.write(plane, photometric="minisblack", description=text.format(name), **options)
    assert "3 channels" in refused(path)


@pytest.mark.parametrize("name", ["label_image", "slide_label", "LabelImage", "Etikett", "Makro", "barcode_image"])
def test_larger_labels_and_macros_by_their_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / "label.ome.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(np.tile(PICTURE, (2, 2, 1)), photometric="rgb", metadata={"Name": name, "axes": "YXS"})
        writer.write(PICTURE, photometric="rgb", metadata={"Name": "region", "axes": "YXS"})
    np.testing.assert_array_equal(shown(path)[0], PICTURE)


def test_the_description_of_a_slide_may_tell_of_its_label(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    with tifffile.TiffWriter(path) as writer:
        text = "MyScan v1|Macro = yes|Label = A-12|MPP=0.25"
        writer.write(PICTURE, photometric="rgb", description=text, tile=(128, 128), metadata=None)
        writer.write(PICTURE[:90, :120], photometric="rgb", metadata=None)
    np.testing.assert_array_equal(shown(path)[0], PICTURE)


def test_the_macro_of_fluorescence_is_not_the_slide(tmp_path: Path) -> None:
    path = tmp_path / "macro.ome.tif"
    with tifffile.TiffWriter(path) as writer:
        channels = {"axes": "CYX", "Name": "scan", "Channel": {"Name": ["DAPI", "FITC", "Cy5"]}}
        writer.write(np.stack(CHANNELS[:3]).astype(np.uint16), photometric="minisblack", metadata=channels)
        writer.write(np.tile(PICTURE, (2, 2, 1)), photometric="rgb", metadata={"Name": "macro image", "axes": "YXS"})
    assert "DAPI" in refused(path)


@pytest.mark.parametrize("options", [{"truncate": True}, {"imagej": True}])
@pytest.mark.parametrize("colour", [True, False])
def test_a_stack_behind_one_page_is_no_picture(tmp_path: Path, options: dict[str, Any], colour: bool) -> None:
    path = tmp_path / "stack.tif"
    plane = PICTURE if colour else CHANNELS[0]
    axes = {"axes": "ZYXS" if colour else "ZYX"}
    tifffile.imwrite(
        path, np.stack([plane] * 3), photometric="rgb" if colour else "minisblack", metadata=axes, **options
    )
    if options.get("imagej"):
        with tifffile.TiffFile(path, mode="r+b") as file:
            first, order = file.pages.first, file.byteorder
            file.filehandle.seek(first.offset + 2 + 12 * len(first.tags))
            file.filehandle.write(struct.pack(order + "I", 0))
    assert "3 " in refused(path)
