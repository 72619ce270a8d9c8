"""Writing GeoJSON that QuPath imports: outlines of tissue, lines and rectangles with measurements.

Coordinates are in pixels of level 0, from the corner of the scanned part of the slide, as QuPath counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from kin_cli.geometry import AnyArray, Box, Doubles
from kin_cli.slide.tissue import TissueMask
from kin_cli.slide.view import SlideView

Geometry = dict[str, Any]
TISSUE_COLOUR = (0, 150, 130)


def feature(
    geometry: Geometry,
    kind: str,
    colour: Sequence[int],
    *,
    name: str = "",
    measurements: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """One annotation of QuPath's class ``kind``, drawn in ``colour`` (red, green, blue, 0 to 255)."""
    properties: dict[str, Any] = {
        "objectType": "annotation",
        "classification": {"name": kind, "color": [int(value) for value in colour]},
    }
    if name:
        properties["name"] = name
    if measurements:
        properties["measurements"] = {key: round(float(value), 4) for key, value in measurements.items()}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def encoded(features: Iterable[Mapping[str, Any]], **about: Any) -> bytes:
    """A GeoJSON file (FeatureCollection) in ASCII; ``about`` are further members, in front of the features."""
    collection = {"type": "FeatureCollection", **about, "features": list(features)}
    return (json.dumps(collection, separators=(",", ":"), allow_nan=False) + "\n").encode()


def tissue_outlines(mask: TissueMask, view: SlideView) -> list[dict[str, Any]]:
    """The tissue of a mask as one annotation for each connected piece, with its holes.

    The outlines run along the edges of the mask's pixels, so that a point is inside exactly if its pixel is tissue.
    """
    import contourpy

    # every pixel becomes four points, so that the level 0.5 runs along pixel edges; a frame of background closes rings
    inside = np.pad(mask.mask, 1)
    scale_x, scale_y = view.size.width / mask.mask.shape[1], view.size.height / mask.mask.shape[0]
    edges_x, edges_y = _edges(inside.shape[1]), _edges(inside.shape[0])
    doubled = np.repeat(np.repeat(inside, 2, axis=0), 2, axis=1).astype(np.float32)
    generator = contourpy.contour_generator(edges_x, edges_y, doubled, fill_type=contourpy.FillType.OuterOffset)
    filled: Any = generator.filled(0.5, np.inf)
    polygons, offsets = filled
    found = []
    for points, ends in zip(polygons, offsets, strict=True):
        x, y = view.out_to_l0((points[:, 0] - 1) * scale_x, (points[:, 1] - 1) * scale_y)
        ring = np.rint(np.stack([x, y], axis=1) - view.slide.bounds_origin).astype(int)
        rings = [_corners(ring[start:stop]).tolist() for start, stop in pairwise(ends)]
        found.append(feature({"type": "Polygon", "coordinates": rings}, "Tissue", TISSUE_COLOUR))
    return found


def line(view: SlideView, x: float, y: float, to_x: float, to_y: float) -> Geometry:
    """A line between two points of the ``out_`` frame of a view."""
    xs, ys = view.out_to_l0(np.array([x, to_x], float), np.array([y, to_y], float))
    return {"type": "LineString", "coordinates": (np.stack([xs, ys], 1) - view.slide.bounds_origin).tolist()}


def rectangle(view: SlideView, box: Box) -> Geometry:
    """A box of the ``out_`` frame of a view."""
    x = np.array([box.x, box.right, box.right, box.x, box.x], float)
    y = np.array([box.y, box.y, box.bottom, box.bottom, box.y], float)
    xs, ys = view.out_to_l0(x, y)
    return {"type": "Polygon", "coordinates": [(np.stack([xs, ys], 1) - view.slide.bounds_origin).tolist()]}


def _edges(side: int) -> Doubles:
    """Positions of 2 × ``side`` samples, two at each pixel, close to both of its edges."""
    edges: Doubles = (np.arange(side)[:, None] + np.array([1e-6, 1 - 1e-6])).ravel()
    return edges


def _corners(ring: AnyArray) -> AnyArray:
    """A closed ring without the points on its straight stretches."""
    ring = ring[:-1]
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    kept = ring[turns] if turns.any() else ring
    return np.concatenate([kept, kept[:1]])
