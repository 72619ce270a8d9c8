"""Stain colours: bring a slide to the colours that a generator knows, and vary the strength of stains in training.

``--stain-match`` fits Macenko's or Reinhard's statistics with torchstain (an extra), once per slide: a fit per patch
would give every patch colours of its own, and so a border. What is fitted becomes a table of colours, which Pillow
interpolates; ``MatchedSlide`` shows a slide through it.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from kin_cli.errors import InputError, UsageError
from kin_cli.geometry import AnyArray, Box, Doubles, Grid, Pixels
from kin_cli.slide.base import Slide
from kin_cli.slide.tissue import tissue_mask
from kin_cli.slide.unreadable import FillingSlide
from kin_cli.slide.view import SlideView

StainMethod = Literal["macenko", "reinhard"]
METHODS: tuple[StainMethod, ...] = ("macenko", "reinhard")

# Optical densities of haematoxylin, eosin and DAB in red, green and blue (Ruifrok & Johnston 2001)
_HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_GLASS_DENSITY = 0.15  # natural optical density up to which a pixel counts as (partly) glass; torchstain's β
_LIGHT = 240  # torchstain's intensity of transmitted light
_EVERY_PIXEL = -1.0  # as torchstain's β, the density below which it leaves pixels out
_NODES = 65  # of the colour table along each axis, the most that Pillow takes
_SQUARES, _SQUARE_PX, _STEP = 64, 256, 4
_LEAST_PIXELS = 500
# Tissue: natural optical density of the channel that absorbs most, relative to its 99 % quantile, and at least. A
# fixed one, or one for every channel (torchstain's β), drops the more of a stain the weaker it is.
_TISSUE_SHARE, _TISSUE_DENSITY = 0.15, 0.05
# Parts of the training whose colours tell how far is near, how many of them are near, and a margin
_PARTS, _WITHIN, _MARGIN = 5, 0.9, 1.25
_NEARER = 0.5  # the most that may be left of the distance to the training's colours
_LAB_ZERO, _LAB_UNIT = (0, 128, 128), (100 / 255, 1, 1)  # torchstain's LAB in units of CIELAB
_LEAST_ANGLE = 0.02  # of both stains in radian, about; less is one stain


def jittered_stains(patch: Pixels, rng: np.random.Generator, *, amount: float) -> Pixels:
    """Vary the strength of haematoxylin, eosin and DAB of a patch (H, W, 3), each at random (Tellez et al. 2018).

    In the space of the three stains c becomes α·c + β: α uniform in 1 ± ``amount``, β in ± ``amount`` / 5. β is left
    out on glass, which no stain reaches.
    """
    if amount == 0:
        return patch
    alpha, beta = 1 + amount * rng.uniform(-1, 1, 3), 0.2 * amount * rng.uniform(-1, 1, 3)
    unit = _HED / np.linalg.norm(_HED, axis=1, keepdims=True)
    density = -np.log((patch.astype(np.float32) + 1) / 256)
    stained = np.minimum(density.mean(axis=-1, keepdims=True) / _GLASS_DENSITY, 1).clip(0)
    change = np.linalg.inv(unit) @ np.diag(alpha) @ unit
    density = density @ change.astype(np.float32) + stained * (beta @ unit).astype(np.float32)
    changed: Pixels = np.rint(256 * np.exp(-density) - 1).clip(0, 255).astype(np.uint8)
    return changed


def tissue_colours(view: SlideView) -> Pixels:
    """Colours of tissue all over a slide, (n, 3): of up to 64 squares of 256 px at the view's resolution.

    The squares are spread evenly over those that are at least half tissue, whatever region the view shows. Memory
    bound: 800 kB, and one square.
    """
    whole = replace(view, region=Box(0, 0, view.frame.width, view.frame.height))
    grid = Grid(whole.size, _SQUARE_PX)
    fraction = tissue_mask(whole, "auto").fraction(grid).ravel()
    order = np.flatnonzero(fraction >= 0.5)
    if len(order) < _SQUARES:  # little tissue, or thin: the fullest squares
        order = np.sort(np.argsort(-fraction, kind="stable")[: min(_SQUARES, int((fraction > 0).sum()))])
    chosen = order[np.linspace(0, len(order) - 1, min(_SQUARES, len(order))).round().astype(int)] if len(order) else []
    squares = (whole.read(grid.clipped(grid.cell(int(index)))) for index in chosen)
    found = [square[::_STEP, ::_STEP].reshape(-1, 3) for square in squares]
    return stained(np.concatenate(found)) if found else np.empty((0, 3), np.uint8)


def stained(pixels: Pixels) -> Pixels:
    """Those of the pixels (n, 3) that are no glass, however strong the slide's stains are."""
    if not len(pixels):
        return pixels
    density = -np.log((pixels.min(axis=1).astype(np.float32) + 1) / _LIGHT)
    kept: Pixels = pixels[density >= max(_TISSUE_DENSITY, _TISSUE_SHARE * float(np.quantile(density, 0.99)))]
    return kept


