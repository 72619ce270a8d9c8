"""Guides: distances against loops over cells and shifts; what of a patch is background, and what pigment."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from skimage.color import combine_stains, rgb_from_hed
from torch import Tensor

from kin_cli.training.guidance import (
    Guidance,
    background,
    background_distance,
    density,
    guide_distances,
    pigment,
    pigment_distance,
)
from kin_cli.training.settings import GuidanceSettings

CELL, SHIFT = 8, 12


def blobs(side: int, seed: int) -> Tensor:
    """An image (1, 3, side, side) in [-1, 1] of smooth blobs, each channel with some of its own."""
    noise = np.random.default_rng(seed).normal(size=(4, side, side))
    smooth = ndimage.gaussian_filter(noise, (0, 6, 6))
    smooth /= smooth.std()
    grey = 0.1 * smooth[1:] + 0.5 * smooth[:1]
    return torch.from_numpy(np.clip(grey - 0.1, -0.9, 0.9))[None].float()


def mean_density(image: np.ndarray, y: int, x: int) -> np.ndarray:
    """Of one cell of an image (3, h, w)."""
    grey = np.clip(image[:, y : y + CELL, x : x + CELL] * 0.5 + 0.5, 0.03, 1.0)
    return -np.log(grey).mean((1, 2))


def test_a_guide_is_compared_at_the_shift_where_it_lies() -> None:
    wide = blobs(64 + 2 * SHIFT, 0)
    other = blobs(64, 5)
    for dy, dx in ((0, 0), (12, -12), (-8, 4)):
        top, left = SHIFT + dy, SHIFT + dx
        source = wide[..., top : top + 64, left : left + 64]
        assert guide_distance(source, source, wide, cell=CELL) == pytest.approx(0, abs=1e-6)
        # another translation of the same structure: the distance is that of the densities, cell by cell
        fake = (0.8 * source + 0.1 * other).clamp(-1, 1)
        cells = range(0, 64 - CELL + 1, CELL // 2)
        apart = np.mean(
            [
                abs(mean_density(fake[0].numpy(), y, x) - mean_density(source[0].numpy(), y, x))
                for y in cells
                for x in cells
            ]
        )
        found = float(guide_distance(source, fake, wide, cell=CELL))
        correlations = [np.corrcoef(*(ndimage_cells(image) for image in (one, source)))[0, 1] for one in (source, fake)]
        assert found == pytest.approx(apart * np.mean(correlations), rel=1e-3)


def guide_distance(source: Tensor, fake: Tensor, guide: Tensor, *, cell: int) -> Tensor:
    """The distance place by place."""
    return guide_distances(source, fake, guide, cell=cell)[0]


def ndimage_cells(image: Tensor) -> np.ndarray:
    """Mean density of all channels in every cell, flat."""
    cells = range(0, 64 - CELL + 1, CELL // 2)
    return np.array([mean_density(image[0].numpy(), y, x).mean() for y in cells for x in cells])


def test_what_has_no_like_in_the_guide_or_is_unknown_does_not_count() -> None:
    source = blobs(64, 1)
    alike = torch.nn.functional.pad(source, (SHIFT,) * 4, mode="reflect")
    fake = -source
    known = float(guide_distance(source, source * 0.5, alike, cell=CELL))
    assert float(guide_distance(source, fake, -alike, cell=CELL)) < 0.3 * known + 1.0
    assert float(guide_distance(source, source * 0.5, torch.full_like(alike, -1.0), cell=CELL)) == 0.0
    unknown = alike.clone()
    unknown[..., : SHIFT + 20] = -1.0  # columns
    part = float(guide_distance(source, source * 0.5, unknown, cell=CELL))
    assert 0.0 < part < known


def test_colours_are_compared_wherever_in_the_patch_they_are() -> None:
    source = blobs(64, 4)
    fake = 0.5 * source
    guide = torch.nn.functional.pad(source, (SHIFT,) * 4, mode="reflect")
    trust = float(guide_distances(source, fake, guide, cell=CELL)[0])
    assert trust > 0
    colours = [float(guide_distances(source, fake, guide, cell=CELL)[1]) for _ in range(200)]
    # against SciPy's distance of one channel, and of many directions
    cells = [
        density(image)[0].reshape(3, 16, 4, 16, 4).mean((2, 4)).flatten(1).double().numpy() for image in (fake, source)
    ]
    random = np.random.default_rng(0).normal(size=(2000, 3))
    along = [
        stats.wasserstein_distance(*(d @ c for c in cells)) for d in random / np.linalg.norm(random, axis=1)[:, None]
    ]
    channels = [stats.wasserstein_distance(*pair) for pair in zip(*cells, strict=True)]
    expected = (3 * np.mean(channels) + 8 * np.mean(along)) / 11
    flat = [ndimage_cells(image) for image in (source, fake)]
    reached = np.mean([1.0, np.corrcoef(*flat)[0, 1]])
    assert np.mean(colours) == pytest.approx(expected * reached, rel=0.03)
    moved = source.flip(2)
    assert float(guide_distances(source, moved, guide, cell=CELL)[1]) < 0.2 * np.mean(colours)
    assert float(guide_distances(source, moved, guide, cell=CELL)[0]) > 0


def test_the_distance_pulls_at_the_translation_only() -> None:
    source, guide = blobs(64, 2), blobs(64 + 2 * SHIFT, 2)
    fake = (0.5 * source).requires_grad_(True)
    guide_distance(source, fake, torch.nn.functional.pad(source, (SHIFT,) * 4, mode="reflect"), cell=CELL).backward()
    assert fake.grad is not None
    assert float(fake.grad.abs().mean()) > 0
    with torch.no_grad():
        one = float(guide_distance(source, fake, guide, cell=CELL))
        two = guide_distance(*(images.repeat(2, 1, 1, 1) for images in (source, fake, guide)), cell=CELL)
    assert float(two) == pytest.approx(one)


def test_background_is_what_is_bright_over_a_grain_and_dust_on_it() -> None:
    image = torch.full((1, 3, 256, 256), 0.9)
    image[..., :128] = 0.2  # tissue in the left half
    image[..., 100:104, 200:204] = -0.8  # dust
    mask = background(image)
    assert mask.shape == (1, 1, 256, 256)
    assert float(mask[..., :128].max()) == 0.0
    assert float(mask[..., 128:].min()) == 1.0
    fake = image.clone()
    assert float(background_distance(image, fake)) < 0.01, "only the dust differs from what surrounds it"
    fake[..., 128:] -= 0.1
    assert float(background_distance(image, fake)) == pytest.approx(0.05, abs=0.005)
    fake[..., :128] = -1.0
    assert float(background_distance(image, fake)) == pytest.approx(0.05, abs=0.005)


def test_pigment_is_what_neither_haematoxylin_nor_eosin_makes() -> None:
    dyes = np.zeros((1, 3, 24, 24), np.float32)
    amounts = {"haematoxylin": (0.1, 0, 0), "eosin": (0, 0.12, 0), "both": (0.08, 0.1, 0), "brown": (0, 0, 0.1)}
    colours = {name: combine_stains(np.array([[amount]]), rgb_from_hed)[0, 0] for name, amount in amounts.items()}
    colours |= {"soot": np.array([0.05] * 3), "glass": np.array([0.95, 0.94, 0.95])}
    found = {}
    for name, colour in colours.items():
        dyes[0] = np.asarray(colour)[:, None, None] * 2 - 1
        found[name] = float(pigment(torch.from_numpy(dyes)).mean())
    assert found == {"haematoxylin": 0, "eosin": 0, "both": 0, "brown": 1, "soot": 1, "glass": 0}
    half = torch.from_numpy(dyes)
    half[..., 12:] = torch.tensor(colours["brown"] * 2 - 1, dtype=torch.float32)[:, None, None]
    changed = half.clone()
    changed[..., :6] = -1.0
    assert float(pigment_distance(half, changed)) == 0.0, "background may become anything"
    changed[..., 18:] += 0.2
    assert float(pigment_distance(half, changed)) == pytest.approx(0.2 / 4, rel=1e-5)


def test_terms_are_those_asked_for_with_their_weights() -> None:
    source = blobs(64, 3)
    guide = torch.nn.functional.pad(source, (SHIFT,) * 4, mode="reflect")
    fake = 0.5 * source
    plain = Guidance(GuidanceSettings(cell_px=CELL)).terms(source, fake, None)
    assert plain == {}
    torch.manual_seed(0)
    terms = Guidance(GuidanceSettings(3.0, 4.0, CELL, 2.0, 5.0)).terms(source, fake, guide)
    torch.manual_seed(0)
    place, colours = guide_distances(source, fake, guide, cell=CELL)
    assert float(terms["guide"]) == pytest.approx(3.0 * float(place))
    assert float(terms["colours"]) == pytest.approx(4.0 * float(colours))
    assert float(terms["background"]) == pytest.approx(2.0 * float(background_distance(source, fake)))
    assert float(terms["pigment"]) == pytest.approx(5.0 * float(pigment_distance(source, fake)))
    assert density(torch.tensor([1.0, 0.0])).tolist() == pytest.approx([0.0, np.log(2)])
