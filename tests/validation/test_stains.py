"""Colour deconvolution against scikit-image, and the estimate of stains that were mixed here."""

from __future__ import annotations

import numpy as np
import pytest
from skimage import color, filters

from kin_cli.errors import UsageError
from kin_cli.geometry import Pixels
from kin_cli.metrics.colour import lab, rgb_of_lab
from kin_cli.validation.recolour import recolouring
from kin_cli.validation.stains import HAEMATOXYLIN, STAINS, Stains, estimate, otsu, parse_stain

WHITE = (240.0, 238.0, 242.0)


def mixed(stain: tuple[float, ...], other: tuple[float, ...], count: int = 60_000) -> tuple[Pixels, np.ndarray]:
    """Pixels (n, 3) of two stains, and their amounts (n, 2)."""
    rng = np.random.default_rng(0)
    amounts = rng.uniform(0, 0.9, (count, 2)) * (rng.random((count, 2)) < 0.6)
    optical = amounts @ np.array([stain, other])
    return np.rint(np.array(WHITE) * 10.0**-optical).clip(0, 255).astype(np.uint8), amounts


@pytest.mark.parametrize("name", list(STAINS))
def test_densities_are_those_of_scikit_image(name: str) -> None:
    stain, other = parse_stain(name), parse_stain(",".join(map(str, HAEMATOXYLIN)))
    pixels = mixed(stain, other, 400)[0].reshape(20, 20, 3)
    found = Stains(name, stain, other, (255.0, 255.0, 255.0)).densities(pixels)
    residual = np.cross(stain, other)
    matrix = np.linalg.inv(np.array([stain, other, residual / np.linalg.norm(residual)]))
    wanted = color.separate_stains(pixels, matrix)[..., :2]
    # scikit-image divides by log10 of its smallest intensity, 1e-6
    scale = np.median(found[0][found[0] > 0.1] / wanted[..., 0][found[0] > 0.1])
    assert np.allclose(np.moveaxis(found, 0, -1), np.maximum(wanted * scale, 0), atol=0.01)


@pytest.mark.parametrize("name", list(STAINS))
def test_mixed_stains_are_found_again(name: str) -> None:
    stain, other = np.array(parse_stain(name)) + 0.06, np.array(parse_stain("0.6,0.74,0.3"))
    stain = stain / np.linalg.norm(stain)
    pixels, amounts = mixed(tuple(stain), tuple(other))
    found = estimate(name, pixels, WHITE)
    assert not found.note
    assert np.degrees(np.arccos(np.dot(found.stain, stain))) < 4
    assert np.degrees(np.arccos(np.dot(found.counterstain, other))) < 4
    density = found.densities(pixels[None])[0, 0]
    assert np.corrcoef(density, amounts[:, 0])[0, 1] > 0.99


def test_a_slide_without_the_stain_keeps_the_published_vectors() -> None:
    grey = np.full((5000, 3), 120, np.uint8)
    assert "published" in estimate("dab", grey, WHITE).note
    assert "published" in estimate("dab", np.full((9, 3), 120, np.uint8), WHITE).note


@pytest.mark.parametrize("text", ["", "blue", "1,2", "0,0,0", "-1,1,1", "nan,1,1", "1,2,3,4"])
def test_what_is_no_stain_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a stain"):
        parse_stain(text)


def test_a_colour_and_its_densities_mean_the_same() -> None:
    colour = np.array([150.0, 80.0, 40.0])
    assert parse_stain("150,80,40") == pytest.approx(parse_stain(",".join(map(str, np.log10(255 / colour)))))


def test_the_threshold_is_that_of_scikit_image() -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(0.2, 0.05, 4000), rng.normal(0.7, 0.1, 2000)]).clip(0).astype(np.float32)
    assert otsu(values) == pytest.approx(filters.threshold_otsu(values), abs=0.02)


def test_lab_is_undone_and_agrees_with_scikit_image() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (500, 3), np.uint8)
    assert np.array_equal(rgb_of_lab(lab(pixels)), pixels)
    shifted = lab(pixels) * 0.8 + (5, 3, -2)
    theirs = np.rint(255 * color.lab2rgb(shifted)).astype(int)
    assert np.abs(rgb_of_lab(shifted).astype(int) - theirs).max() <= 1


def test_a_recoloured_slide_has_the_colours_of_the_other() -> None:
    rng = np.random.default_rng(0)
    own, other = (rng.normal(m, s, (9000, 3)).clip(0, 255).astype(np.uint8) for m, s in ((170, 12), (130, 20)))
    moved = lab(recolouring(lab(own), lab(other))(own))
    assert moved.mean(axis=0) == pytest.approx(lab(other).mean(axis=0), abs=0.3)
    assert moved.std(axis=0) == pytest.approx(lab(other).std(axis=0), rel=0.05)