def fit_stains(colours: Pixels, method: StainMethod, *, what: str) -> dict[str, list[Any]]:
    """Statistics of the colours (n, 3) of tissue, fitted by torchstain, as lists for JSON; ``what`` names their source.

    macenko: "stains" (3, 2), the optical densities of haematoxylin and eosin, and "strongest" (2,), their 99 %
    quantiles. reinhard: "mean" and "std" (3,) in LAB.

    Raises ``UsageError`` if torchstain is missing, ``InputError`` if there is too little tissue or no two stains.
    """
    normalizers = _torchstain()
    hint = "translate it without --stain-match"
    if len(colours) < _LEAST_PIXELS:
        raise InputError(f"{what}: too little tissue to fit its stains", hint)
    picture = colours[:, None]
    try:
        with np.errstate(all="ignore"):
            if method == "macenko":
                fitted = normalizers.MacenkoNormalizer(backend="numpy")
                fitted.fit(picture, beta=_EVERY_PIXEL)
                found = {"stains": fitted.HERef, "strongest": fitted.maxCRef}
            else:
                fitted = normalizers.ReinhardNormalizer(backend="numpy")
                fitted.fit(picture)
                found = {"mean": fitted.target_means, "std": fitted.target_stds}
    except (ValueError, IndexError, np.linalg.LinAlgError):
        raise InputError(f"{what}: its stains cannot be fitted", hint) from None
    arrays = {name: np.asarray(values, np.float64) for name, values in found.items()}
    spread = arrays["strongest"] if method == "macenko" else arrays["std"]
    finite = all(np.isfinite(values).all() for values in arrays.values())
    distinct = method != "macenko" or (finite and np.linalg.svd(arrays["stains"])[1][-1] > _LEAST_ANGLE)
    if not (finite and distinct) or (spread <= 1e-3).any():
        raise InputError(f"{what}: its stains cannot be fitted", hint)
    return {name: np.round(values, 6).tolist() for name, values in arrays.items()}


