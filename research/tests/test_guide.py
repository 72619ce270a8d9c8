"""What is painted from a guide: counterstain, and DAB where and as densely as an aligned guide has it."""

from __future__ import annotations

import math

import numpy as np
import torch
from dab import dab_density
from guide import aligned_target, dab_densities, haematoxylin_target, known
from torch import Tensor

BROWN, WHITE = (70, 40, 20), (251, 251, 251)
PURPLE, PINK = (80, 50, 140), (225, 160, 205)


def image(colour: tuple[int, int, int], side: int = 128) -> Tensor:
    levels = torch.tensor(colour, dtype=torch.float32)[None, :, None, None].expand(1, 3, side, side)
    return levels.clone() / 127.5 - 1.0


def noise(side: int, seed: int) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2.0 - 1.0


def test_haematoxylin_target_is_blue_for_nuclei_and_pale_for_the_rest() -> None:
    # typical colours of an H&E slide: nucleus, eosinophilic stroma, background
    colours = torch.tensor([[70.0, 50.0, 120.0], [225.0, 170.0, 200.0], [243.0, 243.0, 243.0]])
    painted = haematoxylin_target((colours / 127.5 - 1).view(1, 3, 3, 1).transpose(1, 2))
    nucleus, stroma, background = ((painted + 1) * 127.5)[0, :, :, 0].T
    assert nucleus[2] > nucleus[0] + 40
    assert nucleus.max() < 230
    assert stroma.min() > 215
    assert background.min() > 245


def test_densities_are_those_of_the_metric() -> None:
    pixels = np.random.default_rng(0).integers(1, 256, (1, 16, 16, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    expected = np.maximum(dab_density(pixels, white=251.0) * math.log(10.0), 0.0)
    np.testing.assert_allclose(dab_densities(images)[:, 0].numpy(), expected, atol=2e-4)


def test_black_is_unknown() -> None:
    guide = image(WHITE)
    guide[..., 64:] = -1.0
    assert known(guide)[..., :64].all()
    assert not known(guide)[..., 64:].any()


def test_without_brown_the_target_is_the_counterstain() -> None:
    source = noise(128, 3)
    painted = aligned_target(source, image(WHITE).expand(2, -1, -1, -1))
    assert torch.allclose(painted, haematoxylin_target(source), atol=1e-6)


def test_an_aligned_guide_is_painted_to_the_pixel() -> None:
    source, guide = image(PINK), image(WHITE)
    source[..., 24:40, 24:40] = image(PURPLE, 16)
    source[..., 88:104, 88:104] = image(PURPLE, 16)
    source[..., 60:68] = image(WHITE)[..., 60:68]  # a gap
    guide[..., :50] = image(BROWN)[..., :50]
    guide[..., 110:, :] = -1.0  # unknown
    dab = dab_densities(aligned_target(source, guide))[0, 0]
    dense = dab_densities(image(BROWN))[0, 0, 0, 0]
    assert dab[60, 49] > 0.4 * dense
    assert dab[60, 50] < 0.2
    assert dab[32, 32] < 0.7 * dab[60, 32]
    assert dab[60, 64] < 0.1
    assert dab[120, 10] < 0.2
    nucleus = aligned_target(source, guide)[0, :, 96, 96]
    assert nucleus[2] > nucleus[0]
