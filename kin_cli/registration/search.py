"""Where the pieces of a section lie in another: any place and any rotation, by correlation of outline and density.

A piece is turned in steps and correlated with the whole other slide by fast Fourier transforms, at 32 to 64 µm per
pixel; only the mutual information of ``elastic`` decides between the best places found.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

from kin_cli.geometry import AnyArray, Doubles, Floats, Mask
from kin_cli.registration.sections import Section

STEP_DEGREES = 6
_UM = (32.0, 64.0)
_SIDE = 200  # of the slide that is searched, in pixels, as far as the resolution allows
_MARGIN_UM = 160.0  # of background around a piece that belongs to its likeness
_PEAKS = 3  # places kept for each rotation
_SAME_DEGREES, _SAME_UM = 15.0, 300.0


@dataclass(frozen=True)
class Place:
    """A rotation (radians, clockwise on the screen) and where it puts the centre of a piece (µm), with a correlation.

    A point p of the source goes to R · (p - centre) + place.
    """

    score: float
    angle: float
    centre: tuple[float, float]
    place: tuple[float, float]

    def matrix(self) -> Doubles:
        """The same as an affine map (2, 3) of µm to µm."""
        turn = rotation(self.angle)
        return np.column_stack([turn, np.subtract(self.place, turn @ np.array(self.centre))])


def rotation(angle: float) -> Doubles:
    """The matrix (2, 2) that turns points (x, y) by an angle in radians, clockwise on the screen."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])


def search_um(*sections: Section) -> float:
    """The resolution of the search, in µm per pixel."""
    longest = max(max(section.extent_um) for section in sections)
    return min(max(longest / _SIDE, _UM[0]), _UM[1])


class Searcher:
    """A section in which pieces of another are looked for."""

    def __init__(self, target: Section) -> None:
        self.um = target.um
        self._features = _features(target)
        self._spectra: dict[int, _Spectra] = {}

    def places(self, source: Section, piece: Mask, degrees: Iterable[float], most: int) -> list[Place]:
        """The ``most`` best places of a piece (h, w) of a section of the same resolution, the best first."""
        rows, cols = np.nonzero(piece)
        middle = np.array([(cols.min() + cols.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2])
        margin = _MARGIN_UM / self.um[0]
        radius = math.hypot(cols.max() + 1 - cols.min(), rows.max() + 1 - rows.min()) / 2 + margin
        side = 2 * math.ceil(radius)
        near = ndimage.distance_transform_edt(~piece) <= margin
        layers = np.concatenate([_features(source) * piece, near[None]])
        spectra = self._spectra.setdefault(side, _Spectra(self._features, side))
        found = []
        for angle in map(math.radians, degrees):
            turned = _turned(layers, middle, angle, side)
            for score, corner in spectra.peaks(turned[:-1], turned[-1] > 0.5):
                place = (corner[0] + side / 2) * self.um[0], (corner[1] + side / 2) * self.um[1]
                centre = middle[0] * source.um[0], middle[1] * source.um[1]
                found.append(Place(score, angle, centre, place))
        return _distinct(found, most)


def _features(section: Section) -> Floats:
    """Tissue and density relative to that of the slide's tissue, (2, h, w), each from 0 to about 1."""
    inside = section.density[section.tissue]
    full = float(np.percentile(inside, 80)) if inside.size else 1.0
    density = np.minimum(section.density / max(full, 1e-3), 1.5)
    smooth = [ndimage.gaussian_filter(layer.astype(np.float32), 0.7) for layer in (section.tissue, density)]
    found: Floats = np.stack(smooth)
    return found


def _turned(layers: Floats, middle: Doubles, angle: float, side: int) -> Floats:
    """A square of ``side`` pixels around ``middle`` (x, y) of layers (c, h, w), turned about its middle."""
    back = rotation(-angle)[::-1, ::-1]  # of rows and columns
    offset = middle[::-1] - 0.5 - back @ np.full(2, side / 2 - 0.5)
    turned = [ndimage.affine_transform(layer, back, offset, (side, side), order=1) for layer in layers]
    return np.stack(turned)


class _Spectra:
    """The other section's features (2, H, W), to be correlated with squares of ``side``, also beyond its edges."""

    def __init__(self, target: Floats, side: int) -> None:
        self._pad = side // 2
        padded = np.pad(target, ((0, 0), (self._pad, self._pad), (self._pad, self._pad)))
        self._valid = padded.shape[1] - side + 1, padded.shape[2] - side + 1
        self._shape = tuple(fft.next_fast_len(n, real=True) for n in padded.shape[1:])
        self._first, self._second = self._forward(padded), self._forward(padded**2)

    def _forward(self, values: AnyArray) -> Floats:
        found: Floats = fft.rfft2(values.astype(np.float32), s=self._shape, workers=-1)
        return found

    def _back(self, values: Floats) -> Floats:
        found: Floats = fft.irfft2(values, s=self._shape, workers=-1)[..., : self._valid[0], : self._valid[1]]
        return found

    def peaks(self, template: Floats, mask: Mask) -> Iterator[tuple[float, tuple[int, int]]]:
        """The highest normalized correlations within a mask, mean over the features, and their corners (x, y)."""
        count = float(mask.sum())
        centred = (template - template.sum((1, 2), keepdims=True, where=mask) / count) * mask
        over_mask = self._forward(mask[None]).conj()
        total, squares = self._back(self._first * over_mask), self._back(self._second * over_mask)
        shared = self._back(self._first * self._forward(centred).conj())
        variance = np.maximum(squares - total**2 / count, 1e-3 * count)
        scores = (shared / np.sqrt(variance * (centred**2).sum((1, 2), keepdims=True) + 1e-9)).mean(axis=0)
        apart = max(1, round(_SAME_UM / _UM[0]))
        highest = ndimage.maximum_filter(scores, 2 * apart + 1)
        rows, cols = np.nonzero(scores == highest)
        for number in np.argsort(-scores[rows, cols], kind="stable")[:_PEAKS]:
            row, col = int(rows[number]), int(cols[number])
            yield float(scores[row, col]), (col - self._pad, row - self._pad)


def _distinct(found: list[Place], most: int) -> list[Place]:
    """The best places, without those that are nearly the same as a better one."""
    kept: list[Place] = []
    for one in sorted(found, key=lambda place: -place.score):
        if len(kept) == most:
            break
        if not any(_same(one, other) for other in kept):
            kept.append(one)
    return kept


def _same(one: Place, other: Place) -> bool:
    turn = math.degrees(abs(math.remainder(one.angle - other.angle, 2 * math.pi)))
    return turn < _SAME_DEGREES and math.dist(one.place, other.place) < _SAME_UM
