"""Metadata in the output file: pixel size, colour profile, how it was made, and checksums of its tiles."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from kin_cli.geometry import Size

_OME = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
_XSI = "http://www.w3.org/2001/XMLSchema-instance"
_DIGEST, _SETTINGS = "kin:crc32", "kin:settings"  # namespaces of map annotations
# characters that XML 1.0 does not allow, and lone surrogates, which come from file names that are not UTF-8
_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class ImageInfo:
    """Pixel size of level 0 in µm (None if unknown), ICC profile, software and image name, and settings (JSON).

    ``objective`` is the magnification that belongs to level 0 (20.0 for 20×), None if unknown.
    """

    mpp: float | None
    icc: bytes | None
    software: str
    name: str
    settings: Mapping[str, object]
    objective: float | None = None

    def __post_init__(self) -> None:
        if self.mpp is not None and not 0 < self.mpp < float("inf"):
            raise ValueError(f"a pixel size must be positive, got {self.mpp} µm")


@dataclass(frozen=True)
class Digest:
    """Checksums of a level: for each row and each column of tiles, the CRC-32 of the CRC-32s of its tiles.

    A damaged tile is found at the crossing of its row and column. Takes 9 bytes per row and column in the file, instead
    of per tile.
    """

    rows: tuple[int, ...]
    cols: tuple[int, ...]

    @classmethod
    def of(cls, tile_crcs: NDArray[np.uint32]) -> Digest:
        """The digest of a level from the CRC-32s of its encoded tiles, uint32 (rows, cols)."""
        crcs = tile_crcs.astype("<u4")
        return cls(tuple(zlib.crc32(row.tobytes()) for row in crcs), tuple(zlib.crc32(col.tobytes()) for col in crcs.T))

    def __str__(self) -> str:
        return "; ".join(" ".join(f"{crc:08x}" for crc in crcs) for crcs in (self.rows, self.cols))

    @classmethod
    def parsed(cls, text: str) -> Digest:
        """The digest from its ``str``; ``ValueError`` for any other text."""
        rows, cols = (tuple(int(crc, 16) for crc in part.split()) for part in text.split(";"))
        return cls(rows, cols)


@dataclass(frozen=True)
class Description:
    """What kin reads back from the ImageDescription of a finished file; ``mpp`` in µm, settings as text.

    A setting that is no text is its JSON, such as ``256``, ``null`` or ``[0, 0, 512, 512]``.
    """

    ome: bool
    mpp: float | None
    digests: tuple[Digest, ...]
    software: str
    settings: Mapping[str, str]


def ome_description(info: ImageInfo, size: Size, digests: Sequence[Digest]) -> bytes:
    """OME-XML in UTF-8 for an RGB image of ``size``, with settings and digests as map annotations.

    Valid against the OME schema 2016-06. The unit µm is not written as a character reference: Bio-Formats fails on it.
    """
    ElementTree.register_namespace("", _OME)
    ElementTree.register_namespace("xsi", _XSI)
    root = ElementTree.Element(
        f"{{{_OME}}}OME", {f"{{{_XSI}}}schemaLocation": f"{_OME} {_OME}/ome.xsd", "Creator": _clean(info.software)}
    )
    if info.objective is not None:
        instrument = _child(root, "Instrument", ID="Instrument:0")
        _child(instrument, "Objective", ID="Objective:0:0", NominalMagnification=repr(float(info.objective)))
    image = _child(root, "Image", ID="Image:0", Name=_clean(info.name))
    if info.objective is not None:
        _child(image, "InstrumentRef", ID="Instrument:0")
        _child(image, "ObjectiveSettings", ID="Objective:0:0")
    pixels = _child(image, "Pixels", **_pixels_attributes(info.mpp, size))
    _child(pixels, "Channel", ID="Channel:0:0", SamplesPerPixel="3")
    _child(pixels, "TiffData", IFD="0", PlaneCount="1")
    annotations = _child(root, "StructuredAnnotations")
    texts = list(settings_as_text(info.settings).items())
    checks = [(f"{_DIGEST}:{level}", str(digest)) for level, digest in enumerate(digests)]
    for number, (namespace, pairs) in enumerate([(_SETTINGS, texts), (_DIGEST, checks)]):
        _child(image, "AnnotationRef", ID=f"Annotation:{number}")
        annotation = _child(annotations, "MapAnnotation", ID=f"Annotation:{number}", Namespace=namespace)
        values = _child(annotation, "Value")
        for key, text in pairs:
            _child(values, "M", K=_clean(key)).text = _clean(text)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def plain_description(info: ImageInfo, digests: Sequence[Digest]) -> bytes:
    """One line of ASCII JSON with the same content as ``ome_description``, for a plain TIFF."""
    content: dict[str, object] = {"software": info.software, "name": info.name, "mpp": info.mpp}
    if info.objective is not None:
        content["objective"] = info.objective
    content["settings"] = dict(info.settings)
    content.update({f"{_DIGEST}:{level}": str(digest) for level, digest in enumerate(digests)})
    return json.dumps(content).encode("ascii")


def parse_description(description: bytes) -> Description | None:
    """Read a description made by ``ome_description`` or ``plain_description``; None for any other."""
    text = description.rstrip(b"\0")
    try:
        if text.startswith(b"{"):
            content = json.loads(text)
            settings = settings_as_text(content.get("settings", {}))
            software = str(content.get("software", ""))
            return Description(False, _number(content.get("mpp")), tuple(_digests(content)), software, settings)
        root = ElementTree.fromstring(text)
        pixels = root.find(f"{{{_OME}}}Image/{{{_OME}}}Pixels")
        mpp = None if pixels is None else _number(pixels.get("PhysicalSizeX"))
        digests = tuple(_digests(_annotation(root, _DIGEST)))
        return Description(True, mpp, digests, root.get("Creator", ""), _annotation(root, _SETTINGS))
    except (ValueError, ElementTree.ParseError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def settings_as_text(settings: Mapping[str, object]) -> dict[str, str]:
    """Settings as a file holds them: text as it is, any other value as JSON."""
    return {name: value if isinstance(value, str) else _json(value) for name, value in settings.items()}


def _annotation(root: ElementTree.Element, namespace: str) -> dict[str, str]:
    """Keys and values of the map annotations of a namespace."""
    path = f"{{{_OME}}}StructuredAnnotations/{{{_OME}}}MapAnnotation[@Namespace='{namespace}']"
    return {str(m.get("K")): m.text or "" for found in root.iterfind(path) for m in found.iter(f"{{{_OME}}}M")}


def _digests(texts: Mapping[str, str]) -> Iterator[Digest]:
    level = 0
    while (text := texts.get(f"{_DIGEST}:{level}")) is not None:
        yield Digest.parsed(text)
        level += 1
    if level == 0:
        raise KeyError(_DIGEST)


def _pixels_attributes(mpp: float | None, size: Size) -> dict[str, str]:
    attributes = {"ID": "Pixels:0", "DimensionOrder": "XYCZT", "Type": "uint8", "Interleaved": "true"}
    attributes |= {"SizeX": str(size.width), "SizeY": str(size.height), "SizeZ": "1", "SizeC": "3", "SizeT": "1"}
    if mpp is not None:
        for axis in "XY":
            attributes |= {f"PhysicalSize{axis}": repr(float(mpp)), f"PhysicalSize{axis}Unit": "µm"}
    return attributes


def _child(parent: ElementTree.Element, tag: str, **attributes: str) -> ElementTree.Element:
    return ElementTree.SubElement(parent, f"{{{_OME}}}{tag}", attributes)


def _clean(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _number(value: str | float | None) -> float | None:
    return None if value is None else float(value)
