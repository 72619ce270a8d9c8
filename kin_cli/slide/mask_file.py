"""Tissue masks from a file: a PNG image or GeoJSON annotations; and the choice of a slide's mask."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyvips
from PIL import Image, ImageDraw

from kin_cli.errors import InputError
from kin_cli.geometry import Box, Doubles, Mask, Size
from kin_cli.slide.tissue import TissueMask, all_tissue, detect_tissue
from kin_cli.slide.view import SlideView

Polygon = list[Doubles]  # rings (n, 2) of points (x, y): the outer ring, then the holes

_MAX_SIDE = 4096
_CHILDREN = {"FeatureCollection": "features", "Feature": "geometry", "GeometryCollection": "geometries"}
_GEOJSON_HINT = "export annotations from QuPath as GeoJSON: polygons in pixels of level 0"


def tissue_mask(view: SlideView, tissue: str | Path) -> TissueMask:
    """The tissue mask of a view, as the option ``tissue`` says.

    "auto" detects tissue, but takes everything in a photograph; "none" takes everything; a path names a mask file.

    Raises:
        InputError: the mask file cannot be used (see ``load_mask``), or the slide is damaged.
    """
    if isinstance(tissue, Path):
        return load_mask(tissue, view)
    if tissue == "none" or not view.slide.expects_background:
        return all_tissue(view.size)
    return detect_tissue(view)


def load_mask(path: Path, view: SlideView) -> TissueMask:
    """Read a tissue mask from a file, for the part of the slide that ``view`` shows.

    A PNG covers the whole slide; non-zero values are tissue (an alpha channel is ignored). GeoJSON holds polygons in
    pixels of level 0: a feature collection, a feature, a geometry, or QuPath's list of features.

    Memory bound: the mask has at most 4096 pixels on its longer side. A larger PNG is reduced; a pixel of the reduced
    mask is tissue if any of its source pixels is.

    Raises:
        InputError: the file is missing, of another format, damaged, or has no polygon on the slide.
    """
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise InputError(f"{path}: the mask cannot be read: {error.strerror}", "give a PNG or GeoJSON file") from error
    if head == b"\x89PNG\r\n\x1a\n":
        return TissueMask(_stretched(_png(path), view), view.size)
    return TissueMask(_drawn(path, list(_polygons(path, _json(path))), view), view.size)


def _png(path: Path) -> Mask:
    """The mask in a PNG, reduced to at most 4096 pixels a side."""
    try:
        image = pyvips.Image.new_from_file(str(path), access="sequential", fail_on="error")
        if image.hasalpha():
            image = image.extract_band(0, n=image.bands - 1)
        tissue = (image != 0).bandor()
        shrink = math.ceil(max(image.width, image.height) / _MAX_SIDE)
        if shrink > 1:
            # as float, so that a single tissue pixel in a large area of background does not round to 0
            tissue = tissue.cast("float").shrink(shrink, shrink, ceil=True)
        mask: Mask = tissue.numpy() > 0
    except pyvips.Error as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: the mask is not a readable PNG: {reason}", "write it again") from error
    return mask


def _mask_size(size: Size) -> Size:
    """``size`` scaled down to at most 4096 pixels on the longer side."""
    factor = min(1.0, _MAX_SIDE / max(size.width, size.height))
    return Size(max(1, round(size.width * factor)), max(1, round(size.height * factor)))


def _stretched(mask: Mask, view: SlideView) -> Mask:
    """The part of a mask of the whole slide that the view shows, sampled at pixel centres (nearest neighbour)."""
    size, region, frame = _mask_size(view.size), view.region, view.frame
    rows = region.y + (np.arange(size.height) + 0.5) * (region.height / size.height)
    cols = region.x + (np.arange(size.width) + 0.5) * (region.width / size.width)
    height, width = mask.shape
    positions = (rows * (height / frame.height)).astype(np.intp), (cols * (width / frame.width)).astype(np.intp)
    return mask[np.ix_(*positions)]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        message = f"{path}: the mask is neither a PNG nor GeoJSON: {error}"
        raise InputError(message, "give a PNG of the whole slide, non-zero where tissue is, or GeoJSON") from error


def _polygons(path: Path, node: Any) -> Iterator[Polygon]:
    """All polygons in a GeoJSON object, at any depth."""
    kind = node.get("type") if isinstance(node, dict) else None
    try:
        if isinstance(node, list):
            for child in node:
                yield from _polygons(path, child)
        elif kind in _CHILDREN:
            yield from _polygons(path, node[_CHILDREN[kind]])
        elif kind in ("Polygon", "MultiPolygon"):
            polygons = [node["coordinates"]] if kind == "Polygon" else node["coordinates"]
            yield from (_polygon(rings) for rings in polygons)
        else:
            raise InputError(f"{path}: the mask holds {kind or 'something'} where a polygon belongs", _GEOJSON_HINT)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{path}: the mask is not valid GeoJSON: {error!r}", _GEOJSON_HINT) from error


def _polygon(rings: list[list[list[float]]]) -> Polygon:
    if not rings:
        raise ValueError("a polygon without rings")
    return [_ring(ring) for ring in rings]


def _ring(points: list[list[float]]) -> Doubles:
    ring = np.array([point[:2] for point in points], np.float64)
    if ring.shape[0] < 3 or ring.shape[1:] != (2,) or not np.isfinite(ring).all():
        raise ValueError("a ring needs at least three points")
    return ring


def _drawn(path: Path, polygons: list[Polygon], view: SlideView) -> Mask:
    """Polygons in pixels of level 0, drawn as a mask of the view; ``InputError`` if none lies on the slide."""
    full = view.slide.levels[0]
    outer = [polygon[0] for polygon in polygons]
    far_corner = (full.width, full.height)
    if not any((ring.max(axis=0) > 0).all() and (ring.min(axis=0) < far_corner).all() for ring in outer):
        raise InputError(f"{path}: no polygon of the mask lies on the slide, {full} pixels at level 0", _GEOJSON_HINT)
    size = _mask_size(view.size)
    scale = np.array([size.width / view.size.width, size.height / view.size.height])
    mask = np.zeros((size.height, size.width), np.bool_)
    for polygon in polygons:
        # in Pillow's coordinates the centre of a pixel is an integer
        _draw(mask, [np.stack(view.l0_to_out(ring[:, 0], ring[:, 1]), axis=1) * scale - 0.5 for ring in polygon])
    return mask


def _draw(mask: Mask, rings: Polygon) -> None:
    """Add a polygon, in pixels of the mask, to the mask; pixels on a ring count as inside."""
    corner = np.floor(rings[0].min(axis=0)).astype(int)
    extent = np.ceil(rings[0].max(axis=0)).astype(int) + 1 - corner
    box = Box(*corner, *extent).clipped(Size(mask.shape[1], mask.shape[0]))
    if box.empty:
        return
    canvas = Image.new("1", (box.width, box.height))
    pen = ImageDraw.Draw(canvas)
    for number, ring in enumerate(rings):
        points = [(x, y) for x, y in ring - (box.x, box.y)]
        pen.polygon(points, fill=int(number == 0), outline=1)
    mask[box.slices()] |= np.asarray(canvas)
