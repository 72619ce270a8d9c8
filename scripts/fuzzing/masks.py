"""Hostile tissue masks: GeoJSON of every wrong shape, pictures of every kind."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from fuzzing.case import Case
from fuzzing.damage import damaged
from fuzzing.stock import Stock

_NUMBERS = (0, -1, 5, 128, 319.5, 1e9, -1e300, 1e308, float("nan"), float("inf"), "12", None, True, [], {}, "x")
_POINTS = ("Point", "MultiPoint", "LineString", "MultiLineString")
_KINDS = ("Polygon", "MultiPolygon", *_POINTS, "GeometryCollection", "polygon", "", None, 3)
CODECS = ("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "cp1252")


def masks(rng: random.Random, folder: Path, stock: Stock) -> Case:
    """A translation with a hostile tissue mask."""
    if rng.random() < 0.65:
        name = rng.choice(("mask.geojson", "mask.geojson", "mask.json", "mask.geojson.gz", "mask.txt", "mask.GeoJSON"))
        what, content = _geojson(rng)
        content = _packed(content, rng) if name.endswith(".gz") else content
    else:
        name = rng.choice(("mask.png", "mask.tif", "mask.jpg", "mask.bmp", "mask.webp", "mask.gif", "mask.ome.tif"))
        what, content = _picture(rng, Path(name).suffix)
    if rng.random() < 0.15:
        how, content = damaged(content, rng)
        what += f" after {how}"
    store(folder / name, content, rng)
    more = rng.choice(([], [], ["--background", "white"], ["--mpp", "1"], ["--region", "0,0,100,100"], ["--dry-run"]))
    arguments = ["translate", str(stock.slide), "-o", "out.ome.tif", "--tissue", name, *stock.translate, *more]
    # a mask without tissue is told of the slide
    names = (name, "slide.tif", "tissue")
    return Case(f"{name}: {what}", arguments, names=names, output=None if "--dry-run" in more else "out.ome.tif")


def store(file: Path, content: bytes, rng: random.Random) -> None:
    """Write the file; now and then put something else in its place."""
    kind = rng.choice(("file",) * 40 + ("fifo", "folder", "loop", "missing"))
    if kind == "file":
        file.write_bytes(content)
    elif kind == "fifo":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "loop":
        file.symlink_to(file.name)


def _packed(content: bytes, rng: random.Random) -> bytes:
    kind = rng.randrange(5)
    if kind == 0:
        return content  # not packed
    if kind == 1:
        return gzip.compress(content)[: -rng.randrange(1, 12)]
    if kind == 2:
        return gzip.compress(b" " * (300 << 20), 1)  # unpacks to a thousand times its size
    return gzip.compress(content)


def _geojson(rng: random.Random) -> tuple[str, bytes]:
    special = rng.randrange(14)
    if special == 0:
        return "nested deeply", b"[" * 100_000
    if special == 1:
        nested = '{"type":"GeometryCollection","geometries":[' * 900 + "]}" * 900
        return "collections nested deeply", nested.encode()
    if special == 2:
        texts = ("", "null", "[]", "{}", "3", '"x"', "NaN", '{"type":"FeatureCollection"}', "[[[0,0],[9,9],[0,9]]]")
        text = rng.choice(texts)
        return f"the text {text}", text.encode()
    value: Any = [_feature(rng) for _ in range(rng.randrange(4))]
    if rng.random() < 0.7:
        value = {"type": rng.choice(("FeatureCollection",) * 5 + ("Collection",)), "features": value}
        if rng.random() < 0.1:
            value["features"] = rng.choice((None, {}, "x", 3))
    elif value and rng.random() < 0.5:
        value = value[0]
    text = json.dumps(value)
    return text[:200], text.encode(rng.choice(CODECS), errors="replace")


def _feature(rng: random.Random) -> Any:
    if rng.random() < 0.05:
        return rng.choice((None, 3, "x", []))
    feature: dict[str, Any] = {"type": rng.choice(("Feature",) * 6 + ("Annotation", None)), "geometry": _geometry(rng)}
    name = rng.choice(("Tumor", "Ignore*", "", None, 5, "Région", "x" * 5000))
    feature["properties"] = rng.choice((None, {}, {"classification": {"name": name}}, {"classification": name}))
    if rng.random() < 0.1:
        del feature[rng.choice(("type", "geometry", "properties"))]
    return feature


def _geometry(rng: random.Random, depth: int = 0) -> Any:
    if rng.random() < 0.08:
        return rng.choice((None, [], "x", 5, {}))
    kind = rng.choice(("Polygon",) * 8 + _KINDS)
    if kind == "GeometryCollection" and depth < 3:
        return {"type": kind, "geometries": [_geometry(rng, depth + 1) for _ in range(2)]}
    levels = {"Point": 0, "MultiPoint": 1, "LineString": 1, "MultiPolygon": 3}.get(str(kind), 2)
    geometry = {"type": kind, "coordinates": _coordinates(rng, levels + rng.choice((0,) * 9 + (-1, 1)))}
    if rng.random() < 0.05:
        del geometry["coordinates"]
    return geometry


def _coordinates(rng: random.Random, levels: int) -> Any:
    if rng.random() < 0.04:
        return rng.choice(_NUMBERS)
    if levels <= 0:
        length = rng.choice((2, 2, 2, 2, 3, 1, 0))
        return [rng.choice(_NUMBERS) if rng.random() < 0.05 else rng.uniform(-20, 340) for _ in range(length)]
    if levels == 2 and rng.random() < 0.5:
        x, y, w, h = (rng.randrange(1, 200) for _ in range(4))
        return [[[x, y], [x + w, y], [x + w, y + h], [x, y + h], [x, y]]]
    return [_coordinates(rng, levels - 1) for _ in range(rng.choice((0, 1, 2, 4, 5)))]


def _picture(rng: random.Random, ending: str) -> tuple[str, bytes]:
    width, height = rng.choice(((320, 256), (320, 256), (160, 128), (1, 1), (256, 320), (5000, 4000)))
    flags = np.zeros((height, width), np.uint8)
    flags[:, : max(1, width // 2)] = rng.choice((255, 1, 128, 0))
    mode = rng.choice(("L", "L", "1", "RGB", "RGBA", "LA", "P", "I;16", "F", "I", "CMYK"))
    image, buffer = Image.fromarray(flags), io.BytesIO()
    try:
        if "tif" in ending and rng.random() < 0.5:
            dtype = rng.choice(("bool", "uint8", "uint16", "uint32", "int32", "float32"))
            more = rng.choice(({}, {"tile": (64, 64)}, {"compression": "lzw"}))
            tifffile.imwrite(buffer, np.stack([flags] * rng.choice((1, 1, 2, 3)), 0).squeeze().astype(dtype), **more)
            return f"{width}×{height} of {dtype}", buffer.getvalue()
        image = image.convert(mode) if mode != "I;16" else image.convert("I").convert("I;16")
        image.save(buffer, {".tif": "TIFF", ".jpg": "JPEG"}.get(ending, ending[1:].upper()))
    except Exception:  # this mode cannot be written so
        mode, buffer = "L", io.BytesIO()
        Image.fromarray(flags).save(buffer, "PNG")
    return f"{width}×{height} of mode {mode}", buffer.getvalue()
