"""Sections whose pixels are not as large as their files say."""

from __future__ import annotations

import numpy as np
import pytest

from kin_cli.registration.scale import best_factor, likely_factors, tissue_ratio
from kin_cli.registration.sections import Section, pieces_of
from tests.registration.conftest import UM, blob, section
from tests.registration.test_run import left_over, registered, turned


@pytest.fixture(scope="module")
def pieces() -> Section:
    shape = (260, 420)
    return section([blob(shape, (130, 110), 75, 3), blob(shape, (130, 320), 60, 4)])


@pytest.mark.parametrize("factor", [0.5, 1.25, 4.0])
def test_a_wrong_pixel_size_is_found_at_any_rotation(pieces: Section, factor: float) -> None:
    real = turned(pieces, 137)[0].scaled(factor)
    assert likely_factors(pieces, real, pieces_of(pieces))[0] == pytest.approx(1 / factor, rel=0.04)


def test_a_right_pixel_size_stays(pieces: Section) -> None:
    real, _ = turned(pieces, 40)
    assert likely_factors(pieces, real, pieces_of(pieces)) == [1.0]
    one = section([blob((260, 420), (130, 320), 60, 4)])  # of two pieces: the tissue's size says 0.6
    assert tissue_ratio(one, real) < 0.7
    assert likely_factors(one, real, pieces_of(one)) == [1.0]


def test_an_unknown_pixel_size_is_found_from_any_guess(pieces: Section) -> None:
    real = turned(pieces, 200)[0].scaled(1 / 3)
    assert best_factor(pieces, real, pieces_of(pieces)) == pytest.approx(3, rel=0.04)


def test_a_section_is_resampled_to_where_its_pixels_were(one_piece: Section) -> None:
    found = one_piece.resampled(27.0)
    rows, cols = np.nonzero(one_piece.tissue)
    middles = [(np.mean(at) + 0.5) * UM[0] for at in (rows, cols)]
    reduced = [(np.mean(at) + 0.5) * 27.0 for at in np.nonzero(found.tissue)]
    assert reduced == pytest.approx(middles, abs=4)
    assert found.um == (27.0, 27.0)
    area = found.tissue.sum() * 27.0**2 / (one_piece.tissue.sum() * UM[0] ** 2)
    assert area == pytest.approx(1, abs=0.03)
    weight = found.density.sum() * 27.0**2 / (one_piece.density.sum() * UM[0] ** 2)
    assert weight == pytest.approx(1, abs=0.03)


def test_the_registration_is_in_the_pixels_that_the_files_state(one_piece: Section) -> None:
    real, back = turned(one_piece, 100)
    stated = real.scaled(1.5)
    found = registered(one_piece, stated, elastic=False)
    assert "do not fit: the sections do at 1 and 0.66" in " ".join(found.notes).replace("0.67", "0.66")
    for piece in found.registration.pieces:  # back to the µm that are true
        piece.matrix[:] /= 1.5
    assert np.median(left_over(found, one_piece, back, real)) <= 1.0
