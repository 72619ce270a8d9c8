"""Affine maps of other programs: which way they map, and whether that is the way that is wanted.

What is wanted maps pixels of level 0 of the source to those of the real slide.

QuPath   *Interactive image alignment* shows the map from pixels of the image that is open, the base, to those of the
         one that is laid over it: with the source as base and the real slide over it, it is what is wanted. It stands
         there as text of six numbers; as JSON, QuPath calls them m00, m01, m02, m10, m11, m12.
VALIS    ``Slide.M`` maps pixels of the registered picture to those of the *processed* picture of that slide (as
         scikit-image warps, backwards). So two of them are needed, and the shapes of the processed pictures:
         ``M_real · M_source⁻¹`` between those. Written from its registrar as JSON:
         {"source": {"M": […], "processed_img_shape_rc": [rows, cols]}, "real": {…}}.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kin_cli.errors import InputError
from kin_cli.geometry import Doubles, Size
from kin_cli.slide.tissue import TissueMask

if TYPE_CHECKING:
    from kin_cli.registration.transform import Registration

HINT = "make it with kin register, or export an affine matrix of 2 × 3 or 3 × 3 numbers"
_MOST_BYTES = 1 << 30
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_NAMES = ("M", "matrix", "transform", "affine")
_JAVA = ("m00", "m01", "m02", "m10", "m11", "m12")
_SURELY, _PERHAPS = 0.15, 0.05  # fraction of the source's tissue by which the inverse fits better
_FITS = 0.5
_POINTS = 40_000


def read_matrix(path: Path, content: bytes, *, sizes: tuple[Size, Size]) -> Doubles:
    """The affine map (2, 3) in a file, from pixels of level 0 of the source to those of the real slide.

    ``sizes`` are those of both slides. Text, JSON and NumPy files are read.

    Raises:
        InputError: the file holds no such map.
    """
    if content.startswith((b"\x93NUMPY", b"PK\x03\x04")):
        return _of_array(path, content)
    if content.startswith(b"\x80"):
        raise InputError(
            f"{path}: is a pickle, which can run any program", "write the matrices as JSON: see docs/validation.md"
        )
    if content.startswith(b"\xac\xed"):
        raise InputError(f"{path}: is a Java object", "save the six numbers that QuPath shows as text")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: neither JSON nor text", HINT) from None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return _of_text(path, text)
    try:
        return _of_json(path, record, sizes)
    except (ValueError, TypeError, KeyError, IndexError, np.linalg.LinAlgError):
        raise InputError(f"{path}: holds no affine matrix", HINT) from None


def _of_array(path: Path, content: bytes) -> Doubles:
    try:
        if content.startswith(b"PK"):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > _MOST_BYTES:
                    raise ValueError("too large")
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        array = loaded if isinstance(loaded, np.ndarray) else loaded["M" if "M" in loaded else loaded.files[0]]
        return _checked(path, array.astype(np.float64).ravel().tolist())
    except (ValueError, KeyError, IndexError, OSError, zipfile.BadZipFile):
        raise InputError(f"{path}: holds no affine matrix", HINT) from None


def _of_json(path: Path, record: Any, sizes: tuple[Size, Size]) -> Doubles:
    """From a list, or an object with the names of this module's docstring."""
    if isinstance(record, dict):
        if {"source", "real"} <= record.keys():
            source, real = (
                _of_valis(path, record[name], size) for name, size in zip(("source", "real"), sizes, strict=True)
            )
            return _checked(path, (real @ np.linalg.inv(source))[:2].ravel().tolist())
        if set(_JAVA) <= record.keys():
            return _checked(path, [float(record[name]) for name in _JAVA])
        record = next(record[name] for name in _NAMES if name in record) if set(_NAMES) & record.keys() else None
        if isinstance(record, dict):
            return _of_json(path, record, sizes)
    return _checked(path, np.asarray(record, np.float64).ravel().tolist())


