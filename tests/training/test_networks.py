"""Discriminator, projection head and VGG16 against published sizes and torch's own layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from kin_cli.errors import ModelError
from kin_cli.models.resnet import ResnetGenerator, ResnetSpec
from kin_cli.training.cut import feature_channels, official_layers
from kin_cli.training.networks import (
    ImagePool,
    PatchDiscriminator,
    PatchProjection,
    VggFeatures,
    encode,
    forward_with_features,
    frozen,
    initialise,
    random_places,
)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_discriminator_has_the_published_size_and_scores() -> None:
    # "[Network D] Total number of parameters : 2.765 M" in the official logs; 30×30 scores of 70-px patches at 256 px
    discriminator = PatchDiscriminator(64)
    assert parameters(discriminator) == 2_764_737
    assert PatchDiscriminator(8)(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)


def test_antialiased_discriminator_has_the_same_weights_and_halves_as_often() -> None:
    assert parameters(PatchDiscriminator(8, antialias=True)) == parameters(PatchDiscriminator(8))
    assert PatchDiscriminator(8, antialias=True)(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)


@pytest.mark.parametrize(
    ("antialias", "blocks", "layers"),
    # 0, 4, 8, 12, 16 is the default of the official CUT
    [(True, 9, (0, 4, 8, 12, 16)), (True, 2, (0, 4, 8, 12, 13)), (False, 6, (0, 4, 7, 10, 14))],
)
def test_official_layers(antialias: bool, blocks: int, layers: tuple[int, ...]) -> None:
    spec = ResnetSpec(width=4, blocks=blocks, antialias_down=antialias, antialias_up=antialias)
    generator = ResnetGenerator(spec)
    assert official_layers(generator) == layers
    assert feature_channels(generator, layers) == [3, 8, 16, 16, 16]


def test_features_are_those_of_the_layers_even_before_a_relu_in_place() -> None:
    generator = ResnetGenerator(ResnetSpec(width=4, blocks=1))
    x = torch.randn(2, 3, 32, 32)
    layers = (0, 2, 7, 10)  # 2 is a norm layer, which a ReLU in place follows
    out, features = forward_with_features(generator.model, x, layers=layers)
    torch.testing.assert_close(out, generator(x))
    assert features[1].min() < 0
    for kept, again in zip(features, encode(generator.model, x, layers=layers), strict=True):
        torch.testing.assert_close(kept, again)


def test_projection_takes_the_same_places_of_every_image_and_gives_unit_vectors() -> None:
    features = [torch.randn(2, 3, 8, 8), torch.randn(2, 5, 4, 4)]
    places = random_places(features, 20)
    assert [len(place.unique()) for place in places] == [20, 16]
    head = PatchProjection([3, 5], dim=7)
    projected = head(features, places)
    assert [p.shape for p in projected] == [(2, 20, 7), (2, 16, 7)]
    torch.testing.assert_close(projected[0].norm(dim=-1), torch.ones(2, 20))
    row, col = divmod(int(places[1][3]), 4)
    alone = nn.functional.normalize(head.heads[1](features[1][1, :, row, col]), dim=-1)
    torch.testing.assert_close(projected[1][1, 3], alone)


def test_vgg_has_the_published_size_and_channels() -> None:
    vgg = VggFeatures((12,))
    assert parameters(vgg) == 14_714_688  # convolutions of VGG16
    assert not any(p.requires_grad for p in vgg.parameters())
    small = VggFeatures((4, 7))
    features = small(torch.zeros(1, 3, 64, 64))
    assert [f.shape for f in features] == [(1, 256, 16, 16), (1, 512, 8, 8)]
    assert small.channels == (256, 512)


def test_vgg_takes_a_classifier_file_and_refuses_others(tmp_path: Path) -> None:
    vgg, other = VggFeatures((1,)), VggFeatures((1,))
    state = {**vgg.state_dict(), "classifier.0.weight": torch.zeros(2, 2)}
    torch.save(state, tmp_path / "vgg16.pth")
    other.load(tmp_path / "vgg16.pth")
    torch.testing.assert_close(other.features[0].weight, vgg.features[0].weight)
    torch.save({"features.0.weight": torch.zeros(3, 3)}, tmp_path / "bad.pth")
    with pytest.raises(ModelError, match=r"bad\.pth does not hold the weights of VGG16"):
        other.load(tmp_path / "bad.pth")
    with pytest.raises(ModelError, match=r"absent\.pth: no such file .*vgg16"):
        other.load(tmp_path / "absent.pth")


def test_frozen_lets_gradients_through_but_not_in() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 1)
    with frozen(second):
        out = second(first(torch.ones(1, 2)))
    out.sum().backward()
    assert first.weight.grad is not None
    assert second.weight.grad is None
    assert second.weight.requires_grad


@pytest.mark.parametrize(("kind", "gain", "std"), [("normal", 0.02, 0.02), ("xavier", 1.0, (2 / (16 * 96)) ** 0.5)])
def test_initialise_draws_the_asked_spread(kind: str, gain: float, std: float) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(32, 64, 4)
    initialise(layer, kind=kind, gain=gain)  # type: ignore[arg-type]
    assert layer.weight.std().item() == pytest.approx(std, rel=0.03)
    assert not layer.bias.any()


def test_pool_fills_and_then_returns_earlier_images_half_of_the_time() -> None:
    torch.manual_seed(0)
    pool = ImagePool(4)
    stored = [torch.full((1, 3, 2, 2), value / 127.5 - 1) for value in range(204)]
    for image in stored[:4]:
        assert torch.equal(pool.query(image), image)
    earlier = sum(not torch.equal(pool.query(image), image) for image in stored[4:])
    assert 75 <= earlier <= 125
    assert len(pool.images) == 4
    assert pool.images[0].dtype == torch.uint8
