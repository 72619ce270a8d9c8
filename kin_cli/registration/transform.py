"""A registration: where every point of a slide, the source, lies in another, the real one; and its file.

A piece of tissue moves by p ↦ M · (p + bend(p)), in µm from the corners of level 0, with an affine map M (2, 3) and a
displacement on a net of nodes. A point belongs to the piece that is nearest. The file is JSON, which can be read
without kin; the displacements and the map of the pieces stand beside it in ``NAME.field.npz``.

Affine maps that other programs made are read as well, see ``foreign``.
"""

from __future__ import annotations

import io
import json
import math
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from kin_cli import __version__
from kin_cli.errors import InputError
from kin_cli.geometry import AnyArray, Doubles, Floats, Integers, Mask, Size
from kin_cli.registration.elastic import NODE_UM, Bend
from kin_cli.registration.foreign import HINT, read_matrix
from kin_cli.registration.sections import Labels
from kin_cli.store.files import read_regular

FORMAT = 1
KNOWN_UM = 100.0
"""Background within this distance of a piece is registered with it; what is farther away is unknown."""

_NEAREST_SIDE = 2048


@dataclass(frozen=True)
class Side:
    """One of the two slides: its file, the size of level 0, and µm per pixel of level 0."""

    path: Path
    size: Size
    mpp: float

    def as_dict(self) -> dict[str, Any]:
        """Return the values, ready for JSON."""
        return {"file": str(self.path), "size": [self.size.width, self.size.height], "mpp": self.mpp}


@dataclass(frozen=True, eq=False)
class Piece:
    """A piece of tissue and its motion.

    Attributes:
        matrix: affine map (2, 3) of µm in the source to µm in the real slide; it follows the bend.
        bend: what bends the piece first; None if nothing does.
        found: whether the piece was found in the other slide; otherwise its motion is that of the nearest that was.
        about: area in mm², rotation in degrees, and how well it fits, by name.
    """

    matrix: Doubles
    bend: Bend | None = None
    found: bool = True
    about: dict[str, Any] = field(default_factory=dict)

    def __call__(self, points: Doubles) -> Doubles:
        """Where points (…, 2) of the source lie in the real slide, in µm."""
        bent = points if self.bend is None else points + self.bend(points)
        found: Doubles = bent @ self.matrix[:, :2].T + self.matrix[:, 2]
        return found

    @property
    def degrees(self) -> float:
        """Its rotation, clockwise on the screen, from -180 to 180; of a mirrored piece before it is mirrored."""
        (a, b), (c, d) = self.matrix[:, :2]
        side = 1 if a * d > b * c else -1
        return math.degrees(math.atan2(c - side * b, side * a + d))

    def from_corner(self, corner_um: tuple[float, float]) -> Piece:
        """The same motion of points that are given from a corner (x, y) of the source in µm."""
        matrix = self.matrix.copy()
        matrix[:, 2] += matrix[:, :2] @ np.array(corner_um)
        bend = self.bend
        if bend is not None:
            bend = Bend((bend.origin[0] - corner_um[0], bend.origin[1] - corner_um[1]), bend.values)
        return replace(self, matrix=matrix, bend=bend)

    @property
    def stretch(self) -> float:
        """By how much lengths grow on average: the root of what happens to areas."""
        return math.sqrt(abs(float(np.linalg.det(self.matrix[:, :2]))))