def _of_valis(path: Path, slide: dict[str, Any], size: Size) -> Doubles:
    """From the registered picture to pixels of level 0 of a slide, (3, 3)."""
    matrix = np.vstack([_checked(path, np.asarray(slide["M"], np.float64).ravel().tolist()), [0.0, 0.0, 1.0]])
    rows, cols = (float(n) for n in slide["processed_img_shape_rc"])
    if not (rows > 0 and cols > 0 and abs(rows / cols * size.width / size.height - 1) < 0.05):
        raise InputError(
            f"{path}: a processed picture of {cols:g}×{rows:g} px is not of a slide of {size} px",
            "is it of this pair, source and real slide not exchanged?",
        )
    found: Doubles = np.diag([size.width / cols, size.height / rows, 1.0]) @ matrix
    return found


def _of_text(path: Path, text: str) -> Doubles:
    """From six, nine or twelve numbers with whatever between them, as QuPath and JavaFX show them."""
    plain = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith(("#", "//")))
    numbers = [float(number) for number in _NUMBER.findall(plain)]
    if len(numbers) == 12:  # JavaFX: three rows of a map of space
        numbers = [numbers[at] for at in (0, 1, 3, 4, 5, 7)]
    return _checked(path, numbers)


def _checked(path: Path, numbers: list[float]) -> Doubles:
    if len(numbers) == 9 and numbers[6:8] == [0.0, 0.0] and numbers[8] == 1.0:
        numbers = numbers[:6]
    matrix = np.array(numbers)
    if len(numbers) != 6 or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix.reshape(2, 3)[:, :2])) < 1e-6:
        raise InputError(f"{path}: holds no affine matrix that can be inverted", HINT)
    return matrix.reshape(2, 3)


def check_direction(path: Path, found: Registration, source: TissueMask, real: TissueMask) -> str | None:
    """What to tell of where a map of another program puts the source's tissue; None if nothing is odd.

    ``source`` and ``real`` are the tissue of the whole slides.

    Raises:
        InputError: the tissue fits clearly better if the map is inverted.
    """
    rows, cols = np.nonzero(source.mask)
    step = max(1, len(rows) // _POINTS)
    height, width = source.mask.shape
    size = found.source.size
    points = np.stack([(cols[::step] + 0.5) * size.width / width, (rows[::step] + 0.5) * size.height / height], axis=-1)
    if not len(points):
        return None
    origin = found.to_real(np.zeros((1, 2)))[0]
    linear = np.stack([found.to_real(np.eye(2)[[axis]])[0] - origin for axis in (0, 1)], axis=-1)
    fits = _fitting(found.to_real(points), real, found.real.size)
    inverse = _fitting((points - origin) @ np.linalg.inv(linear).T, real, found.real.size)
    said = f"{path}: puts {100 * fits:.0f} % of the source's tissue on tissue of {found.real.path.name}"
    if inverse > fits + _SURELY and inverse >= _FITS:
        raise InputError(
            f"{said}, and {100 * inverse:.0f} % if it is inverted: it maps the other way",
            "in QuPath, open the source and lay the real slide over it, or invert the matrix",
        )
    if fits < _FITS:
        return f"{said} only: is it of this pair, and in pixels of level 0?"
    if inverse > fits + _PERHAPS:
        return f"{said}, and {100 * inverse:.0f} % if it is inverted: look which way it maps"
    return None


def _fitting(points: Doubles, mask: TissueMask, size: Size) -> float:
    """Fraction of points (n, 2) in pixels of level 0 that lie on tissue."""
    height, width = mask.mask.shape
    cols, rows = np.floor(points[:, 0] * width / size.width), np.floor(points[:, 1] * height / size.height)
    inside = (rows >= 0) & (cols >= 0) & (rows < height) & (cols < width)
    flags = mask.mask[rows[inside].astype(np.intp), cols[inside].astype(np.intp)]
    return float(flags.sum()) / len(points)
