"""The model of training statistics: against SciPy's distances and distributions, and in a generator's file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import stats as statistics
from scipy.spatial.distance import mahalanobis

from kin_cli.errors import ModelError
from kin_cli.models.checkpoint import load_generator
from kin_cli.models.reference import (
    Reference,
    ReferenceCard,
    Tail,
    fit_group,
    fit_reference,
    group_bounds,
    read_reference,
    to_tensors,
    with_reference,
)
from kin_cli.models.resnet import ResnetGenerator, ResnetSpec
from kin_cli.models.weights import REFERENCE_PREFIX
from tests.helpers.generators import TINY, write_generator

CHANNELS = [4, 8, 16, 16, 16, 16, 16, 8, 4]


def drawn(count: int, seed: int, *, shift: float = 0.0) -> np.ndarray:
    """Statistics (n, 2, ΣC) of patches, correlated, as those of a network are; ``shift`` moves one small direction."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).normal(size=(12, 2 * sum(CHANNELS))) * 0.05
    mixing[3:, [*range(4), *range(sum(CHANNELS), sum(CHANNELS) + 4)]] = 0  # the first layer varies in three directions
    x = rng.normal(size=(count, 12)) @ mixing + 0.01 * rng.normal(size=(count, 2 * sum(CHANNELS)))
    x[:, 0] += shift
    half = sum(CHANNELS)
    return np.stack([x[:, :half], np.exp(x[:, half:])], axis=1).astype(np.float32)


def reference(count: int = 400) -> Reference:
    return fit_reference(drawn(count, 1), np.arange(count) % 5, CHANNELS, ReferenceCard(64, count, ("a.tif",), 0.25))


def test_groups_are_the_first_layer_the_widening_ones_and_the_rest() -> None:
    assert group_bounds(CHANNELS) == [("colour", 0, 4), ("grain", 0, 4), ("sharpness", 4, 28), ("structure", 28, 104)]
    assert [name for name, *_ in group_bounds([8])] == ["colour", "grain"]
    wide = group_bounds([64, 128, 256] + [256] * 18 + [128, 64])
    assert wide == [("colour", 0, 64), ("grain", 0, 64), ("sharpness", 64, 448), ("structure", 448, 5248)]


def test_with_all_directions_the_distance_is_that_of_mahalanobis() -> None:
    stats = drawn(600, 2)
    group = fit_group(stats, "structure", 0, 4)
    assert len(group.directions) == 8
    x = group.features(stats)
    inverse = np.linalg.inv(np.cov(x.T))
    expected = [2 * np.log(mahalanobis(row, x.mean(axis=0), inverse)) for row in x[:50]]
    np.testing.assert_allclose(group.score(stats[:50]), expected, atol=0.02)


def test_percentiles_of_patches_like_the_training_are_uniform() -> None:
    found = reference().scores(drawn(1000, 3))
    assert statistics.kstest(found.percentile, "uniform").statistic < 0.12
    assert (found.percentile < 0.01).mean() < 0.03


def test_in_matched_colours_only_the_finest_directions_of_the_grain_count_less() -> None:
    # A shift among directions that hold almost nothing: compression, or a small error of the match
    rng = np.random.default_rng(7)
    mixing = rng.lognormal(0, 1, (3, 16))

    def made(count: int, wrong: float = 0.0) -> np.ndarray:
        variances = rng.dirichlet([1] * 3, count) @ mixing
        variances *= 1 + 1e-3 * rng.normal(size=variances.shape) + wrong * np.resize([1, -1], 16)
        return np.stack([np.zeros_like(variances), np.sqrt(variances)], axis=1).astype(np.float32)

    known = fit_reference(made(400), np.arange(400) % 5, [16], ReferenceCard(64, 400, (), 0.25))
    usual, odd = (made(200, wrong) for wrong in (0.0, 0.003))
    assert np.median(known.scores(odd).percentile) < 0.01
    assert np.median(known.scores(odd, matched=True).percentile) > 0.05
    for matched in (False, True):
        assert np.median(known.scores(usual, matched=matched).percentile) > 0.3
        far = usual.copy()
        far[:, 1] *= 1.5
        assert np.median(known.scores(far, matched=matched).percentile) < 0.01


def test_a_shift_along_a_direction_of_small_variance_is_found_and_named() -> None:
    known, usual = reference(), drawn(200, 4)
    odd = known.scores(drawn(200, 4, shift=0.1))
    assert np.median(odd.percentile) < 0.01
    assert (odd.group == 0).all()
    assert np.median(known.scores(usual).percentile) > 0.3


