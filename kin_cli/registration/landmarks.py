"""Landmarks: points that people marked in both slides, in whatever table their program wrote, and the error at them.

A table has columns X and Y, in pixels of level 0 or, where the heading says so, in µm; and names in a column of that
heading, or in the first one. So do those of the ANHIR challenge, of ImageJ and of QuPath (points, measurements).
QuPath's GeoJSON holds points as well.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kin_cli.errors import InputError
from kin_cli.geometry import Doubles
from kin_cli.registration.transform import Registration, Side
from kin_cli.store.files import read_regular

_HINT = "landmarks are a CSV file with columns X and Y in pixels of level 0, or QuPath's GeoJSON of points"
_AXIS = re.compile(r"(?:centroid|position|pos|coord(?:inate)?)?[ _]*([xy])(?:[ _]*(?:coord(?:inate)?|position|pos))?")
_UNIT = re.compile(r"[ _]*[\[(]?\b(px|pixels?|[µμu]m|microns?)\b[\])]?$")
_NAMES = ("name", "label", "landmark", "id", "index", "nr", "no", "")
_MISSES = 0.02  # fraction of the slide's sides by which a landmark may lie beyond it


@dataclass(frozen=True)
class LandmarkErrors:
    """Distances between landmarks of the real slide and those of the source, carried over.

    Attributes:
        initial_px, final_px: without and with the registration, (n,) pixels of level 0 of the real slide.
        diagonal_px: of the real slide.
        mpp: µm per pixel of the real slide.
    """

    initial_px: Doubles
    final_px: Doubles
    diagonal_px: float
    mpp: float

    def as_dict(self) -> dict[str, object]:
        """Return median, 90th percentile and maximum: of TRE (µm) and relative TRE (% of the diagonal)."""
        found: dict[str, object] = {"landmarks": len(self.final_px)}
        for name, values in (("initial", self.initial_px), ("registered", self.final_px)):
            three = np.array([np.median(values), np.percentile(values, 90), values.max()])
            names = ("median", "p90", "max")
            found[name] = {
                "tre_um": dict(zip(names, (three * self.mpp).round(2).tolist(), strict=True)),
                "rtre_percent": dict(zip(names, (three / self.diagonal_px * 100).round(4).tolist(), strict=True)),
            }
        return found


def landmark_errors(registration: Registration, files: tuple[Path, Path]) -> LandmarkErrors:
    """The target registration error of landmarks in the source and the real slide (pixels of level 0).

    The initial distances are those of both slides laid on each other corner to corner.

    Raises:
        InputError: a file cannot be read, or no landmark stands in both.
    """
    ours, theirs = paired_landmarks(files, (registration.source, registration.real))
    mpp = registration.real.mpp
    initial = ours * (registration.source.mpp / mpp)
    size = registration.real.size
    return LandmarkErrors(
        np.hypot(*(initial - theirs).T),
        np.hypot(*(registration.to_real(ours) - theirs).T),
        math.hypot(size.width, size.height),
        mpp,
    )


def paired_landmarks(files: tuple[Path, Path], sides: tuple[Side, Side]) -> tuple[Doubles, Doubles]:
    """The landmarks that stand in both files, (n, 2) each, in pixels of level 0 of either slide.

    Landmarks without names are paired by their order, and then there must be as many in both. A pixel size that is not
    known yet may be NaN, as long as the tables are in pixels.

    Raises:
        InputError: a file cannot be read, no landmark stands in both, or which belong together cannot be told.
    """
    one, other = (_read(file, side) for file, side in zip(files, sides, strict=True))
    if len(one.points) != len(other.points) and not (one.named and other.named):
        raise InputError(
            f"{files[1]}: {len(other.points)} landmarks, but {files[0].name} has {len(one.points)}",
            "without names they are paired by their order, so as many are wanted; or give them names",
        )
    names = [name for name in one.points if name in other.points]
    if not names:
        raise InputError(
            f"{files[1]}: no landmark has the name of one in {files[0].name}",
            "names are in column 1, or in one called name",
        )
    return np.array([one.points[name] for name in names]), np.array([other.points[name] for name in names])


@dataclass(frozen=True)
class _Landmarks:
    """Points by name, and whether the names stand in the file; otherwise they are numbers from 0."""

    points: dict[str, tuple[float, float]]
    named: bool


def read_landmarks(path: Path, side: Side) -> dict[str, tuple[float, float]]:
    """Landmarks of a slide by name, in pixels of its level 0; numbers from 0 where they have no names, or equal ones.

    Raises:
        InputError: the file is missing, is no such table, or the points lie beyond the slide.
    """
    return _read(path, side).points


def _read(path: Path, side: Side) -> _Landmarks:
    try:
        text = read_regular(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file", _HINT) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}", _HINT) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a CSV file: {error}", _HINT) from None
    found = _of_geojson(path, text) if text.lstrip().startswith(("{", "[")) else _of_table(path, text, side.mpp)
    if not found.points or not np.isfinite(list(found.points.values())).all():
        raise InputError(f"{path}: holds no landmarks", _HINT)
    _check_inside(path, found.points, side)
    return found


def _check_inside(path: Path, found: dict[str, tuple[float, float]], side: Side) -> None:
    size = side.size
    for name, (x, y) in found.items():
        spare = _MISSES * size.width, _MISSES * size.height
        if not (-spare[0] <= x <= size.width + spare[0] and -spare[1] <= y <= size.height + spare[1]):
            raise InputError(
                f"{path}: landmark {name} at {x:.0f},{y:.0f} is beyond the slide of {size} px",
                "pixels of level 0 are wanted; a heading such as 'X µm' says that they are in µm",
            )


def _of_geojson(path: Path, text: str) -> _Landmarks:
    """The points of a GeoJSON file, which is in pixels of level 0; other shapes do not count."""
    try:
        content: Any = json.loads(text)
        features = content if isinstance(content, list) else content.get("features", [content])
        rows: list[tuple[str, Any, Any]] = []
        for feature in features:
            shape, name = feature["geometry"], str((feature.get("properties") or {}).get("name") or "")
            if shape["type"] in ("Point", "MultiPoint"):
                points = [shape["coordinates"]] if shape["type"] == "Point" else shape["coordinates"]
                rows += [(name, point[0], point[1]) for point in points]
        return _named(rows)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise InputError(f"{path}: not a GeoJSON file of points", _HINT) from None


def _of_table(path: Path, text: str, mpp: float) -> _Landmarks:
    separator = _separator(text)
    try:
        rows = [row for row in csv.reader(io.StringIO(text), delimiter=separator) if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise InputError(f"{path}: not a CSV file: {error}", _HINT) from None
    if rows and all(_number(cell, separator) is not None for cell in rows[0] if cell.strip()):
        columns = _without_heading(rows)
        body, first = rows, 1
    else:
        columns = _columns(rows[0] if rows else [], mpp)
        body, first = rows[1:], 2
    if columns is None:
        raise InputError(f"{path}: has no columns X and Y", _HINT)
    x, y, scale, name = columns
    if math.isnan(scale):
        raise InputError(f"{path}: is in µm, and the pixel size of its slide is not known", "state it in µm")
    found: list[tuple[str, float, float]] = []
    for number, row in enumerate(body, start=first):
        point = [_number(row[at], separator) if at < len(row) else None for at in (x, y)]
        if point[0] is None or point[1] is None:
            raise InputError(f"{path}: row {number} has no two numbers under X and Y", _HINT)
        label = row[name].strip() if name is not None and name < len(row) else ""
        found.append((label, point[0] * scale, point[1] * scale))
    return _named(found)


def _separator(text: str) -> str:
    """What parts the columns: what the first line has most of; a comma may be that of decimal fractions."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    for mark in ("\t", ";"):
        if mark in line:
            return mark
    return "," if "," in line else " "


