"""Which pictures a TIFF file holds, and which of them is the slide: the largest one in RGB.

A picture is a series of tifffile: one image with its reduced levels. Masks inside the file (subfile type 4, as
cloud-optimized GeoTIFF writes them) are no pictures. The meaning of channels comes from OME-XML.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import tifffile

from kin_cli.errors import InputError, UsageError
from kin_cli.geometry import Size
from kin_cli.slide.tiff_colours import Colours, Unsupported, colours_of

_JOIN_HINT = "join the files into one: bfconvert IN OUT.ome.tif"
_MASK = 4  # bit of the tag NewSubfileType
_SMALL = 4  # a picture with a fourth of the pixels of another one, or fewer, is its thumbnail or its label
_ASIDE = re.compile(
    r"\b(?:labels?|macro|makro|thumb\w*|overview|localizer|barcode|preview|etikett|etiquette|übersicht|vorschau)\b",
    re.IGNORECASE,
)
_NEUTRAL = re.compile(
    r"(?:(?:channel|ch|c|band|image|plane|sample|s)?[\s:_#.-]*\d{0,2}(?:[\s:_-]+\d{1,2})?|default|rgb\d?)",
    re.IGNORECASE,
)
_STAINS = re.compile(
    r"\b(?:dapi|hoechst\w*|fitc|tritc|cy[\s-]?\d(?:\.\d)?|alexa\w*|af[\s-]?\d{3}|gfp|egfp|yfp|cfp|rfp|mcherry|tdtomato"
    r"|texas\s?red|txred|rhod\w*|opal\s?\d+|autofluorescence|sytox\w*|syto\s?\d+|draq\d|bodipy|atto\s?\d+|apc|fluor\w*)\b",
    re.IGNORECASE,
)
_COLOUR_NAMES = {
    0: {"r", "red", "rot", "rouge", "rojo", "rosso"},
    1: {"g", "green", "grün", "gruen", "vert", "verde"},
    2: {"b", "blue", "blau", "bleu", "azul", "blu"},
}
_PRIMARIES = {0xFF0000: 0, 0x00FF00: 1, 0x0000FF: 2}


@dataclass(frozen=True)
class Channel:
    """One channel of an image as OME-XML describes it; ``colour`` is 0xRRGGBB."""

    name: str = ""
    wavelength: str = ""
    fluorophore: str = ""
    contrast: str = ""
    colour: int | None = None

    @property
    def text(self) -> str:
        """Its name as messages show it."""
        return self.name or self.fluorophore or (f"{self.wavelength} nm" if self.wavelength else "unnamed")

    @property
    def fluorescent(self) -> bool:
        """Whether the file says that this is a channel of fluorescence."""
        told = self.wavelength or self.fluorophore or "fluorescence" in self.contrast.lower()
        return bool(told or _STAINS.search(self.name))


@dataclass(frozen=True)
class OmeImage:
    """What OME-XML says of one image: name, channels, bits in use, pixel sizes with their units, width and height."""

    name: str
    channels: tuple[Channel, ...]
    significant_bits: int | None
    sizes: tuple[tuple[str | None, str], tuple[str | None, str]]
    extent: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Picture:
    """One picture of a TIFF file: ``colours``, or the reason why kin cannot use it."""

    number: int
    name: str
    size: Size
    series: tifffile.TiffPageSeries
    ome: OmeImage | None
    colours: Colours | None
    reason: str = ""
    hint: str = ""

    @property
    def aside(self) -> bool:
        """Whether its name says that it is a label, a macro image or a thumbnail."""
        # the first page of an OME-TIFF describes all images
        text = "" if self.ome else str(self.series.keyframe.description)[:2000]
        # a slide may tell of its label in a long text: only a short line that states no value is a name
        pieces = [piece for piece in re.split(r"[\n|]", text) if len(piece.split()) <= 3 and not set("=:") & set(piece)]
        return any(_ASIDE.search(_apart(piece)) for piece in (self.name, *pieces))

    def __str__(self) -> str:
        kind = self.colours.kind if self.colours else "not usable"
        return f"{self.number}: {self.name + ', ' if self.name else ''}{self.size}, {kind}"


def _apart(name: str) -> str:
    """A name with spaces between its words, as in "LabelImage" or "label_image"."""
    return re.sub(r"(?<=[a-zäöü])(?=[A-Z])", " ", name).replace("_", " ")


def pictures_of(file: tifffile.TiffFile) -> list[Picture]:
    """All pictures of an open file, in its order; their numbers are those of tifffile's series."""
    series = list(file.series)
    images = ome_images(file.ome_metadata) if file.is_ome and file.ome_metadata else []
    described = _described(series, images)
    found = []
    for number, (stored, ome) in enumerate(zip(series, described, strict=True)):
        one = _largest_first(stored) if file.is_svs else stored
        page = one.keyframe
        if int(page.subfiletype) & _MASK:
            continue
        size, name = Size(page.imagewidth, page.imagelength), _plain(one.name or "")
        try:
            picture = Picture(number, name, size, one, ome, _colours(file, one, ome))
        except Unsupported as error:
            picture = Picture(number, name, size, one, ome, None, str(error), error.hint)
        found.append(picture)
    return found


