"""Masks as programs write them, for an image of 320 × 256 px; tissue is the left 128 px."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

WIDTH, HEIGHT, LEFT = 320, 256, 128


def flags() -> NDArray[np.bool_]:
    """The mask that all of them mean."""
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[:, :LEFT] = True
    return mask


def box(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    """A closed ring."""
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


def polygon(*rings: list[list[float]]) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


def feature(geometry: dict[str, Any] | None, kind: object = None) -> dict[str, Any]:
    """A feature as QuPath writes it; ``kind`` is the content of its classification."""
    extra = {} if kind is None else {"classification": kind}
    return {"type": "Feature", "geometry": geometry, "properties": {"objectType": "annotation", **extra}}


LEFT_PART = polygon(box(0, 0, LEFT, HEIGHT))
RIGHT_PART = polygon(box(LEFT, 0, WIDTH, HEIGHT))
WHOLE = polygon(box(0, 0, WIDTH, HEIGHT))
IGNORED = {"name": "Ignore*", "color": [180, 180, 180]}


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


_SCN_IMAGE = (
    '<image name="{0}" uuid="{0}"><creationDate>2012-01-01T00:00:00</creationDate>'
    '<device model="Leica SCN400" version="1"/><pixels sizeX="{1}" sizeY="{2}">'
    '<dimension sizeX="{1}" sizeY="{2}" r="0" ifd="{3}"/></pixels>'
    '<view sizeX="{4}" sizeY="{5}" offsetX="{6}" offsetY="{7}" spacingZ="400"/><scanSettings><objectiveSettings>'
    "<objective>{8}</objective></objectiveSettings><illuminationSettings><numericalAperture>0.4</numericalAperture>"
    "<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>"
)


def write_scn(path: Path) -> Path:
    """A Leica slide of 2048 × 1536 px, of which 320 × 256 px from (1408, 1024) on were scanned: OpenSlide's bounds."""
    nm, left, top = 500, 1408, 1024
    macro = _SCN_IMAGE.format("macro", 128, 96, 0, 2048 * nm, 1536 * nm, 0, 0, 0.6)
    main = _SCN_IMAGE.format("main", WIDTH, HEIGHT, 1, WIDTH * nm, HEIGHT * nm, left * nm, top * nm, 20)
    description = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection name="c" '
        f'uuid="u" sizeX="{2048 * nm}" sizeY="{1536 * nm}"><barcode>QQ==</barcode>{macro}{main}</collection></scn>'
    )
    coarse = np.random.default_rng(0).integers(60, 200, (HEIGHT // 16, WIDTH // 16, 3), np.uint8)
    pixels = np.kron(coarse, np.ones((16, 16, 1), np.uint8))
    jpeg = {"tile": (128, 128), "photometric": "rgb", "compression": "jpeg", "metadata": None}
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(np.full((96, 128, 3), 220, np.uint8), description=description, **jpeg)
        file.write(pixels, **jpeg)
    return path