def _number(cell: str, separator: str) -> float | None:
    plain = cell.strip()
    if separator != ",":
        plain = plain.replace(",", ".")
    try:
        return float(plain)
    except ValueError:
        return None


def _without_heading(rows: list[list[str]]) -> tuple[int, int, float, int | None] | None:
    """Columns of a table of two numbers, or of three of which the first counts the rows."""
    width = len(rows[0])
    counts = [row[0].strip() for row in rows]
    if width == 2:
        return 0, 1, 1.0, None
    if width == 3 and counts in ([str(n + start) for n in range(len(rows))] for start in (0, 1)):
        return 1, 2, 1.0, 0
    return None


def _columns(heading: list[str], mpp: float) -> tuple[int, int, float, int | None] | None:
    """Columns of X and Y, what makes pixels of them, and the column of names."""
    places: dict[str, int] = {}
    scale = 1.0
    names = [cell.strip().lower() for cell in heading]
    for number, name in enumerate(names):
        unit = _UNIT.search(name)
        axis = _AXIS.fullmatch(name[: unit.start()] if unit else name)
        if axis and axis.group(1) not in places:
            places[axis.group(1)] = number
            scale = 1 / mpp if unit and unit.group(1) not in ("px", "pixel", "pixels") else 1.0
    if places.keys() != {"x", "y"}:
        return None
    taken = set(places.values())
    label = next((names.index(name) for name in _NAMES if name in names and names.index(name) not in taken), None)
    return places["x"], places["y"], scale, 0 if label is None and 0 not in taken else label


def _named(rows: Sequence[tuple[str, Any, Any]]) -> _Landmarks:
    """Points by name, or by number if a name is missing or stands twice."""
    names = [name for name, _, _ in rows]
    named = len(set(names)) == len(names) and all(names)
    if not named:
        names = [str(number) for number in range(len(rows))]
    points = {name: (float(x), float(y)) for name, (_, x, y) in zip(names, rows, strict=True)}
    return _Landmarks(points, named)