def _described(series: Sequence[tifffile.TiffPageSeries], images: list[OmeImage]) -> list[OmeImage | None]:
    """What OME-XML says of each series; images without pixels in this file are left out, by their sizes."""
    if len(images) == len(series):
        return list(images)
    found: list[OmeImage | None] = []
    left = list(images)
    for one in series:
        size = (str(one.keyframe.imagewidth), str(one.keyframe.imagelength))
        at = next((number for number, image in enumerate(left) if image.extent == size), None)
        found.append(None if at is None else left[at])
        left = left if at is None else left[at + 1 :]
    return found


def _largest_first(series: tifffile.TiffPageSeries) -> tifffile.TiffPageSeries:
    """The series with its levels from the largest to the smallest, in whatever order they are stored."""
    levels = sorted(series.levels, key=lambda one: -one.keyframe.imagewidth * one.keyframe.imagelength)
    if levels[0] is series.levels[0]:
        return series
    levels[0].name, levels[0].levels = series.name, levels
    return levels[0]


def choose(path: Path, pictures: Sequence[Picture], series: int | None) -> tuple[Picture, tuple[str, ...]]:
    """The picture that is the slide, or picture number ``series``; and notes about the choice.

    Among usable pictures those in colour are preferred, then those that are not called label, macro or thumbnail, then
    the largest. A picture much smaller than one that cannot be used is taken for its thumbnail, and the file refused.

    Raises:
        UsageError: there is no picture ``series``.
        InputError: the picture, or the file, holds nothing that kin can use.
    """
    listed = "; ".join(map(str, pictures)) or "none"
    if series is not None:
        for picture in pictures:
            if picture.number == series:
                _check_usable(path, picture, f"; its pictures are {listed}" if len(pictures) > 1 else "")
                return picture, ()
        raise UsageError(f"{path}: there is no picture {series}", f"its pictures are {listed}")
    if not pictures:
        raise InputError(f"{path}: a TIFF without a picture", "look at it with another viewer")
    largest = max(pictures, key=lambda picture: picture.size.pixels)
    usable = [picture for picture in pictures if picture.colours is not None]
    coloured = [picture for picture in usable if picture.colours is not None and picture.colours.is_colour]
    ranked = sorted(coloured or usable, key=lambda picture: (picture.aside, -picture.size.pixels, picture.number))
    others = "" if len(pictures) == 1 else f"; its pictures are {listed}; --series takes another one"
    if not ranked or (_SMALL * ranked[0].size.pixels <= largest.size.pixels and not largest.aside):
        if largest.colours is None or not ranked:
            _check_usable(path, largest, others)
        ranked = [largest]
    unusable = [picture for picture in pictures if picture.colours is None and not picture.aside]
    if ranked[0].aside and unusable:
        _check_usable(path, max(unusable, key=lambda picture: picture.size.pixels), others)
    if len(pictures) == 1:
        return ranked[0], ()
    return ranked[0], (f"the file holds {len(pictures)} pictures ({listed}); this is {ranked[0].number}, see --series",)


def _check_usable(path: Path, picture: Picture, others: str) -> None:
    if picture.colours is None:
        raise InputError(f"{path}: no RGB picture that kin can translate: {picture.reason}", picture.hint + others)