@dataclass(frozen=True, eq=False)
class Registration:
    """Where the points of a source lie in a real slide.

    Attributes:
        source, real: the two slides.
        pieces: the pieces, numbered from 1.
        labels: number of the piece at each place of the source (h, w), 0 where there is no tissue. None if a single
            piece covers everything.
        error: the registration's own error in µm, see ``agreement``; None if unknown.
        mirrored: whether the real slide shows the other side of the section.
        foreign: whether another program made it, so that its direction is a matter of trust.
        labelled_um: left and upper end, width and height in µm of what ``labels`` cover; None for the whole source.
    """

    source: Side
    real: Side
    pieces: tuple[Piece, ...]
    labels: Labels | None = None
    error: dict[str, float] | None = None
    mirrored: bool = False
    foreign: bool = False
    labelled_um: tuple[float, float, float, float] | None = None

    def part(self, source: Side, corner_um: tuple[float, float]) -> Registration:
        """The registration of a part of the source, a picture of its own, whose corner is at ``corner_um`` (x, y)."""
        left, upper, width, height = self._labelled()
        return replace(
            self,
            source=source,
            pieces=tuple(piece.from_corner(corner_um) for piece in self.pieces),
            labelled_um=(left - corner_um[0], upper - corner_um[1], width, height),
        )

    def _labelled(self) -> tuple[float, float, float, float]:
        """Left and upper end, width and height of what ``labels`` cover, in µm."""
        whole = (0.0, 0.0, self.source.size.width * self.source.mpp, self.source.size.height * self.source.mpp)
        return whole if self.labelled_um is None else self.labelled_um

    def to_real(self, points: Doubles) -> Doubles:
        """Where points (…, 2) of the source, in pixels of level 0, lie in the real slide, in pixels of its level 0.

        Continuous coordinates: pixel (x, y) fills [x, x + 1) × [y, y + 1).
        """
        found: Doubles = self.moved(np.asarray(points, np.float64) * self.source.mpp) / self.real.mpp
        return found

    def moved(self, points: Doubles) -> Doubles:
        """The same in µm."""
        owner = self.owner(points)
        found = np.empty(points.shape, np.float64)
        for number in np.unique(owner):
            own = owner == number
            found[own] = self.pieces[int(number) - 1](points[own])
        return found

    def owner(self, points: Doubles) -> Integers:
        """Number of the piece that moves each of the points (…, 2) in µm, from 1: the nearest one."""
        if self.labels is None or len(self.pieces) == 1:
            return np.ones(points.shape[:-1], np.int64)
        found: Integers = self._nearest()[0][self._places(points)].astype(np.int64)
        return found

    def known(self, points: Doubles) -> Mask:
        """Whether each of the points (…, 2) in µm lies on, or within 100 µm of, a piece that was found."""
        if self.labels is None:
            return np.ones(points.shape[:-1], np.bool_)
        found: Mask = self._nearest()[1][self._places(points)]
        return found

    def _places(self, points: Doubles) -> tuple[Integers, Integers]:
        """Row and column in ``labels`` of points in µm; those beyond the slide at its edge."""
        height, width = self._nearest()[0].shape
        left, upper, wide, high = self._labelled()
        cols = np.floor((points[..., 0] - left) * (width / wide)).clip(0, width - 1).astype(np.int64)
        rows = np.floor((points[..., 1] - upper) * (height / high)).clip(0, height - 1).astype(np.int64)
        return rows, cols

    def _nearest(self) -> tuple[Labels, Mask]:
        """Number of the nearest piece everywhere, and where a found piece is within ``KNOWN_UM``.

        At the resolution of ``labels``, or a fraction of it if they have over 2048 pixels on a side.
        """
        cached: tuple[Labels, Mask] | None = self.__dict__.get("_cache")
        if cached is None:
            assert self.labels is not None
            step = -(-max(self.labels.shape) // _NEAREST_SIDE)
            labels = self.labels[step // 2 :: step, step // 2 :: step]
            um = self._labelled()[2] / self.labels.shape[1] * step
            nearest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
            owner = labels[tuple(nearest)]
            del nearest
            found = np.array([False, *(piece.found for piece in self.pieces)])
            far = ndimage.distance_transform_edt(~found[labels]) * um
            cached = (owner, found[owner] & (far <= KNOWN_UM))
            object.__setattr__(self, "_cache", cached)
        return cached

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the displacements and labels, ready for JSON."""
        return {
            "kin": __version__,
            "registration": FORMAT,
            "source": self.source.as_dict(),
            "real": self.real.as_dict(),
            "mirrored": self.mirrored,
            "error_um": self.error,
            "pieces": [
                {
                    "number": number,
                    "found": piece.found,
                    **piece.about,
                    "matrix_um": piece.matrix.tolist(),
                    "bend": None
                    if piece.bend is None
                    else {"origin_um": list(piece.bend.origin), "node_um": NODE_UM, "field": f"bend_{number}"},
                }
                for number, piece in enumerate(self.pieces, start=1)
            ],
        }


def files_of(path: Path) -> tuple[Path, Path]:
    """The JSON file of a registration and the file of its displacements."""
    return path, path.with_name(path.name.removesuffix(".json") + ".field.npz")


def contents(registration: Registration, path: Path) -> dict[Path, bytes]:
    """The files of a registration as bytes, for ``write_outputs``."""
    path, beside = files_of(path)
    arrays: dict[str, AnyArray] = {}
    if registration.labels is not None:
        arrays["labels"] = registration.labels
    for number, piece in enumerate(registration.pieces, start=1):
        if piece.bend is not None:
            arrays[f"bend_{number}"] = piece.bend.values.astype(np.float32)
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    packed = stream.getvalue()
    record = {**registration.as_dict(), "field": beside.name, "field_crc32": zlib.crc32(packed)}
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return {path: text.encode(), beside: packed}


def read_registration(path: Path, source: Side, real: Side) -> Registration:
    """Read a registration of these two slides: one of ``kin register``, or an affine map of another program.

    See ``foreign`` for the latter; ``foreign.check_direction`` tells whether it maps the right way.

    Raises:
        InputError: the file is missing, damaged, of another pair of slides, or holds no matrix.
    """
    try:
        content = read_regular(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file", HINT) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}", HINT) from None
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        record = None
    if isinstance(record, dict) and "registration" in record:
        return _of_kin(path, record, source, real)
    return _of_matrix(read_matrix(path, content, sizes=(source.size, real.size)), source, real)


def _of_kin(path: Path, record: dict[str, Any], source: Side, real: Side) -> Registration:
    damaged = InputError(f"{path}: is a damaged registration", "make it again with kin register")
    try:
        if record["registration"] != FORMAT:
            raise InputError(f"{path}: is a registration of another version of kin", "make it again with kin register")
        for side, name in ((source, "source"), (real, "real")):
            _check_side(path, record[name], side, name)
        arrays = _field(path, str(record["field"]), record["field_crc32"])
        pieces = tuple(_piece(item, arrays) for item in record["pieces"])
        labels = arrays.get("labels")
        if not pieces or (labels is not None and (labels.ndim != 2 or labels.max() > len(pieces) or labels.size == 0)):
            raise damaged
        labels = None if labels is None else labels.astype(np.uint8)
        return Registration(source, real, pieces, labels, record["error_um"], bool(record["mirrored"]))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise damaged from error


def _check_side(path: Path, item: dict[str, Any], side: Side, name: str) -> None:
    """Raise unless a slide covers what the registered one covered: a translation may have another resolution."""
    width, height = (float(n) * float(item["mpp"]) for n in item["size"])
    ours = side.size.width * side.mpp, side.size.height * side.mpp
    if max(abs(width / ours[0] - 1), abs(height / ours[1] - 1)) > 0.01:
        raise InputError(
            f"{path}: the {name} slide of this registration, {Path(str(item['file'])).name}, covers"
            f" {width:.0f} × {height:.0f} µm, but {side.path} covers {ours[0]:.0f} × {ours[1]:.0f} µm",
            "register this pair, or state the pixel size if the file's own is wrong",
        )


def _piece(item: dict[str, Any], arrays: dict[str, AnyArray]) -> Piece:
    matrix = np.array(item["matrix_um"], np.float64)
    if matrix.shape != (2, 3) or not np.isfinite(matrix).all():
        raise ValueError("matrix")
    bend = None
    if item["bend"] is not None:
        values: Floats = arrays[item["bend"]["field"]].astype(np.float32)
        x, y = (float(n) for n in item["bend"]["origin_um"])
        if values.ndim != 3 or len(values) != 2 or not np.isfinite(values).all() or item["bend"]["node_um"] != NODE_UM:
            raise ValueError("bend")
        bend = Bend((x, y), values)
    known = {"number", "found", "matrix_um", "bend"}
    return Piece(matrix, bend, bool(item["found"]), {name: item[name] for name in item.keys() - known})


def _field(path: Path, name: str, checksum: int) -> dict[str, AnyArray]:
    """The arrays beside a registration."""
    beside = path.with_name(Path(name).name)
    try:
        packed = read_regular(beside)
    except OSError:
        raise InputError(f"{beside}: belongs to {path.name} and is missing", "keep both files together") from None
    if zlib.crc32(packed) != checksum:
        raise InputError(f"{beside}: is damaged, or of another registration than {path.name}", "make it again")
    with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays}


def _of_matrix(pixels: Doubles, source: Side, real: Side) -> Registration:
    """The registration of an affine map (2, 3) between pixels of level 0."""
    matrix = pixels * real.mpp
    matrix[:, :2] /= source.mpp
    mirrored = bool(np.linalg.det(matrix[:, :2]) < 0)
    return Registration(source, real, (Piece(matrix),), mirrored=mirrored, foreign=True)
