"""How much more accurate a translation is where the trust map believes it: the abstention curve over areas."""

from __future__ import annotations

import numpy as np

from kin_cli.geometry import Floats, Indices
from kin_cli.passes.trust import TrustMap, read_map
from kin_cli.slide.view import SlideView
from kin_cli.store.files import named_beside
from kin_cli.trust.witness import AbstentionCurve, abstention
from kin_cli.validation.areas import Areas
from kin_cli.validation.scores import REAL
from kin_cli.validation.stains import otsu

_SHOWN = (0.0, 0.05, 0.1, 0.2, 0.5)
_FEWEST = 8


def abstention_of(areas: Areas, view: SlideView, *, mpp: float, seed: int) -> AbstentionCurve | None:
    """The abstention curve of a translation, the trust map of which lies beside it; None without a map.

    The accuracy of an area is 1 if translation and real slide agree whether it is positive, else 0. ``view`` shows the
    translation, ``mpp`` is its µm per pixel.
    """
    found = read_map(named_beside(view.slide.path, ".trust.geojson"))
    if found is None or found.grid.size != view.slide.levels[0] or len(areas.pixels) < _FEWEST:
        return None
    trust = percentiles_at(found, areas.cells, side_px=areas.um / mpp)
    if np.isfinite(trust).sum() < _FEWEST:
        return None
    threshold = otsu(areas.density(REAL).astype(np.float32))
    agrees = (areas.density(0) > threshold) == (areas.density(REAL) > threshold)
    return abstention(agrees.astype(np.float64), trust.astype(np.float64), weights=areas.pixels, seed=seed)


def percentiles_at(found: TrustMap, cells: Indices, *, side_px: float) -> Floats:
    """The percentile of the patch under the middle of each area, (n,); NaN where none is judged.

    ``cells`` (n, 2) are rows and columns of areas of ``side_px`` pixels.
    """
    middles = ((cells + 0.5) * side_px / found.grid.step).astype(np.intp)
    rows, cols = middles[:, 0].clip(0, found.grid.rows - 1), middles[:, 1].clip(0, found.grid.cols - 1)
    values: Floats = found.percentile[rows, cols]
    return values


def points(curve: AbstentionCurve) -> list[tuple[float, float, float, float]]:
    """Some points of the curve: fraction flagged, accuracy of what is kept, and the band of chance."""
    shown = [at for at in _SHOWN if at <= curve.flagged[-1]]
    kept, low, high = (np.interp(shown, curve.flagged, part) for part in (curve.kept, curve.low, curve.high))
    return [(at, float(kept[i]), float(low[i]), float(high[i])) for i, at in enumerate(shown)]
