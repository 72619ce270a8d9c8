"""Polygons that people drew on a slide: GeoJSON as QuPath writes it, and the XML of ImageScope and ASAP.

Coordinates are in pixels of level 0. GeoJSON files count from the corner of the scanned part of the slide
(``Slide.bounds_origin``), as QuPath does.
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from kin_cli.errors import InputError
from kin_cli.geometry import Doubles

Polygon = list[Doubles]  # rings (n, 2) of points (x, y): the outer ring, then the holes

GEOJSON_HINT = "export annotations from QuPath as GeoJSON: polygons in pixels of level 0"
_MAX_BYTES = 1 << 30  # of unpacked text
_CHILDREN = {"FeatureCollection": "features", "GeometryCollection": "geometries"}
_AREAS = ("Polygon", "MultiPolygon")
_OTHERS = ("Point", "MultiPoint", "LineString", "MultiLineString")  # they cover no area
_PLURALS = {
    "point": "points",
    "line": "lines",
    "point or line": "points or lines",
    "object without geometry": "objects without geometry",
    "missing core": "missing cores",
}
_FOREIGN = {
    "COCO": {"images", "annotations"},
    "LabelMe": {"shapes"},
    "VGG Image Annotator": {"_via_img_metadata"},
    "Esri JSON": {"rings"},
}
_ELLIPSE_POINTS = 360
_IMAGESCOPE_AREAS, _IMAGESCOPE_RECTANGLE, _IMAGESCOPE_ELLIPSE = ("0", "1", "2"), "1", "2"
_ASAP_AREAS = ("polygon", "spline", "rectangle", "none", "")
_CUT_OUT_OF_CAMELYON = "_2"  # the group of holes in the annotations of CAMELYON, whose other groups are _0 and _1
_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
_TEXT_STARTS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


@dataclass
class Annotations:
    """Polygons of tissue, polygons to cut out of them, and the number of objects of each kind that were left out."""

    tissue: list[Polygon] = field(default_factory=list)
    excluded: list[Polygon] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    counts_from_bounds: bool = True

    def add(self, polygon: Polygon, *, excluded: bool) -> None:
        """Add a polygon to one of the two lists."""
        (self.excluded if excluded else self.tissue).append(polygon)

    def notes(self) -> list[str]:
        """What a user should know: what was left out, and how much was cut out."""
        found = []
        if self.left_out:
            things = " and ".join(
                f"{count} {kind if count == 1 else _PLURALS[kind]}" for kind, count in sorted(self.left_out.items())
            )
            found.append(f"left out, since they cover no area: {things}")
        if self.excluded:
            count = len(self.excluded)
            what = "1 polygon to be ignored is" if count == 1 else f"{count} polygons to be ignored are"
            found.append(f"{what} cut out of the tissue")
        return found


def may_be_annotations(head: bytes) -> bool:
    """Whether a file that begins with ``head`` may hold annotations: packed, or text that begins as JSON or XML."""
    return head.startswith((_GZIP, _ZIP, *_TEXT_STARTS)) or head.lstrip(b" \t\r\n\f\x1e")[:1] in (b"{", b"[", b"<")


def read_annotations(path: Path) -> Annotations:
    """Read the polygons of a file: GeoJSON (also packed by gzip or zip), ImageScope XML or ASAP XML.

    Polygons of classes with a name that begins with "Ignore" (QuPath's ``Ignore*``, ``Tumor: Ignore*``), negative
    regions of ImageScope, and ASAP's groups of exclusions are to be cut out. Points, lines and objects without geometry
    are left out and counted.

    Raises:
        InputError: the file cannot be read, is of another format, or has no polygon of tissue.
    """
    content = _unpacked(path)
    found = Annotations()
    if content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") or content[:4] in (b"\xff\xfe<\0", b"\xfe\xff\0<"):
        _add_xml(path, content, found)
    else:
        _add_geojson(path, content, found)
    if not found.tissue:
        what = "; ".join(found.notes()) or "it is empty"
        raise InputError(f"{path}: the mask holds no polygon of tissue ({what})", GEOJSON_HINT)
    return found


def _unpacked(path: Path) -> bytes:
    """The text of a file, which may be packed by gzip or zip."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if content.startswith(_GZIP):
            content = _gunzipped(content)
        elif content.startswith(_ZIP):
            with zipfile.ZipFile(BytesIO(content)) as archive:
                names = [name for name in archive.namelist() if not name.startswith("__MACOSX") and name[-1] != "/"]
                if len(names) != 1:
                    raise InputError(f"{path}: the archive holds {len(names)} files", "give one GeoJSON file")
                with archive.open(names[0]) as member:
                    content = member.read(_MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{path}: the mask cannot be read: {error}", "write it again") from error
    if len(content) > _MAX_BYTES:
        raise InputError(f"{path}: more than 1 GiB of annotations", "export only the annotations of tissue")
    return content


def _gunzipped(content: bytes) -> bytes:
    parts, size = [], 0
    while content.startswith(_GZIP):  # a gzip file may have several members
        unpacker = zlib.decompressobj(wbits=31)
        parts.append(unpacker.decompress(content, _MAX_BYTES + 1 - size))
        size += len(parts[-1])
        if size > _MAX_BYTES:
            break
        if not unpacker.eof:
            raise EOFError("the packed data end too early")
        content = unpacker.unused_data
    return b"".join(parts)


# GeoJSON


def _add_geojson(path: Path, content: bytes, found: Annotations) -> None:
    try:
        try:
            node = json.loads(content)
        except UnicodeDecodeError:
            node = json.loads(content.decode("latin-1"))  # names of classes; numbers are ASCII anyway
    except RecursionError:
        raise InputError(f"{path}: the mask is nested too deeply to be GeoJSON", GEOJSON_HINT) from None
    except ValueError as error:
        if _is_sequence(content):
            reason = "it holds one JSON object a line, which is no GeoJSON file"
            raise InputError(
                f"{path}: the mask cannot be read: {reason}", "put the objects into one list: [..., ...]"
            ) from None
        hint = "give GeoJSON, or a PNG, TIFF or JPEG of the whole slide, non-zero where tissue is"
        raise InputError(f"{path}: the mask is neither a picture nor GeoJSON: {error}", hint) from error
    try:
        _add_node(path, node, found, excluded=False)
    except RecursionError:
        raise InputError(f"{path}: the mask is nested too deeply to be GeoJSON", GEOJSON_HINT) from None
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        what = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else error
        raise InputError(f"{path}: the mask is not valid GeoJSON: {what}", GEOJSON_HINT) from error


def _is_sequence(content: bytes) -> bool:
    """Whether a text has several JSON objects, one after the other (NDJSON, JSON Lines, RFC 8142)."""
    text = content.decode(json.detect_encoding(content), "replace").lstrip("\ufeff \t\r\n")
    if text.startswith("\x1e"):
        return True
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except ValueError:
        return False
    return text[end:].lstrip(" \t\r\n\x1e,").startswith(("{", "["))


def _what_json(node: Any) -> str:
    """What a part of a JSON file is that is no GeoJSON."""
    if not isinstance(node, dict):
        return f"{json.dumps(node)[:40]} where a polygon belongs"
    if kind := node.get("type"):
        return f"an object of type {json.dumps(kind)[:40]} where a polygon belongs"
    if not node:
        return "an empty object, {}, where a polygon belongs"
    program = next((name for name, keys in _FOREIGN.items() if keys <= node.keys()), None)
    if program:
        return f"annotations of another format, {program}"
    return f"an object without type (its keys: {', '.join(list(node)[:5])[:80]}) where a polygon belongs"


def _add_node(path: Path, node: Any, found: Annotations, *, excluded: bool) -> None:
    """Add all polygons in a GeoJSON object, at any depth."""
    kind = node.get("type") if isinstance(node, dict) and isinstance(node.get("type"), str) else None
    if node is None:
        found.left_out["object without geometry"] += 1
    elif isinstance(node, list):
        for child in node:
            _add_node(path, child, found, excluded=excluded)
    elif kind in _CHILDREN:
        _add_node(path, node[_CHILDREN[kind]] or [], found, excluded=excluded)
    elif kind == "Feature":
        properties = node["properties"] if isinstance(node.get("properties"), dict) else {}
        if node.get("isMissing") or properties.get("isMissing"):
            found.left_out["missing core"] += 1
        else:
            ignored = any(_is_ignored(name) for name in _class_names(properties))
            _add_node(path, node.get("geometry"), found, excluded=excluded or ignored)
    elif kind in _AREAS:
        _add_area(node["coordinates"] if kind == "MultiPolygon" else [node["coordinates"]], found, excluded)
    elif kind in _OTHERS:
        found.left_out["point" if "Point" in kind else "line"] += 1
    else:
        raise InputError(f"{path}: the mask holds {_what_json(node)}", GEOJSON_HINT)


def _add_area(polygons: list[Any], found: Annotations, excluded: bool) -> None:
    for rings in polygons:
        if not isinstance(rings, list):
            raise ValueError("a polygon is not a list of rings")
        if not rings:
            found.left_out["object without geometry"] += 1
        else:
            found.add([_ring(points) for points in rings], excluded=excluded)


def _class_names(properties: dict[str, Any]) -> list[str]:
    """The names that make up a QuPath class: in ``names``, or in ``name`` with colons between them."""
    kind = properties.get("classification")
    found = [kind.get("name"), *_listed(kind.get("names"))] if isinstance(kind, dict) else _listed(kind) or [kind]
    return [part for name in found if isinstance(name, str) for part in name.split(":")]


def _listed(names: Any) -> list[Any]:
    return names if isinstance(names, list) else []


def _is_ignored(name: str) -> bool:
    return name.strip().casefold().startswith("ignore")


def _ring(points: Any) -> Doubles:
    if not (isinstance(points, list) and all(isinstance(point, list) and len(point) > 1 for point in points)):
        raise ValueError("a ring is not a list of points [x, y]")
    if not all(type(number) in (int, float) for point in points for number in point[:2]):
        raise ValueError("a coordinate is not a number")
    ring = np.array([point[:2] for point in points], np.float64)
    if ring.shape[0] < 3 or not np.isfinite(ring).all():
        raise ValueError("a ring needs at least three points of finite numbers")
    return ring


# XML


def _add_xml(path: Path, content: bytes, found: Annotations) -> None:
    """Add the polygons of ImageScope's or ASAP's XML."""
    hint = "kin reads GeoJSON, and the XML of ImageScope and ASAP; open it in QuPath and export GeoJSON"
    if b"<!ENTITY" in content:
        raise InputError(f"{path}: the XML defines entities", "no program that kin knows writes that; " + hint)
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise InputError(f"{path}: the mask is not valid XML: {error}", hint) from error
    found.counts_from_bounds = False
    readers = {"Annotations": _imagescope, "ASAP_Annotations": _asap}
    if root.tag not in readers:
        what = (
            "Hamamatsu NDPA annotations (nanometres)" if root.find(".//ndpviewstate") is not None else f"<{root.tag}>"
        )
        raise InputError(f"{path}: an XML file of another program: {what}", hint)
    try:
        for outline, excluded in readers[root.tag](root, found):
            found.add([outline], excluded=excluded)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: the XML has a point without two numbers: {error}", hint) from error


def _imagescope(root: ElementTree.Element, found: Annotations) -> Iterator[tuple[Doubles, bool]]:
    for layer in root.iter("Annotation"):
        for region in layer.iter("Region"):
            points = _points(list(region.iter("Vertex")))
            kind = region.get("Type", "0")
            if kind == _IMAGESCOPE_ELLIPSE and len(points) >= 2:
                points = _ellipse(points)
            elif kind == _IMAGESCOPE_RECTANGLE and len(points) == 2:
                points = _rectangle(points)
            if kind not in _IMAGESCOPE_AREAS or len(points) < 3:
                found.left_out["point or line"] += 1
                continue
            negative = "1" in (region.get("NegativeROA"), layer.get("NegativeROA"))
            yield points, negative or _is_ignored(layer.get("Name", "")) or _is_ignored(region.get("Text", ""))


def _asap(root: ElementTree.Element, found: Annotations) -> Iterator[tuple[Doubles, bool]]:
    for annotation in root.iter("Annotation"):
        corners = sorted(annotation.iter("Coordinate"), key=lambda corner: float(corner.get("Order", 0)))
        points = _points(corners)
        if annotation.get("Type", "").lower() == "rectangle" and len(points) == 2:
            points = _rectangle(points)
        if annotation.get("Type", "").lower() not in _ASAP_AREAS or len(points) < 3:
            found.left_out["point or line"] += 1
            continue
        group = annotation.get("PartOfGroup", "").strip()
        cut_out = group.casefold().startswith("exclu") or group == _CUT_OUT_OF_CAMELYON
        yield points, cut_out or _is_ignored(group)


def _points(corners: list[ElementTree.Element]) -> Doubles:
    points = np.array([[_number(corner.get(axis)) for axis in "XY"] for corner in corners], np.float64)
    return points.reshape(-1, 2)


def _number(text: str | None) -> float:
    number = float((text or "").replace(",", "."))  # a decimal comma, of programs in other languages
    if not math.isfinite(number):
        raise ValueError(f"'{text}'")
    return number


def _rectangle(corners: Doubles) -> Doubles:
    """The rectangle between two opposite corners."""
    (left, top), (right, bottom) = corners
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def _ellipse(corners: Doubles) -> Doubles:
    """The ellipse in the rectangle around ``corners``."""
    low, high = corners.min(axis=0), corners.max(axis=0)
    angle = np.linspace(0, 2 * np.pi, _ELLIPSE_POINTS, endpoint=False)
    points: Doubles = (low + high) / 2 + np.stack([np.cos(angle), np.sin(angle)], axis=1) * (high - low) / 2
    return points
