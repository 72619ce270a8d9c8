"""Sections with a known motion: turned, bent, in another order, mirrored, and of another block."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from kin_cli.errors import InputError
from kin_cli.evaluation.settings import SlideChoice
from kin_cli.geometry import Doubles, Size
from kin_cli.progress import SilentProgress
from kin_cli.registration.run import Registered, RegisterSettings, _follows, register_sections
from kin_cli.registration.sections import Section, centres, pieces_of
from kin_cli.registration.transform import Piece, Side
from tests.registration.conftest import UM, blob, section


def sides(source: Section, real: Section) -> tuple[Side, Side]:
    sizes = [Size(*(round(n) for n in part.extent_um)) for part in (source, real)]
    return Side(Path("he.tif"), sizes[0], 1.0), Side(Path("real.tif"), sizes[1], 1.0)


def registered(source: Section, real: Section, **options: bool) -> Registered:
    settings = RegisterSettings(SlideChoice(Path("he.tif")), SlideChoice(Path("real.tif")), **options)
    return register_sections(source, real, sides(source, real), settings, SilentProgress())


def turned(source: Section, degrees: float, bend_um: float = 0.0) -> tuple[Section, Doubles]:
    """The section turned about the middle and bent, in other grey levels; and where each of its pixels went (µm)."""
    height, width = source.density.shape
    angle, middle = np.radians(degrees), np.array([width, height]) * UM[0] / 2
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    places = centres((height, width), UM)
    back = (places - middle) @ turn + middle  # where each pixel of the new one comes from
    wave = 2 * np.pi / 1500.0
    back = back + bend_um * np.stack([np.sin(wave * back[..., 1]), np.cos(wave * back[..., 0])], axis=-1)
    at = source.indices(back)
    density = ndimage.map_coordinates(source.density, at, order=1)
    tissue = ndimage.map_coordinates(source.tissue.astype(np.float32), at, order=1) > 0.5
    recoloured = np.where(density > 0, 0.75 * np.sqrt(density), 0.0).astype(np.float32)
    return Section(recoloured, tissue, UM), back


def left_over(found: Registered, source: Section, back: Doubles, real: Section) -> Doubles:
    """Distance in pixels between each pixel of the real section and where the registration puts its origin."""
    inside = ndimage.binary_erosion(real.tissue, iterations=4)
    points = found.registration.moved(back[inside])
    return np.hypot(*(points - centres(real.density.shape, UM)[inside]).T) / UM[0]


@pytest.mark.parametrize("degrees", [0, 100, 250])
def test_a_known_warp_is_recovered_to_a_pixel(one_piece: Section, degrees: int) -> None:
    real, back = turned(one_piece, degrees, bend_um=25.0)
    found = registered(one_piece, real)
    rest = left_over(found, one_piece, back, real)
    assert np.median(rest) <= 0.5
    assert np.percentile(rest, 90) <= 1.0
    turn = (found.registration.pieces[0].degrees - degrees + 180) % 360 - 180
    assert abs(turn) < 3


def test_pieces_in_another_order_find_their_own() -> None:
    shape = (260, 420)
    one, two = blob(shape, (130, 110), 75, 3), blob(shape, (130, 320), 60, 4)
    source = section([one, two])
    labels = pieces_of(source)
    assert [int((labels == n).sum() > 0) for n in (1, 2)] == [1, 1]
    swapped = Section(np.roll(source.density, 210, axis=1), np.roll(source.tissue, 210, axis=1), UM)
    found = registered(source, swapped, elastic=False)
    for piece, x in zip(found.registration.pieces, (110, 320), strict=True):
        point = np.array([x, 130.0]) * 8
        assert np.hypot(*(piece(point) - ((x + 210) % 420 * 8, 1040))) < 24


def test_a_mirrored_section_is_matched_only_when_said(one_piece: Section) -> None:
    real = one_piece.mirrored()
    found = registered(one_piece, real, mirrored=True)
    points = np.array([[1200.0, 1100.0], [1500.0, 1300.0]])
    wanted = points * (-1, 1) + (one_piece.extent_um[0], 0)
    assert np.abs(found.registration.moved(points) - wanted).max() < 8
    with pytest.raises(InputError, match="--mirrored"):
        registered(one_piece, real)


def test_another_tissue_is_refused(one_piece: Section) -> None:
    other = section([blob((300, 340), (150, 165), 95, 77)])
    with pytest.raises(InputError, match=r"no piece of he\.tif is found in it"):
        registered(one_piece, other)


def test_a_lost_piece_is_said_and_not_known() -> None:
    shape = (260, 420)
    one, two = blob(shape, (130, 110), 75, 3), blob(shape, (130, 320), 60, 4)
    found = registered(section([one, two]), section([one]), elastic=False)
    assert [piece.found for piece in found.registration.pieces] == [True, False]
    assert "was not found" in found.notes[-1]
    points = np.array([[110.0, 130.0], [320.0, 130.0]]) * 8
    assert found.registration.known(points).tolist() == [True, False]


def test_the_smaller_piece_finds_its_place_if_it_alone_is_left() -> None:
    shape = (260, 420)
    one, two = blob(shape, (130, 110), 75, 3), blob(shape, (130, 320), 60, 4)
    pale = Section(0.3 * section([two]).density, section([two]).tissue, UM)
    found = registered(section([one, two]), pale, elastic=False)
    assert [piece.found for piece in found.registration.pieces] == [False, True]
    points = np.array([[320.0, 130.0]]) * 8
    assert np.hypot(*(found.registration.moved(points) - points)[0]) < 16


def test_a_piece_that_parts_from_the_proved_ones_is_not_believed() -> None:
    one, other = Piece(np.array([[0.8, 0.0, 5.0], [0.0, 0.8, 5.0]]), about={"covered": 0.99}), Piece(np.eye(2, 3))
    assert not _follows(one, [other])
    assert _follows(replace(one, matrix=np.eye(2, 3)), [other])


def test_the_estimated_error_follows_the_true_one(one_piece: Section) -> None:
    real, back = turned(one_piece, 0, bend_um=25.0)
    bent, stiff = registered(one_piece, real), registered(one_piece, real, elastic=False)
    rests = [np.median(left_over(one, one_piece, back, real)) * 8 for one in (bent, stiff)]
    errors = [one.registration.error["median"] for one in (bent, stiff) if one.registration.error]
    assert errors[0] < errors[1]
    assert errors == pytest.approx(rests, abs=6.0)
    assert replace(bent.registration, labels=None).known(np.zeros((1, 2))).all()