def ome_images(xml: str) -> list[OmeImage]:
    """The images that OME-XML describes, in its order. ``ElementTree.ParseError`` if it is no XML."""
    found = []
    for image in ElementTree.fromstring(xml).findall("{*}Image"):
        pixels = image.find("{*}Pixels")
        if pixels is None:
            continue
        bits = pixels.get("SignificantBits", "")
        sizes = [(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "XY"]
        channels = tuple(_channel(element) for element in pixels.findall("{*}Channel"))
        name = image.get("Name", "")
        extent = (pixels.get("SizeX", ""), pixels.get("SizeY", ""))
        stated = int(bits) if bits.isdecimal() else None
        found.append(OmeImage(name, channels, stated, (sizes[0], sizes[1]), extent))
    return found


def _plain(text: str) -> str:
    """At most 40 printable characters of a name, on one line."""
    return "".join(character for character in " ".join(text.split()) if character.isprintable())[:40]


def _channel(element: ElementTree.Element) -> Channel:
    colour = element.get("Color", "")
    told = f"{element.get('ContrastMethod', '')} {element.get('IlluminationType', '')}"
    number = int(colour) & 0xFFFFFFFF if re.fullmatch(r"-?\d+", colour) else None
    return Channel(
        name=_plain(element.get("Name", "")),
        wavelength=_plain(element.get("EmissionWavelength", "")),
        fluorophore=_plain(element.get("Fluor", "")),
        contrast=told,
        colour=None if number is None else number >> 8,
    )


def _colours(file: tifffile.TiffFile, series: tifffile.TiffPageSeries, ome: OmeImage | None) -> Colours:
    """The meaning of the samples of a series; ``Unsupported`` tells why it is no single RGB or grey picture."""
    if any(page is None for page in series.pages):
        raise Unsupported("it is one part of a set of several files", _JOIN_HINT)
    page, pages = series.keyframe, len(series.pages)
    described = ome.channels if ome else ()
    bits = _bits_in_use(page, ome)
    if pages > 1:
        return _from_pages(file, series, described, bits)
    if int(page.tags.valueof("ImageDepth", 1)) != 1 or int(getattr(page, "imagedepth", 1)) != 1:
        raise Unsupported("a volume, not a flat picture")
    planes = math.prod(series.shape) // max(1, math.prod(page.shape))
    if planes > 1:
        raise Unsupported(f"a stack of {planes} pictures behind one page; export one plane")
    colours = colours_of(page, bits=bits)
    if not colours.is_colour and any(channel.fluorescent for channel in described):
        raise Unsupported(f"one channel of fluorescence ({described[0].text}), not brightfield")
    if colours.is_colour and (
        any(channel.fluorescent for channel in described) or (len(described) == 3 and colour_order(described) is None)
    ):
        names = ", ".join(channel.text for channel in described[:8])
        raise Unsupported(f"channels of fluorescence or markers ({names}) stored as RGB, not brightfield")
    if not colours.is_colour and "PerkinElmer-QPI" in str(page.description):
        raise Unsupported("one channel of fluorescence, not brightfield")
    return colours


def _from_pages(
    file: tifffile.TiffFile, series: tifffile.TiffPageSeries, channels: tuple[Channel, ...], bits: int | None
) -> Colours:
    """The meaning of a series of several pages: red, green and blue in one page each, or nothing that kin can use."""
    page, pages = series.keyframe, len(series.pages)
    if page.samplesperpixel > 1:
        raise Unsupported(f"a stack of {pages} pictures; export one plane")
    named = [channel.text for channel in channels]
    names = f" ({', '.join(named[:8])}{', …' if len(named) > 8 else ''})" if any(c.name for c in channels) else ""
    if series.kind == "qpi" or pages != 3 or not {"C", "S"}.intersection(series.axes):
        kind = "channels" if "C" in series.axes or series.kind == "qpi" else "planes"
        raise Unsupported(f"{pages} {kind} of {page.dtype} in pages of their own{names}, not red, green and blue")
    order = colour_order(channels)
    if order is None and any(channel.fluorescent for channel in channels):
        raise Unsupported(f"3 channels of fluorescence{names}, not red, green and blue")
    if order is None:
        raise Unsupported(f"3 channels{names}, not said to be red, green and blue")
    # some writers store RGB as three 8-bit pages without names; channels of more bits without names are fluorescence
    told = bool(channels) and all(named_colour(channel.name) is not None for channel in channels)
    if not told and (page.dtype != np.uint8 or file.is_imagej):
        raise Unsupported(f"3 channels of {page.dtype} in pages of their own, not said to be red, green and blue")
    one = colours_of(page, bits=bits)
    if one.kind != "grey":
        raise Unsupported(f"3 pages with {one.kind} colours")
    return Colours("RGB", one.bits, planes=3, order=order, inverted=one.inverted)


def colour_order(channels: Sequence[Channel]) -> tuple[int, int, int] | None:
    """Positions of red, green and blue among three channels; None if they are something else.

    Names that mean the colours decide, in any order. Channels without telling names count as red, green and blue
    unless they have other display colours. A wavelength or a fluorophore is never red, green and blue.
    """
    if not channels:
        return 0, 1, 2
    if len(channels) != 3 or any(channel.fluorescent for channel in channels):
        return None
    found = [named_colour(channel.name) for channel in channels]
    if sorted(number for number in found if number is not None) == [0, 1, 2]:
        return found.index(0), found.index(1), found.index(2)
    if any(not _NEUTRAL.fullmatch(channel.name) for channel in channels):
        return None
    shown = [_PRIMARIES.get(channel.colour) if channel.colour is not None else None for channel in channels]
    plain = all(channel.colour in (None, 0xFFFFFF, 0) for channel in channels)
    return (0, 1, 2) if plain or shown == [0, 1, 2] else None


def named_colour(name: str) -> int | None:
    """0, 1 or 2 if a name says red, green or blue and nothing else, such as a marker or "far"; otherwise None."""
    words = set(re.split(r"[^a-zäöüß]+", name.lower())) - {"", "channel", "ch", "band", "plane"}
    if len(words) != 1 or re.search(r"\d{3}", name):
        return None
    return next((number for number, known in _COLOUR_NAMES.items() if words <= known), None)


def _bits_in_use(page: tifffile.TiffPage, ome: OmeImage | None) -> int | None:
    """Bits in use of 16-bit samples as the file states them; None if it does not."""
    if page.dtype != np.uint16 or int(page.bitspersample) != 16:
        return None
    if ome is not None and ome.significant_bits and 8 <= ome.significant_bits < 16:
        return ome.significant_bits
    stated = page.tags.valueof("MaxSampleValue")
    values = [int(value) for value in np.ravel(stated)] if stated is not None else []
    largest = max(values, default=0)
    # 2ⁿ - 1 is a depth, anything else the largest sample of this picture
    return largest.bit_length() if 255 <= largest < 32768 and largest & (largest + 1) == 0 else None
