"""FID: the distance against closed forms and SciPy's matrix root, the network against its published size and file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg

from kin_cli.errors import ModelError
from kin_cli.metrics.fid import (
    PUBLIC_FILE,
    BlockA,
    BlockE,
    FeatureExtractor,
    FeatureSums,
    InceptionV3,
    frechet_distance,
)


def sums(features: np.ndarray) -> FeatureSums:
    """Gathered in three parts."""
    gathered = FeatureSums(features.shape[1])
    for part in np.array_split(features, 3):
        gathered.add(part)
    return gathered


def exactly(mean: np.ndarray, root: np.ndarray) -> np.ndarray:
    """Samples whose mean is ``mean`` and whose unbiased covariance is root·rootᵀ, to rounding."""
    d = len(mean)
    drawn = np.random.default_rng(0).normal(size=(4 * d, d))
    drawn -= drawn.mean(axis=0)
    white = drawn @ np.linalg.inv(np.linalg.cholesky(np.cov(drawn, rowvar=False))).T
    return mean + white @ root.T


def test_equal_covariances_leave_the_distance_of_the_means() -> None:
    root = np.random.default_rng(1).normal(size=(12, 12))
    shift = np.linspace(-1, 2, 12)
    one, other = sums(exactly(np.zeros(12), root)), sums(exactly(shift, root))
    assert frechet_distance(one, other) == pytest.approx(shift @ shift)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


def test_diagonal_covariances_have_a_closed_form() -> None:
    first, second = np.linspace(0.5, 3, 9), np.linspace(4, 1, 9)
    one, other = sums(exactly(np.zeros(9), np.diag(first))), sums(exactly(np.ones(9), np.diag(second)))
    assert frechet_distance(one, other) == pytest.approx(9 + ((first - second) ** 2).sum())


@pytest.mark.parametrize(("d", "n", "m"), [(20, 300, 305), (40, 25, 31), (40, 31, 200)], ids=["many", "few", "mixed"])
def test_against_scipys_matrix_root(d: int, n: int, m: int) -> None:
    draws = np.random.default_rng(2)
    one, other = draws.normal(size=(n, d)) @ draws.normal(size=(d, d)), draws.gamma(2, size=(m, d))
    assert (sums(one).root is None, sums(other).root is None) == (n > d, m > d)
    np.testing.assert_allclose(sums(one).covariance, np.cov(one, rowvar=False), atol=1e-9)
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    # the root of a singular product does not exist in general; that of nearly the same one does
    cross = linalg.sqrtm((first + 1e-9 * np.eye(d)) @ (second + 1e-9 * np.eye(d))).real
    difference = one.mean(axis=0) - other.mean(axis=0)
    expected = difference @ difference + np.trace(first + second - 2 * cross)
    assert frechet_distance(sums(one), sums(other)) == pytest.approx(expected, rel=1e-4)


def test_too_few_to_have_a_covariance() -> None:
    one = FeatureSums(3)
    one.add(np.ones((1, 3)))
    assert math.isnan(frechet_distance(one, sums(np.eye(3))))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The public file's layout with random weights, running statistics that are not trivial among them."""
    torch.manual_seed(0)
    network = InceptionV3()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    file = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(network.state_dict(), file)
    return file


def test_the_network_has_the_published_size() -> None:
    """torchvision's InceptionV3 without its auxiliary head has 23,834,568 weights; 1008 classes add 8 × 2049."""
    with torch.device("meta"):
        network = InceptionV3()
    assert sum(parameter.numel() for parameter in network.parameters()) == 23_834_568 + 8 * 2049
    state = network.state_dict()
    assert len(state) == 566
    assert len([name for name in state if not name.endswith("num_batches_tracked")]) == 472
    assert state["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape == (384, 384, 3, 1)
    assert state["Mixed_6c.branch7x7dbl_4.conv.weight"].shape == (160, 160, 7, 1)
    # what the public file has beyond these floats is the container of its 566 entries
    assert 0 < 95_628_359 - 4 * sum(value.numel() for value in state.values() if value.is_floating_point()) < 100_000


def test_the_layers_have_the_sizes_of_the_paper() -> None:
    """Table 1 of Szegedy et al.: 299 → 149 → 147 → 147 → 73 → 71 → 35 → 17 → 8."""
    with torch.device("meta"):
        network, picture = InceptionV3().eval(), torch.zeros(1, 3, 299, 299)
    sides = {}
    for name, module in network.named_children():
        if name != "fc":
            module.register_forward_hook(lambda _m, _i, out, name=name: sides.update({name: tuple(out.shape[1:])}))
    assert network(picture).shape == (1, 2048)
    assert [sides[name][1] for name in sides if name.startswith("Conv")] == [149, 147, 147, 73, 71]
    assert [sides[f"Mixed_{name}"] for name in ("5b", "5d", "6a", "6e", "7a", "7c")] == [
        (256, 35, 35),
        (288, 35, 35),
        (768, 17, 17),
        (768, 17, 17),
        (1280, 8, 8),
        (2048, 8, 8),
    ]


def test_the_pools_are_those_of_the_2015_network() -> None:
    """Padding is left out of the means, so that a constant picture stays one; the last block takes maxima."""
    torch.manual_seed(0)
    mean, last = BlockE(8, maximum=False).eval(), BlockE(8, maximum=True).eval()
    constant, random = torch.ones(1, 8, 5, 5), torch.rand(1, 8, 5, 5)
    pooled = mean(constant)[:, -192:]
    assert torch.allclose(pooled, pooled[:, :, :1, :1].expand_as(pooled))
    first = BlockA(8, pooled=16).eval()
    pooled = first(constant)[:, -16:]
    assert torch.allclose(pooled, pooled[:, :, :1, :1].expand_as(pooled))
    windows = torch.nn.functional.pad(random, (1, 1, 1, 1), value=-1).unfold(2, 3, 1).unfold(3, 3, 1)
    assert torch.allclose(last(random)[:, -192:], last.branch_pool(windows.amax(dim=(-2, -1))))


def test_features_do_not_depend_on_the_batch(weights: Path) -> None:
    extractor = FeatureExtractor(weights)
    tiles = list(np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), np.uint8))
    together = extractor.features(tiles)
    assert together.shape == (3, 2048)
    assert (together >= 0).all()  # means of maxima with 0
    np.testing.assert_allclose(together[1:2], extractor.features(tiles[1:2]), rtol=1e-4, atol=1e-5)
    assert not extractor.public


def test_files_without_counters_are_the_same_network(weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    short = tmp_path / "short.pth"
    torch.save({name: value for name, value in state.items() if "num_batches" not in name}, short)
    tile = [np.full((80, 80, 3), 128, np.uint8)]
    np.testing.assert_array_equal(FeatureExtractor(short).features(tile), FeatureExtractor(weights).features(tile))


class Runs:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


def test_other_files_are_refused_by_name(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.load(weights, weights_only=True)
    files = {name: tmp_path / f"{name}.pth" for name in ("missing", "text", "code", "tensor", "part", "shape")}
    files["text"].write_text("weights")
    torch.save({"fc.weight": Runs()}, files["code"])
    torch.save(torch.zeros(3), files["tensor"])
    torch.save({name: value for name, value in state.items() if "Mixed_7c" not in name}, files["part"])
    torch.save({**state, "fc.bias": torch.zeros(1000)}, files["shape"])
    for file in (*files.values(), tmp_path):
        with pytest.raises(ModelError, match=file.name) as raised:
            FeatureExtractor(file)
        assert PUBLIC_FILE in str(raised.value)
    assert "executed" not in capsys.readouterr().out
