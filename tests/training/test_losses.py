"""Losses against their definitions, written as loops."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kin_cli.errors import UsageError
from kin_cli.training.losses import (
    correlation_map,
    lsgan_discriminator,
    lsgan_generator,
    map_contrast,
    patch_nce,
    spatial_correlation,
)
from kin_cli.training.settings import LsesimLosses, Schedule


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def cross_entropy(logits: list[float], positive: int) -> float:
    return math.log(sum(math.exp(v) for v in logits)) - logits[positive]


def test_lsgan_by_hand() -> None:
    real, fake = torch.tensor([1.0, 0.5]), torch.tensor([0.25, 0.75])
    assert lsgan_generator(fake).item() == pytest.approx((0.75**2 + 0.25**2) / 2)
    expected = 0.5 * (0.5**2 / 2 + (0.25**2 + 0.75**2) / 2)
    assert lsgan_discriminator(real, fake).item() == pytest.approx(expected)


def test_patch_nce_is_a_loop_over_images_and_places() -> None:
    layers = [(unit(2, 5, 8, seed=s), unit(2, 5, 8, seed=s + 10)) for s in range(3)]
    losses = []
    for queries, keys in layers:
        for image in range(2):
            for place in range(5):
                logits = [float(queries[image, place] @ keys[image, other]) / 0.07 for other in range(5)]
                losses.append(cross_entropy(logits, place))
    found = patch_nce([q for q, _ in layers], [k for _, k in layers], tau=0.07)
    assert found.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_patch_nce_gives_keys_no_gradient() -> None:
    query, key = unit(1, 4, 6).requires_grad_(), unit(1, 4, 6, seed=1).requires_grad_()
    patch_nce([query], [key], tau=0.07).backward()
    assert key.grad is None
    assert query.grad is not None
    assert query.grad.abs().sum() > 0


@pytest.mark.parametrize("window", [3, 4, 9])
def test_correlation_map_is_a_loop_over_a_square_inside_the_map(window: int) -> None:
    features = torch.randn(2, 4, 6, 7, generator=torch.Generator().manual_seed(3))
    places = torch.tensor([0, 6, 17, 24, 41])
    found = correlation_map(features, places, window=window)
    centred = features - features.mean((2, 3), keepdim=True)
    for image in range(2):
        for number, place in enumerate(places.tolist()):
            row, col = divmod(place, 7)
            if window >= 6:
                rows, cols = range(6), range(7)
            else:
                top, left = min(max(row - window // 2, 0), 6 - window), min(max(col - window // 2, 0), 7 - window)
                rows, cols = range(top, top + window), range(left, left + window)
            query = centred[image, :, row, col]
            expected = [float(F.cosine_similarity(query, centred[image, :, r, c], dim=0)) for r in rows for c in cols]
            torch.testing.assert_close(found[image, number], torch.tensor(expected), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("strongest", [1.0, 0.5])
def test_spatial_correlation_is_one_minus_the_cosine_of_maps(strongest: float) -> None:
    source, translated = torch.randn(2, 3, 2, 8, generator=torch.Generator().manual_seed(4)).unbind(1)[:2]
    losses = []
    for a, b in zip(source.flatten(0, -2), translated.flatten(0, -2), strict=True):
        kept = sorted(range(8), key=lambda i, a=a: -float(a[i]))[: round(strongest * 8)]
        dot = sum(float(a[i] * b[i]) for i in kept)
        norms = math.sqrt(sum(float(a[i]) ** 2 for i in kept)) * math.sqrt(sum(float(b[i]) ** 2 for i in kept))
        losses.append(1 - dot / norms)
    found = spatial_correlation(source, translated, strongest=strongest)
    assert found.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_spatial_correlation_ignores_colour_and_sees_structure() -> None:
    features = torch.randn(1, 8, 12, 12, generator=torch.Generator().manual_seed(5))
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(6)))[0]
    recoloured = torch.einsum("dc,bchw->bdhw", rotation, features)
    places = torch.arange(0, 144, 7)
    maps = [correlation_map(x, places, window=5) for x in (features, recoloured, features.flip(2))]
    assert spatial_correlation(maps[0], maps[1]).item() < 1e-5
    assert spatial_correlation(maps[0], maps[2]).item() > 0.1


def test_map_contrast_is_a_loop() -> None:
    first, second, other = (torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(s)) for s in (7, 8, 9))
    losses = []
    for image in range(2):
        a, b, c = (F.normalize(x[image], dim=-1) for x in (first, second, other))
        for place in range(3):
            logits = [float(a[place] @ b[j]) / 0.07 for j in range(3)]
            logits += [float(a[place] @ c[j]) / 0.07 for j in range(3)]
            logits += [float(b[place] @ c[j]) / 0.07 for j in range(3)]
            losses.append(cross_entropy(logits, place))
    found = map_contrast(first, second, other=other, tau=0.07)
    assert found.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_learning_rate_is_constant_and_then_falls_to_zero() -> None:
    schedule = Schedule(lr=1.0, decay_fraction=0.5)
    assert [schedule.rate(step, 8) for step in range(8)] == [1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert Schedule(lr=3.0, decay_fraction=0.0).rate(7, 8) == 3.0


def test_lsesim_without_weights_is_refused_unless_asked_for() -> None:
    with pytest.raises(UsageError, match="no weights were named"):
        LsesimLosses()
    assert LsesimLosses(random_features=True).learned
    assert LsesimLosses(vgg=Path("vgg16.pth")).layers == (4, 7)