@dataclass(frozen=True, eq=False)
class StainMatch:
    """A change of colours from those of a slide (``source``) to those of a target, both fitted by ``fit_stains``.

    ``shift`` is how far the slide's colours lie from the training's (``colour_distance``), whatever the method, and
    ``left`` how far they do after the change. The target may hold "spread": how far parts of the training slides lie
    from the whole. A slide within it is left as it is, and so is one that the change would not bring much nearer.
    """

    method: StainMethod
    source: Mapping[str, Any]
    target: Mapping[str, Any]
    shift: float | None = None
    left: float | None = None

    @property
    def near(self) -> bool:
        """Whether the slide's colours are as near to the target as those of parts of the training slides."""
        spread = self.target.get("spread")
        return spread is not None and self.shift is not None and self.shift <= float(spread)

    @property
    def needed(self) -> bool:
        """Whether the slide's colours are far from the target, and the change brings them much nearer."""
        vain = self.shift is not None and self.left is not None and self.left > _NEARER * self.shift
        return not (self.near or vain)

    @property
    def note(self) -> str | None:
        """What to tell if the slide is left as it is; else None."""
        if self.needed:
            return None
        how = f"--stain-match {self.method}: the slide's colours"
        if not self.near:
            return (
                f"{how} lie {self.shift:.1f} ΔE from the training's and would still lie {self.left:.1f} from them, and"
                " are left alone; try the other method"
            )
        return (
            f"{how} are as near to the training's as parts of the training slides are ({self.shift:.1f} ΔE, up to"
            f" {self.target['spread']:.1f} there), and are left alone"
        )

    @cached_property
    def table(self) -> AnyArray:
        """The new colours, 0 to 1, if there is a change, of a lattice of 65 × 65 × 65 colours: float32 (B, G, R, 3)."""
        axis = np.linspace(0, 255, _NODES)
        blue, green, red = np.meshgrid(axis, axis, axis, indexing="ij")
        lattice = np.stack([red, green, blue], axis=-1)
        changed = self._macenko(lattice) if self.method == "macenko" else self._reinhard(lattice)
        return (changed / 255).clip(0, 1).astype(np.float32)

    @cached_property
    def identity(self) -> str:
        """The method and a checksum of the change, for fingerprints."""
        if not self.needed:
            return f"{self.method} (not needed)"
        return f"{self.method} (crc32 {zlib.crc32(np.round(255 * self.table, 2).tobytes()):08x})"

    def __call__(self, pixels: Pixels) -> Pixels:
        """Change the colours of pixels (h, w, 3), if that is needed; thread-safe."""
        return self._changed(pixels) if self.needed else pixels

    def _changed(self, pixels: Pixels) -> Pixels:
        from PIL import Image

        if pixels.size == 0:
            return pixels
        return np.array(Image.fromarray(np.ascontiguousarray(pixels)).filter(self._filter))

    def as_dict(self) -> dict[str, Any]:
        """What was fitted, for the record."""
        known = {"method": self.method, "slide": dict(self.source), "target": dict(self.target)}
        return known | {"shift": self.shift, "left": self.left, "needed": self.needed}

    @cached_property
    def _filter(self) -> Any:
        from PIL import ImageFilter

        return ImageFilter.Color3DLUT(_NODES, self.table.ravel(), channels=3)

    def _macenko(self, colours: Doubles) -> Doubles:
        """I' = I₀ · exp(-S_target · diag(s_target / s_source, 1) · S_source⁻¹ · D) - 1, D = -ln((I + 1) / I₀).

        S: optical densities of both stains and, as third, the direction perpendicular to them; s: the stains' 99 %
        quantiles. torchstain has no third direction, and so takes from every colour what is neither stain: pigment,
        ink, the scanner's own cast. Here a slide in the target's colours keeps every one of them.
        """
        source, target = (_completed(np.array(part["stains"])) for part in (self.source, self.target))
        strength = np.array(self.target["strongest"]) / np.array(self.source["strongest"])
        change = target @ np.diag([*strength, 1.0]) @ np.linalg.inv(source)
        changed: Doubles = _LIGHT * np.exp(np.log((colours + 1) / _LIGHT) @ change.T) - 1
        return changed

    def _reinhard(self, colours: Doubles) -> Doubles:
        """Mean and standard deviation of each LAB channel changed to the target's, in torchstain's LAB."""
        from torchstain.numpy.utils.lab2rgb import lab2rgb
        from torchstain.numpy.utils.split import lab_merge, lab_split
        from torchstain.numpy.utils.stats import standardize

        channels = lab_split(_lab(colours))
        known = zip(
            channels, self.source["mean"], self.source["std"], self.target["mean"], self.target["std"], strict=True
        )
        lab = lab_merge(*(standardize(x, mean, std) * to_std + to_mean for x, mean, std, to_mean, to_std in known))
        changed: Doubles = 255.0 * np.asarray(lab2rgb(lab), np.float64).reshape(colours.shape)
        return np.nan_to_num(changed)


def _completed(stains: Doubles) -> Doubles:
    """Optical densities (3, 2) of two stains with the unit vector perpendicular to both as a third column: (3, 3)."""
    third = np.cross(stains[:, 0], stains[:, 1])
    return np.column_stack([stains, third / np.linalg.norm(third)])


class MatchedSlide(Slide):
    """A slide shown in other colours; closes the slide that it wraps."""

    def __init__(self, slide: Slide, match: StainMatch) -> None:
        self.inner, self.match = slide, match
        for name in Slide.__annotations__:
            setattr(self, name, getattr(slide, name))

    def close(self) -> None:
        """See ``Slide.close``."""
        self.inner.close()

    def _fetch(self, level: int, box: Box) -> Pixels:
        return self.match(self.inner.read(level, box))


