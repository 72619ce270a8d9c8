"""The three ResNet generators against the authors' outputs, the official keys and PyTorch's own operators."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from kin_cli.models.architectures import Spec, build
from kin_cli.models.checkpoint import load_generator
from kin_cli.models.resnet import BlurDownsample, BlurUpsample, ResnetGenerator, ResnetSpec, UrustGenerator, UrustSpec

PATCH = 128


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("cut", ResnetSpec(12, antialias_down=True, antialias_up=True)),
        ("cyclegan", ResnetSpec(12)),
        ("urust", UrustSpec(12)),
    ],
)
def test_output_equals_the_authors_within_one_grey_level(shared_reference: Path, name: str, spec: Spec) -> None:
    generator = load_generator(shared_reference / f"{name}.pth")
    assert generator.spec == spec
    assert (generator.norm_layers, generator.channels, generator.stride) == (23, 984, 4)
    source = np.asarray(Image.open(shared_reference / "input.png"))
    expected = np.asarray(Image.open(shared_reference / f"{name}_in.png"))
    for top in range(0, source.shape[0], PATCH):
        for left in range(0, source.shape[1], PATCH):
            window = np.s_[top : top + PATCH, left : left + PATCH]
            x = torch.tensor(source[window]).permute(2, 0, 1)[None] / 127.5 - 1
            with torch.inference_mode():
                y = (generator.module(x)[0] * 0.5 + 0.5).clamp(0, 1) * 255 + 0.5
            translated = y.permute(1, 2, 0).numpy().astype(np.uint8)
            np.testing.assert_allclose(translated.astype(int), expected[window].astype(int), atol=1)


@pytest.mark.parametrize(
    ("spec", "present", "tensors"),
    [
        (ResnetSpec(4, 9), {"model.10.conv_block.5.bias", "model.18.conv_block.1.weight", "model.26.weight"}, 48),
        (ResnetSpec(4, 6), {"model.15.conv_block.5.bias", "model.16.weight", "model.23.weight"}, 36),
        (
            ResnetSpec(4, 9, antialias_down=True, antialias_up=True),
            {"model.7.filt", "model.11.filt", "model.21.filt", "model.25.filt", "model.30.weight"},
            52,
        ),
        (ResnetSpec(4, 9, antialias_down=True), {"model.7.filt", "model.21.weight", "model.28.bias"}, 50),
        (ResnetSpec(4, 9, antialias_up=True), {"model.19.filt", "model.23.filt", "model.28.bias"}, 50),
        (ResnetSpec(4, 9, dropout=True), {"model.10.conv_block.6.weight"}, 48),
        (ResnetSpec(4, 9, affine=True), {"model.2.weight", "model.10.conv_block.6.bias", "model.23.weight"}, 94),
        (ResnetSpec(4, 9, bias=False), {"model.1.weight", "model.26.bias"}, 25),
        (UrustSpec(4, 9), {"downsampleblock2.downsample.conv.bias", "upsampleblock5.upsample.model.1.weight"}, 56),
        (UrustSpec(4, 9, affine=True), {"block1.1.weight", "upsampleblock6.instancenorm.bias"}, 102),
    ],
)
def test_keys_are_the_official_ones(spec: Spec, present: set[str], tensors: int) -> None:
    keys = build(spec).state_dict().keys()
    assert present <= keys
    assert len(keys) == tensors


@pytest.mark.parametrize(
    ("spec", "gigaflop"),
    [(ResnetSpec(antialias_down=True, antialias_up=True), 510), (ResnetSpec(), 400), (UrustSpec(), 620)],
)
def test_work_per_patch_is_that_of_the_design(spec: Spec, gigaflop: float) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        translated = build(spec)(torch.empty(1, 3, 512, 512))
    assert translated.shape == (1, 3, 512, 512)
    assert counter.get_total_flops() / 1e9 == pytest.approx(gigaflop, rel=0.02)


def test_blur_upsampling_equals_the_transposed_convolution_with_its_filter() -> None:
    blur = BlurUpsample(5)
    x = torch.randn(2, 5, 6, 9)
    doubled = F.conv_transpose2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), blur.filt, stride=2, padding=2, groups=5)
    torch.testing.assert_close(blur(x), doubled[:, :, 1:-1, 1:-1])


def test_blur_downsampling_keeps_a_linear_ramp_inside() -> None:
    ramp = torch.arange(16.0).expand(1, 3, 12, 16)
    halved = BlurDownsample(3)(ramp)
    torch.testing.assert_close(halved[..., 1:], ramp[:, :, ::2, 2::2])


@pytest.mark.parametrize("generator", [ResnetGenerator(ResnetSpec(1, 1)), UrustGenerator(UrustSpec(1, 1))])
@pytest.mark.parametrize("size", [(64, 66), (63, 64)])
def test_sizes_that_would_not_come_back_are_refused(generator: torch.nn.Module, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        generator(torch.zeros(1, 3, *size))


@pytest.mark.parametrize("spec", [ResnetSpec(2, 1, dropout=True), UrustSpec(2, 1)])
def test_gradients_reach_every_parameter(spec: Spec) -> None:
    generator = build(spec)
    generator(torch.randn(1, 3, 16, 24)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())