def test_the_tail_is_the_empirical_distribution_and_goes_on_beyond_it() -> None:
    scores = np.random.default_rng(5).normal(size=5000)
    tail = Tail.of(scores)
    at = np.array([-1.0, 0.0, 1.0])
    np.testing.assert_allclose(tail.fraction_beyond(at), statistics.norm.sf(at), atol=0.02)
    far = tail.fraction_beyond(np.array([3.0, 5.0, 50.0, 1e6]))
    assert (np.diff(far) <= 0).all()
    assert 0 < far[-1] < far[0] < 0.01


def test_a_shift_that_comes_from_the_precision_is_taken_off() -> None:
    stats = drawn(300, 1)
    rounded = stats[:8].copy()
    rounded[:, 0, 0] += 0.2
    known = fit_reference(
        stats, np.arange(300) % 5, CHANNELS, ReferenceCard(64, 300, (), 0.25), rounded={"bf16": (stats[:8], rounded)}
    )
    moved = drawn(100, 6)
    moved[:, 0, 0] += 0.2
    assert np.median(known.scores(moved, precision="bf16").percentile) > 0.3
    assert np.median(known.scores(moved).percentile) < 0.01


@pytest.fixture
def generator(tmp_path: Path) -> Path:
    """A safetensors generator with metadata of its own."""
    torch.manual_seed(0)
    module = ResnetGenerator(TINY)
    save_file(dict(module.state_dict()), tmp_path / "g.safetensors", metadata={"mpp": "0.5", "credit": "µ"})
    return tmp_path / "g.safetensors"


def known(generator: Path) -> Reference:
    channels = [m.num_features for m in load_generator(generator).module.modules() if hasattr(m, "num_features")]
    stats = np.abs(np.random.default_rng(0).normal(1, 0.1, (100, 2, sum(channels)))).astype(np.float32)
    return fit_reference(stats, np.arange(100) % 5, channels, ReferenceCard(64, 100, ("ä.tif",), 0.25, mpp=0.5))


def test_a_reference_in_a_file_changes_neither_weights_nor_metadata(generator: Path) -> None:
    found = known(generator)
    plain = load_generator(generator)
    content = with_reference(generator, found)
    other = generator.with_name("h.safetensors")
    other.write_bytes(content)
    assert with_reference(other, found) == content  # in place of an earlier one
    again, read = load_generator(other), read_reference(other, plain.channels)
    assert again.metadata == plain.metadata
    assert again.module.state_dict().keys() == plain.module.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(again.module.parameters(), plain.module.parameters(), strict=True))
    assert read is not None
    assert read.card == found.card
    stats = np.full((3, 2, plain.channels), 1.02, np.float32)
    np.testing.assert_array_equal(read.scores(stats).percentile, found.scores(stats).percentile)


def test_a_reference_is_smaller_than_a_megabyte_also_for_the_largest_generator() -> None:
    spec = ResnetSpec(width=64, blocks=9)
    channels = [64, 128, 256] + [256] * 2 * spec.blocks + [128, 64]
    stats = np.abs(np.random.default_rng(0).normal(1, 0.1, (60, 2, sum(channels)))).astype(np.float32)
    offsets = dict.fromkeys(("bf16", "fp16"), (stats[:2], stats[:2]))
    found = fit_reference(
        stats.repeat(7, axis=0), np.arange(420) % 5, channels, ReferenceCard(512, 420, (), 0.25), rounded=offsets
    )
    assert sum(t.numel() * t.element_size() for t in to_tensors(found).values()) <= 1 << 20


def test_files_without_a_reference_have_none(generator: Path, tmp_path: Path) -> None:
    assert read_reference(generator) is None
    assert read_reference(write_generator(tmp_path / "g.pth")) is None


@pytest.mark.parametrize(
    "damage", ["card", "colour.mean", "grain.mean", "colour.scale", "plain.combined", "matched.tails"]
)
def test_a_damaged_reference_is_refused(generator: Path, damage: str) -> None:
    generator.write_bytes(with_reference(generator, known(generator)))
    tensors = load_file(generator)
    key = REFERENCE_PREFIX + damage
    if damage == "card":
        tensors[key] = tensors[key][:-9]
    elif damage == "plain.combined":
        del tensors[key]
    elif damage == "colour.scale":
        tensors[key] = torch.zeros_like(tensors[key])
    else:
        tensors[key] = tensors[key][..., :-1].contiguous()
    save_file(tensors, generator)
    with pytest.raises(ModelError, match="damaged"):
        read_reference(generator)


def test_a_reference_of_another_network_is_refused(generator: Path) -> None:
    generator.write_bytes(with_reference(generator, known(generator)))
    with pytest.raises(ModelError, match="another network"):
        read_reference(generator, 7)
