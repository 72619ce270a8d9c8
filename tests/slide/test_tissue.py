"""Tissue masks: detection on real and made-up slides, fractions of cells, certain background."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from kin_cli.geometry import Box, Grid, Size
from kin_cli.slide.open import open_slide
from kin_cli.slide.synthetic import SampleSlide
from kin_cli.slide.tissue import TissueMask, all_tissue, detect_tissue, tissue_in
from kin_cli.slide.view import open_view, overview

WHITE = (255, 255, 255)
BACKGROUND = (243, 242, 244)
PINK = (214, 150, 190)


def picture(
    shape: tuple[int, int], background: tuple[int, int, int] = BACKGROUND, noise: float = 1.5
) -> NDArray[np.uint8]:
    pixels = np.array(background) + np.random.default_rng(0).normal(0, noise, (*shape, 3))
    return pixels.clip(0, 255).astype(np.uint8)


def paint(pixels: NDArray[np.uint8], where: NDArray[np.bool_], colour: tuple[int, int, int]) -> None:
    texture = np.random.default_rng(1).normal(0, 6, (int(where.sum()), 3))
    pixels[where] = (np.array(colour) + texture).clip(0, 255).astype(np.uint8)


def disc(shape: tuple[int, int], radius: float, centre: tuple[float, float] | None = None) -> NDArray[np.bool_]:
    y, x = np.indices(shape)
    cy, cx = centre or (shape[0] / 2, shape[1] / 2)
    return np.hypot(y - cy, x - cx) < radius


def assert_finds(mask: NDArray[np.bool_], tissue: NDArray[np.bool_], border: int = 4) -> None:
    """All tissue is found, and nothing that is more than ``border`` pixels away from it."""
    assert mask[tissue].mean() > 0.99
    assert not mask[~ndimage.binary_dilation(tissue, iterations=border)].any()


@pytest.mark.parametrize(
    "background",
    [(255, 255, 255), (243, 242, 244), (225, 225, 225), (242, 238, 220), (190, 190, 186)],
    ids=["white", "usual", "grey", "yellowish", "dark"],
)
@pytest.mark.parametrize(
    "colour",
    [PINK, (120, 80, 150), (150, 110, 80), (205, 208, 222)],
    ids=["eosin", "haematoxylin", "DAB", "pale counterstain"],
)
def test_stains_on_backgrounds(background: tuple[int, int, int], colour: tuple[int, int, int]) -> None:
    red, green, blue = (round(part * shade / 255) for part, shade in zip(colour, background, strict=True))
    pixels, tissue = picture((300, 400), background), disc((300, 400), 80)
    paint(pixels, tissue, (red, green, blue))
    assert_finds(tissue_in(pixels, WHITE), tissue)


def test_faint_tissue_is_found() -> None:
    pixels, tissue = picture((300, 400)), disc((300, 400), 90)
    paint(pixels, tissue, (236, 224, 233))
    assert tissue_in(pixels, WHITE)[tissue].mean() > 0.95


def test_a_thin_strand_is_tissue_and_specks_are_not() -> None:
    pixels = picture((300, 400))
    strand = np.zeros((300, 400), bool)
    strand[150:153, 50:350] = True
    paint(pixels, strand, PINK)
    specks = np.zeros_like(strand)
    specks[30:260:40, 20:380:45] = True
    specks[140:165] = False
    paint(pixels, specks, (60, 40, 50))
    dust = disc((300, 400), 9, (60, 300))
    paint(pixels, dust, (170, 170, 170))
    pixels[dust] = pixels[dust][:, :1]
    assert_finds(tissue_in(pixels, WHITE), strand)


def test_jpeg_noise_is_not_tissue(tmp_path: Path) -> None:
    pixels, tissue = picture((400, 400), noise=4), disc((400, 400), 100)
    paint(pixels, tissue, PINK)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=25)
    with Image.open(tmp_path / "a.jpg") as image:
        assert_finds(tissue_in(np.asarray(image), WHITE), tissue, border=12)


def test_lumina_are_filled_and_large_holes_are_not() -> None:
    pixels, outer = picture((400, 400)), disc((400, 400), 150)
    lumen, hole = disc((400, 400), 8, (130, 200)), disc((400, 400), 40, (250, 200))
    paint(pixels, outer & ~lumen & ~hole, PINK)
    mask = tissue_in(pixels, WHITE)
    assert mask[lumen].all()
    assert not mask[disc((400, 400), 33, (250, 200))].any()


def test_black_that_was_not_scanned_is_no_tissue() -> None:
    pixels, tissue = picture((300, 400)), disc((300, 400), 60)
    paint(pixels, tissue, PINK)
    pixels[:, :70] = 0
    mask = tissue_in(pixels, WHITE)
    assert not mask[:, :67].any()
    assert mask[tissue].mean() > 0.99


def test_fill_around_the_scan_does_not_make_tissue_of_the_background() -> None:
    pixels, tissue = picture((300, 400), (232, 231, 233)), disc((300, 400), 50)
    paint(pixels, tissue, PINK)
    pixels[:, :220] = np.where(tissue[:, :220, None], pixels[:, :220], 255)
    assert_finds(tissue_in(pixels, WHITE), tissue)


def test_glow_between_dense_tissue_is_background() -> None:
    pixels = picture((400, 400))
    tissue = np.ones((400, 400), bool)
    tissue[:, 180:220] = False
    tissue[:, :60] = tissue[:, -60:] = False
    glow = ndimage.gaussian_filter(tissue.astype(float), 25)
    pixels = np.rint(pixels * np.exp(-0.06 * glow[..., None] * np.array([0.4, 1, 0.4]))).astype(np.uint8)
    paint(pixels, tissue, (150, 90, 150))
    assert not tissue_in(pixels, WHITE)[:, 190:210].any()


def test_without_background_everything_is_tissue() -> None:
    pixels = picture((300, 300))
    paint(pixels, np.ones((300, 300), bool), PINK)
    assert tissue_in(pixels, WHITE).all()


@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_background_alone_has_no_tissue(noise: float) -> None:
    assert not tissue_in(picture((300, 400), noise=noise), WHITE).any()
    assert not tissue_in(np.full((300, 400, 3), 255, np.uint8), WHITE).any()
    assert not tissue_in(np.zeros((300, 400, 3), np.uint8), WHITE).any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 2000), (3, 2)])
def test_tiny_pictures(shape: tuple[int, int]) -> None:
    assert tissue_in(np.full((*shape, 3), PINK, np.uint8), WHITE).all()
    assert not tissue_in(np.full((*shape, 3), BACKGROUND, np.uint8), WHITE).any()


# by the data's own description: 58 of 262 and 40 of 267 megapixels of tissue
@pytest.mark.parametrize(("name", "megapixels"), [("BS25_HE_20x.tif", 58), ("BS25_SYN_20x.tif", 40)])
def test_real_slides_have_the_tissue_that_is_known(shared_data: Path, name: str, megapixels: float) -> None:
    with open_slide(shared_data / name) as slide:
        mask = detect_tissue(open_view(slide))
        assert mask.size == slide.levels[0]
        assert max(mask.mask.shape) == 2048
    found = mask.tissue_fraction * mask.size.pixels / 1e6
    assert 0.9 * megapixels < found < 1.2 * megapixels


def test_real_slide_at_places_that_a_person_named(shared_data: Path) -> None:
    with open_slide(shared_data / "CMU-1-Small-Region.svs") as slide:
        mask = detect_tissue(open_view(slide))
    height, width = mask.mask.shape

    def at(x: float, y: float) -> bool:
        return bool(mask.mask[int(y * height), int(x * width)])

    for x, y in [(0.43, 0.34), (0.43, 0.85), (0.21, 0.355), (0.94, 0.205), (0.50, 0.60), (0.77, 0.93)]:
        assert at(x, y), f"tissue at {x}, {y}"
    for x, y in [(0.1, 0.1), (0.1, 0.7), (0.85, 0.12), (0.95, 0.95), (0.56, 0.19), (0.9, 0.6)]:
        assert not at(x, y), f"background at {x}, {y}"


def test_sample_slide_has_the_tissue_it_says() -> None:
    slide = SampleSlide(Size(9000, 8200))
    mask = tissue_in(overview(open_view(slide), max_side=500), slide.fill_colour)
    assert 0.5 < mask.mean() < 0.62


def brute_force_fraction(mask: TissueMask, box: Box) -> float:
    """The tissue fraction by definition: every mask pixel by its overlap with the cell."""
    height, width = mask.mask.shape
    total = 0.0
    for y, x in np.argwhere(mask.mask):
        top, bottom = y * mask.size.height / height, (y + 1) * mask.size.height / height
        left, right = x * mask.size.width / width, (x + 1) * mask.size.width / width
        total += max(0, min(bottom, box.bottom) - max(top, box.y)) * max(0, min(right, box.right) - max(left, box.x))
    return total / (box.width * box.height)


@settings(deadline=None)
@given(
    shape=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    size=st.builds(Size, st.integers(1, 60), st.integers(1, 60)),
    step=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_fractions_equal_brute_force(shape: tuple[int, int], size: Size, step: int, seed: int) -> None:
    mask = TissueMask(np.random.default_rng(seed).random(shape) < 0.5, size)
    grid = Grid(size, step)
    fraction = mask.fraction(grid)
    assert fraction.dtype == np.float32
    assert fraction.shape == (grid.rows, grid.cols)
    for cell in list(grid)[:12]:
        assert fraction[cell] == pytest.approx(brute_force_fraction(mask, grid.box(cell)), abs=1e-5)
    assert fraction.sum(dtype=float) * step**2 == pytest.approx(mask.tissue_fraction * size.pixels, rel=1e-4)
    for side in {1, step // 2, step} - {0}:
        middle = mask.fraction(grid, side=side)
        for cell in list(grid)[:12]:
            assert middle[cell] == pytest.approx(brute_force_fraction(mask, grid.middle(cell, side)), abs=1e-4)


def test_all_tissue_fills_the_frame_and_nothing_beyond() -> None:
    fraction = all_tissue(Size(1000, 600)).fraction(Grid(Size(1000, 600), 512))
    np.testing.assert_allclose(fraction, [[1, 488 / 512], [88 / 512, 488 / 512 * 88 / 512]], rtol=1e-5)
    assert not all_tissue(Size(1000, 600)).background(Box(0, 0, 1000, 600)).any()


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    size=st.builds(Size, st.integers(1, 70), st.integers(1, 70)),
    seed=st.integers(0, 99),
)
def test_background_keeps_its_distance(shape: tuple[int, int], size: Size, seed: int) -> None:
    mask = TissueMask(np.random.default_rng(seed).random(shape) < 0.05, size)
    background = mask.background(Box(0, 0, size.width, size.height))
    rows, cols = np.argwhere(background).T
    height, width = shape
    for y, x in np.argwhere(mask.mask):
        # gaps between the mask pixel's edges and the out pixels, along each axis
        down = np.maximum(y * size.height / height - (rows + 1), rows - (y + 1) * size.height / height)
        right = np.maximum(x * size.width / width - (cols + 1), cols - (x + 1) * size.width / width)
        least_down, least_right = max(8, size.height / height), max(8, size.width / width)
        # an out pixel is judged by its centre, which may be half a pixel from its edge
        assert ((down >= least_down - 0.5 - 1e-6) | (right >= least_right - 0.5 - 1e-6)).all()


def test_background_of_a_box_is_cut_from_the_whole() -> None:
    mask = TissueMask(np.eye(20, dtype=bool), Size(410, 333))
    whole = mask.background(Box(0, 0, 410, 333))
    assert 0.5 < whole.mean() < 0.95
    box = Box(37, 51, 200, 111)
    np.testing.assert_array_equal(mask.background(box), whole[box.slices()])
    with pytest.raises(ValueError, match="beyond the frame"):
        mask.background(Box(400, 0, 11, 5))
