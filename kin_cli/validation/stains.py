"""Colour deconvolution: the optical density of a stain and of its counterstain, with vectors of the real slide.

By Beer and Lambert's law, optical densities of stains add (Ruifrok & Johnston, Anal. Quant. Cytol. Histol. 23, 2001).
The vectors of both stains are estimated as the extreme directions of the plane in which a slide's densities lie
(Macenko et al., ISBI 2009).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kin_cli.errors import UsageError
from kin_cli.geometry import Doubles, Floats, Pixels

HAEMATOXYLIN = (0.650, 0.704, 0.286)
STAINS = {"dab": (0.268, 0.570, 0.776), "pas": (0.175, 0.972, 0.154), "magenta": (0.21, 0.90, 0.38)}
"""Decadic optical densities of red, green and blue: DAB of Ruifrok & Johnston, PAS of ImageJ, magenta chromogen."""

_LEAST_DENSITY = 0.15  # Euclidean, decadic, below which a pixel says nothing about the stains
_PERCENTILES = (1.0, 99.0)
_MOST_DEGREES = 30.0  # between a stain's vector as estimated and as published
_LEAST_DEGREES = 12.0  # between both stains: nearer ones cannot be told apart
_FEWEST = 1000


@dataclass(frozen=True)
class Stains:
    """Unit vectors of a stain and of its counterstain, where they come from, and the colour of background.

    Attributes:
        name: of the stain, as the user gave it.
        stain, counterstain: decadic optical densities of red, green and blue, of length 1.
        white: red, green and blue of background, 0 to 255.
        note: why a vector is the published one rather than the slide's own; empty if it is not.
    """

    name: str
    stain: tuple[float, float, float]
    counterstain: tuple[float, float, float]
    white: tuple[float, float, float]
    note: str = ""

    def densities(self, pixels: Pixels, white: tuple[float, float, float] | None = None) -> Floats:
        """Decadic optical densities of stain and counterstain, (2, h, w) float32, of pixels (h, w, 3); not below 0.

        ``white`` is the background of another slide than the one that the vectors come from.
        """
        unmix = np.linalg.inv(_basis(self.stain, self.counterstain))[:, :2].astype(np.float32)
        tables = [np.log10(max(w, 1.0) / np.maximum(np.arange(256), 1)).astype(np.float32) for w in white or self.white]
        density = np.stack([table[pixels[..., channel]] for channel, table in enumerate(tables)], axis=-1)
        found: Floats = np.maximum(np.moveaxis(density @ unmix, -1, 0), np.float32(0))
        return found


def parse_stain(text: str) -> tuple[float, float, float]:
    """The published vector of a stain, or one given as R,G,B: optical densities, or a colour if a number exceeds 3.

    Raises:
        UsageError: it is neither.
    """
    if text.lower() in STAINS:
        return _unit(STAINS[text.lower()])
    try:
        values = np.array([float(part) for part in text.split(",")])
    except ValueError:
        values = np.empty(0)
    if values.max(initial=0.0) > 3:  # the colour of the stain, 0 to 255
        values = np.log10(255.0 / np.maximum(values, 1.0))
    if values.shape != (3,) or not np.isfinite(values).all() or values.min() < 0 or values.max() <= 0:
        hint = f"write {', '.join(STAINS)}, or three numbers R,G,B: optical densities, or the colour (0 to 255)"
        raise UsageError(f"'{text}' is not a stain", hint)
    return _unit(tuple(values.tolist()))


def estimate(name: str, pixels: Pixels, white: tuple[float, float, float]) -> Stains:
    """The stains of a slide from pixels (n, 3) of its tissue; ``name``: see ``parse_stain``.

    The published vector is kept, with a note, where the slide's own is farther than 30° from it or none is seen.
    """
    wanted, counterstain = parse_stain(name), _unit(HAEMATOXYLIN)
    optical = np.log10(np.maximum(white, 1.0) / np.maximum(pixels, 1))
    optical = optical[np.linalg.norm(optical, axis=1) > _LEAST_DENSITY]
    published = Stains(name, wanted, counterstain, white, "published vectors: ")
    if len(optical) < _FEWEST:
        return _with_note(published, "too little is stained to estimate them")
    _, _, axes = np.linalg.svd(optical - 0.0, full_matrices=False)
    plane = axes[:2] * np.sign(axes[:2].sum(axis=1, keepdims=True))
    places = optical @ plane.T
    angles = np.arctan2(places[:, 1], places[:, 0])
    ends = [np.cos(a) * plane[0] + np.sin(a) * plane[1] for a in np.percentile(angles, _PERCENTILES)]
    ends = [np.maximum(end, 0.0) / np.linalg.norm(np.maximum(end, 0.0)) for end in ends]
    off = [_degrees(end, wanted) for end in ends]
    stain, other = ends if off[0] <= off[1] else ends[::-1]
    if min(off) > _MOST_DEGREES:
        return _with_note(published, f"the nearest colour of the slide is {min(off):.0f}° away")
    if _degrees(stain, tuple(other.tolist())) < _LEAST_DEGREES:
        return _with_note(published, "the slide shows one colour only")
    if _degrees(other, counterstain) > _MOST_DEGREES:
        return Stains(name, _unit(tuple(stain.tolist())), counterstain, white, "counterstain: published haematoxylin")
    return Stains(name, _unit(tuple(stain.tolist())), _unit(tuple(other.tolist())), white)


def _with_note(stains: Stains, why: str) -> Stains:
    return Stains(stains.name, stains.stain, stains.counterstain, stains.white, stains.note + why)


def _basis(stain: tuple[float, ...], counterstain: tuple[float, ...]) -> Doubles:
    """Rows: stain, counterstain, and a residual at right angles to both."""
    residual = np.cross(stain, counterstain)
    return np.array([stain, counterstain, residual / np.linalg.norm(residual)])


def _unit(values: tuple[float, ...]) -> tuple[float, float, float]:
    red, green, blue = (float(value) / math.hypot(*values) for value in values)
    return red, green, blue


def _degrees(one: Doubles, other: tuple[float, ...]) -> float:
    return math.degrees(math.acos(min(1.0, float(np.dot(one, other)) / math.hypot(*one) / math.hypot(*other))))


def otsu(values: Floats) -> float:
    """Otsu's threshold of densities (n,): the one that parts them with the largest variance between both parts.

    N. Otsu, IEEE Trans. Syst. Man Cybern. 9 (1979); over 256 bins from 0 to the 99.9th percentile.
    """
    if not len(values):
        return 0.0
    top = float(np.percentile(values, 99.9))
    counts, edges = np.histogram(values, 256, (0.0, max(top, 1e-6)))
    middles = (edges[:-1] + edges[1:]) / 2
    below, sums = counts.cumsum(), (counts * middles).cumsum()
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(middles[np.nanargmax(np.where(np.isfinite(between), between, -1.0))])
