"""NIQE against the published definition, SciPy and Pillow; models in and out of files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import io, stats

from kin_cli.errors import InputError, ModelError
from kin_cli.geometry import Pixels
from kin_cli.metrics.niqe import Niqe, NiqeModel, NiqeOfAuthors, asymmetric_gaussian, load_niqe_model
from kin_cli.metrics.piqe import grey
from tests.helpers.pictures import blurred, mscn_coefficients, noisy, padded


@pytest.mark.parametrize("shape", [0.6, 1.0, 2.0, 3.5])
def test_the_asymmetric_gaussian_finds_what_scipy_draws(shape: float) -> None:
    drawn = stats.gennorm.rvs(shape, size=(2, 200_000), random_state=1)
    skewed = np.where(drawn < 0, 0.5 * drawn, drawn)
    # the sides of a two-sided fit have as many values as their scale
    skewed[1] = np.where(np.random.default_rng(0).random(200_000) < 1 / 3, -0.5, 1.0) * np.abs(drawn[1])
    fit = asymmetric_gaussian(np.stack([drawn[0], skewed[1]]))
    np.testing.assert_allclose(fit.shape, shape, rtol=0.03)
    np.testing.assert_allclose([fit.left[0], fit.right[0], fit.right[1]], 1, rtol=0.05)
    np.testing.assert_allclose(fit.left[1], 0.5, rtol=0.05)
    np.testing.assert_allclose(fit.mean, [0, skewed[1].mean()], atol=0.02)


def test_halving_is_pillows_bicubic(large_tissue: Pixels) -> None:
    values = grey(large_tissue)
    image = Image.fromarray(values.astype(np.float32), "F").resize((480, 336), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(Niqe()._halved(values), np.array(image)[2:-2, 2:-2], atol=0.01)
    means = np.array(Image.fromarray(values.astype(np.float32), "F").reduce(2))
    np.testing.assert_allclose(NiqeOfAuthors()._halved(values), means[2:-2, 2:-2], atol=0.01)


def features_of(pixels: Pixels, metric: Niqe, *, step: int) -> np.ndarray:
    framed = padded(pixels, 16)
    found = []
    for y in range(0, pixels.shape[0], step):
        for x in range(0, pixels.shape[1], step):
            part = metric.measure(framed[y : y + step + 32, x : x + step + 32])
            metric.add(part)
            found.append(part[0])
    return np.concatenate(found)


def test_features_are_those_of_the_patches(large_tissue: Pixels) -> None:
    """The 18 numbers of a patch at full size, from SciPy's MSCN coefficients."""
    patch = mscn_coefficients(large_tissue)[96:192, 192:288]
    expected = []
    for shift in (None, (0, 1), (1, 0), (1, 1), (-1, 1)):
        values = patch if shift is None else patch * np.roll(patch, shift, (0, 1))
        left, right = (np.sqrt((side**2).mean()) for side in (values[values < 0], values[values > 0]))
        shapes = np.arange(0.2, 10.001, 0.001)
        gamma = [np.exp(np.vectorize(math.lgamma)(order / shapes)) for order in (1, 2, 3)]
        skew, ratio = left / right, np.abs(values).mean() ** 2 / (values**2).mean()
        ratio *= (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
        best = np.argmin((gamma[1] ** 2 / (gamma[0] * gamma[2]) - ratio) ** 2)
        scale = np.sqrt(gamma[0][best] / gamma[2][best])
        centre = scale * (right - left) * gamma[1][best] / gamma[0][best]
        expected += [shapes[best], scale * (left + right) / 2] if shift is None else []
        expected += [] if shift is None else [shapes[best], centre, scale * left, scale * right]
    found = features_of(large_tissue, Niqe(), step=96)[10 + 2]
    np.testing.assert_allclose(found[:18], expected, rtol=1e-6, atol=1e-9)
    doubled = features_of(large_tissue, NiqeOfAuthors(), step=96)[10 + 2]
    np.testing.assert_allclose(doubled[[13, 17]], doubled[[12, 16]])
    np.testing.assert_allclose(np.delete(doubled[:18], [13, 17]), np.delete(found[:18], [13, 17]))


def test_niqe_rises_with_blur_and_noise_and_does_not_depend_on_the_cut(large_tissue: Pixels) -> None:
    pristine = Niqe()
    features = features_of(large_tissue, pristine, step=96)
    model = NiqeModel(features.mean(axis=0), np.cov(features, rowvar=False), "this picture")
    scores = []
    for changed in (large_tissue, blurred(large_tissue, 2), noisy(large_tissue, 25)):
        metric = Niqe()
        features_of(changed, metric, step=96)
        scores.append(metric.values(model)["niqe"])
    assert scores[0] == pytest.approx(0, abs=1e-6)
    assert min(scores[1:]) > 1
    rows = Niqe()
    framed = padded(large_tissue, 16)
    for y in (0, 288):
        rows.add(rows.measure(framed[y : y + (288 if y == 0 else 384) + 32]))
    whole = Niqe()
    whole.add(whole.measure(framed))
    assert rows.values(model) == pytest.approx(whole.values(model), abs=1e-6)


def test_flat_patches_are_counted_not_scored(large_tissue: Pixels) -> None:
    half_background = large_tissue.copy()
    half_background[:, :480] = 240
    metric = Niqe()
    features = features_of(half_background, metric, step=96)
    model = NiqeModel(np.zeros(36), np.eye(36), "unit")
    values = metric.values(model)
    assert values["niqe_patches"] + values["niqe_flat_patches"] == len(features) == 70
    assert values["niqe_flat_patches"] >= 28
    assert math.isfinite(values["niqe"])
    assert math.isnan(Niqe().values(model)["niqe"])


def test_a_model_is_fitted_to_sharp_patches_only() -> None:
    draws = np.random.default_rng(2)
    metric = Niqe()
    features, sharpness = draws.normal(size=(300, 36)), np.linspace(1, 2, 300)
    metric.add((features, sharpness))
    model = metric.fitted("drawn")
    chosen = features[sharpness > 0.75 * np.percentile(sharpness, 99)]
    np.testing.assert_allclose(model.mean, chosen.mean(axis=0))
    assert model.origin == f"fitted to {len(chosen)} patches of drawn"
    with pytest.raises(InputError, match="only 0 sharp patches"):
        Niqe().fitted("nothing")


def test_distance_is_a_mahalanobis_distance() -> None:
    draws = np.random.default_rng(4)
    features = draws.normal(size=(500, 36)) + 0.3
    model = NiqeModel(np.zeros(36), 2 * np.eye(36), "made up")
    spread = np.linalg.inv((2 * np.eye(36) + np.cov(features.T)) / 2)
    from scipy.spatial.distance import mahalanobis

    assert model.distance(features) == pytest.approx(mahalanobis(features.mean(axis=0), np.zeros(36), spread))


@pytest.mark.parametrize("names", [("mu_prisparam", "cov_prisparam"), ("pop_mu", "pop_cov"), ("mean", "covariance")])
@pytest.mark.parametrize("suffix", [".mat", ".npz"])
def test_models_are_read(tmp_path: Path, names: tuple[str, str], suffix: str) -> None:
    file = tmp_path / f"model{suffix}"
    values = dict(zip(names, (np.arange(36.0)[None], np.eye(36)), strict=True))
    if suffix == ".mat":
        io.savemat(file, values)
    else:
        np.savez(file, **values)
    model = load_niqe_model(file)
    assert model.mean.tolist() == list(range(36))
    assert (model.covariance == np.eye(36)).all()
    assert model.origin.startswith(file.name)


def test_what_is_no_model_is_refused_by_name(tmp_path: Path) -> None:
    missing, text, other, narrow = (tmp_path / name for name in ("a.mat", "b.mat", "c.npz", "d.npz"))
    text.write_text("mean")
    np.savez(other, weights=np.zeros(3))
    np.savez(narrow, mean=np.zeros(18), covariance=np.eye(18))
    cut = tmp_path / "e.npz"
    cut.write_bytes(other.read_bytes()[:60])
    for file in (missing, text, other, narrow, cut, tmp_path):
        with pytest.raises(ModelError, match=file.name):
            load_niqe_model(file)