def match_to(view: SlideView, method: StainMethod, target: Mapping[str, Any]) -> StainMatch:
    """The change of colours that brings the slide of a view to the ``target``: one of ``target_stains``."""
    colours, what = tissue_colours(view), str(view.slide.path)
    match = StainMatch(method, fit_stains(colours, method, what=what), target)
    if "colours" not in target:
        return match
    known, changed = target["colours"], match._changed(colours[:, None])[:, 0]
    before, after = (round(colour_distance(colour_statistics(those), known), 3) for those in (colours, changed))
    return replace(match, shift=before, left=after)


def _lab(colours: AnyArray) -> AnyArray:
    """Colours (…, 3), 0 to 255, in torchstain's LAB, black at (0, 128, 128), white at (255, 128, 128): (n, 1, 3)."""
    _torchstain()
    from torchstain.numpy.utils.rgb2lab import rgb2lab

    found: AnyArray = rgb2lab(colours.reshape(-1, 1, 3).astype(np.float32) / 255)
    return found


def colour_statistics(colours: Pixels) -> dict[str, list[Any]]:
    """Mean (3,) and covariance (3, 3) in CIELAB of colours (n, 3), as lists for JSON."""
    values = (_lab(colours).reshape(-1, 3).astype(np.float64) - _LAB_ZERO) * _LAB_UNIT
    return {"mean": values.mean(axis=0).round(4).tolist(), "covariance": np.cov(values.T).round(4).tolist()}


def colour_distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """How far two ``colour_statistics`` lie apart, in ΔE: the Wasserstein distance of two normal distributions.

    d² = |m₁ - m₂|² + tr(C₁ + C₂ - 2 (C₁^½ C₂ C₁^½)^½) (Dowson & Landau 1982). It serves for both methods, since neither
    changes all of what it looks at: Macenko's fit can take a pigment for a stain.
    """
    means = np.array(one["mean"]) - np.array(other["mean"])
    first, second = np.array(one["covariance"]), np.array(other["covariance"])
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    common = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    squared = float(means @ means + np.trace(first) + np.trace(second) - 2 * common)
    return float(np.sqrt(max(squared, 0.0)))


def target_stains(slides: Sequence[Pixels], method: StainMethod) -> dict[str, Any]:
    """The statistics (``fit_stains``) of the tissue colours of training slides, one array (n, 3) for each, together.

    "colours" are their ``colour_statistics``; "spread" is how far from them parts of the slides lie (nine of ten, and a
    quarter more, since parts are few). A part is a slide, or, of fewer than five, a fifth of each.

    Raises as ``fit_stains`` does.
    """
    every = np.concatenate(slides)
    whole, known = fit_stains(every, method, what="the training slides"), colour_statistics(every)
    parts = slides if len(slides) >= _PARTS else [part for one in slides for part in np.array_split(one, _PARTS)]
    shifts = [colour_distance(colour_statistics(part), known) for part in parts if len(part) >= _LEAST_PIXELS]
    if len(shifts) < _PARTS:
        return whole
    spread = _MARGIN * float(np.quantile(shifts, _WITHIN, method="higher"))
    return whole | {"colours": known, "spread": round(spread, 3)}


def matched(view: SlideView, match: StainMatch) -> SlideView:
    """The view in the colours of the target; parts of the slide that cannot be read are treated as before."""
    slide = view.slide
    if not match.needed:
        return view
    if isinstance(slide, FillingSlide):
        return replace(view, slide=FillingSlide(MatchedSlide(slide.inner, match)))
    return replace(view, slide=MatchedSlide(slide, match))


def unmatched(view: SlideView) -> SlideView:
    """The view in the slide's own colours."""
    slide = view.slide
    if isinstance(slide, FillingSlide) and isinstance(slide.inner, MatchedSlide):
        return replace(view, slide=FillingSlide(slide.inner.inner))
    return replace(view, slide=slide.inner) if isinstance(slide, MatchedSlide) else view


def _torchstain() -> Any:
    try:
        from torchstain.base import normalizers
    except Exception as error:  # a broken installation may raise anything
        reason = "" if isinstance(error, ModuleNotFoundError) else f" ({type(error).__name__}: {error})"
        raise UsageError(f"--stain-match needs torchstain{reason}", "pip install 'kin-cli[stain]'") from error
    return normalizers
