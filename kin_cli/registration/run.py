"""The whole of a registration: read both slides, find the pieces, bend them, and judge the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from kin_cli.errors import InputError
from kin_cli.evaluation.settings import SlideChoice
from kin_cli.evaluation.tiles import opened
from kin_cli.geometry import Doubles, Mask
from kin_cli.progress import Progress
from kin_cli.registration.agreement import Agreement, agreement
from kin_cli.registration.elastic import Aligner, AlignmentError, Bend
from kin_cli.registration.scale import best_factor, likely_factors, tissue_ratio
from kin_cli.registration.search import STEP_DEGREES, Place, Searcher, search_um
from kin_cli.registration.sections import FINEST_UM, Labels, Section, pieces_of, read_section
from kin_cli.registration.transform import Piece, Registration, Side
from kin_cli.registration.warp import warped
from kin_cli.slide.view import SlideView

_LARGE = 0.25  # of the largest piece's area: mutual information of fewer pixels is no measure
_ROUNDS = 3  # in which pieces without a place try those of others
_COARSE_FACTOR = 1.2  # from which a section is read again, since its pixels are larger than they seemed
_ALIKE_SIZE = 1.05  # ratio of lengths beyond which the stated pixel sizes are said not to fit
_PLACES = 8  # rough places that mutual information decides between
_FREE_SEARCHES = 8  # pieces that are looked for everywhere; smaller ones follow their neighbours first
_LEAST_COVERED = 0.6  # fraction of a piece that must lie on tissue of the real slide
_WELL_COVERED, _ALIKE_DEGREES = 0.85, 25.0  # of a piece that is turned like a proved one
_ALIKE_STRETCH = 1.15  # ratio of lengths within which pieces of one slide are stretched
_CLEAR = 0.25  # see _merit: below it pieces are also tried parted at their necks
_POINTS = 400_000  # at which it is looked whether a piece lies on tissue
_OVERLAP = 0.3  # fraction of a piece that may lie where a larger one lies already
_MIRRORED_HINT = "are they serial sections of one block? --mirrored, if one was mounted upside down"


@dataclass(frozen=True)
class RegisterSettings:
    """What to register: a source slide and a real slide, their tissue, and whether the real one is mirrored."""

    source: SlideChoice
    real: SlideChoice
    tissue: str | Path = "auto"
    real_tissue: str | Path = "auto"
    mirrored: bool = False
    elastic: bool = True


@dataclass(frozen=True, eq=False)
class Registered:
    """A registration, its agreement, and notes: what a user should know, such as pieces that were not found."""

    registration: Registration
    agreement: Agreement
    notes: tuple[str, ...] = field(default=())


def side_of(view: SlideView, option: str) -> Side:
    """A slide as a side of a registration; ``option`` states its pixel size if the file does not."""
    if view.slide.mpp is None:
        raise InputError(f"{view.slide.path}: the pixel size is not known", f"state it in µm with {option}")
    return Side(view.slide.path, view.slide.levels[0], view.slide.mpp)


def register(settings: RegisterSettings, progress: Progress) -> Registered:
    """Register the real slide to the source, piece by piece, at whatever scale it fits.

    A pixel size that one of the two does not state is found, too.

    Memory bound: see ``read_section``, twice, and 100 bytes for each pixel of a piece while it is bent.

    Raises:
        KinError: a slide cannot be read, neither pixel size is known, no piece of the source is found in the other
            slide, or SimpleITK is missing.
    """
    with opened(settings.source) as view, opened(settings.real) as other:
        with progress.stage("read", 2, "slides") as advance:
            mpps, notes = _pixel_sizes(view, other, settings)
            source = read_section(view, tissue=settings.tissue, mpp=mpps[0])
            advance(1)
            again = partial(read_section, other, tissue=settings.real_tissue, mpp=mpps[1])
            real = again()
            advance(1)
        sides = tuple(
            Side(one.slide.path, one.slide.levels[0], mpp) for one, mpp in zip((view, other), mpps, strict=True)
        )
        found = register_sections(source, real, (sides[0], sides[1]), settings, progress, again=again)
    return replace(found, notes=(*notes, *found.notes))


def _pixel_sizes(
    view: SlideView, other: SlideView, settings: RegisterSettings
) -> tuple[tuple[float, float], list[str]]:
    """µm per pixel of level 0 of both slides: as stated, or what fits for the one that states none; and notes."""
    stated = view.slide.mpp, other.slide.mpp
    if stated[0] is not None and stated[1] is not None:
        return (stated[0], stated[1]), []
    if stated[0] is None and stated[1] is None:
        raise InputError(
            f"{view.slide.path}, {other.slide.path.name}: neither states a pixel size",
            "state one, in µm, with --source-mpp or --real-mpp: the other is found",
        )
    tissues = settings.tissue, settings.real_tissue
    rough = [
        read_section(one, tissue=tissue, mpp=mpp or 1.0, finest_um=None if mpp is None else FINEST_UM)
        for one, tissue, mpp in zip((view, other), tissues, stated, strict=True)
    ]
    source, real = rough[0], rough[1].mirrored() if settings.mirrored else rough[1]
    if stated[0] is None:
        guess = 1 / tissue_ratio(source, real)
        source = source.scaled(guess)
        mpps = guess / best_factor(source, real, pieces_of(source)), stated[1] or guess
    else:
        guess = tissue_ratio(source, real)
        mpps = stated[0], guess * best_factor(source, real.scaled(guess), pieces_of(source))
    unknown, mpp = (view, mpps[0]) if stated[0] is None else (other, mpps[1])
    return mpps, [f"{unknown.slide.path.name} states no pixel size: {mpp:.3g} µm fits"]


def register_sections(
    source: Section,
    real: Section,
    sides: tuple[Side, Side],
    settings: RegisterSettings,
    progress: Progress,
    *,
    again: Callable[..., Section] | None = None,
) -> Registered:
    """Register two sections that were read; see ``register``.

    ``again`` reads the real section with another ``finest_um``, for one whose pixels are larger than its file says.
    """
    labels = pieces_of(source)
    tried: list[_Trial] = []
    with progress.stage("scale", 1, "searches") as advance:
        factors = likely_factors(source, real.mirrored() if settings.mirrored else real, labels)
        advance(1)
    for factor in factors:
        if again is not None and factor > _COARSE_FACTOR:
            real = again(finest_um=FINEST_UM / factor)
        target = real.scaled(factor).at(source.um[0])
        tried.append(_trial(source, target, sides, settings, progress, labels=labels, factor=factor))
        if any(piece.found for piece in tried[-1].judged.pieces):
            break
    best = max(tried, key=lambda trial: trial.merit)
    if not any(piece.found for piece in best.judged.pieces):
        raise InputError(f"{sides[1].path}: no piece of {sides[0].path.name} is found in it", _MIRRORED_HINT)
    return _finished(best, settings)


@dataclass(frozen=True, eq=False)
class _Trial:
    """A registration at one scale: with the real section ``factor`` times as large as its pixel size says."""

    judged: Registration
    found: Agreement
    notes: list[str]
    factor: float
    width_um: float

    @property
    def merit(self) -> float:
        return _merit(self.judged, self.found)


def _trial(
    source: Section,
    real: Section,
    sides: tuple[Side, Side],
    settings: RegisterSettings,
    progress: Progress,
    *,
    labels: Labels,
    factor: float,
) -> _Trial:
    """Register at one scale; pieces that moved apart at their necks are parted there."""
    target = real.mirrored() if settings.mirrored else real
    judged, found, notes = _matched(source, target, labels, sides, settings, progress)
    if _merit(judged, found) < _CLEAR:
        parts = pieces_of(source, parted=True)
        if parts.max() > labels.max():
            again = _matched(source, target, parts, sides, settings, progress)
            if _merit(again[0], again[1]) > _merit(judged, found):
                judged, found, notes = again
                notes.append("pieces were parted at their necks, which had moved apart")
    return _Trial(judged, found, notes, factor, real.extent_um[0])


def _finished(trial: _Trial, settings: RegisterSettings) -> Registered:
    """The registration of a trial, in µm as the files state them, and what is to be said of it."""
    judged, found, notes = _with_followers(trial.judged), trial.found, trial.notes
    for number, piece in enumerate(judged.pieces, start=1):
        if not piece.found:
            said = f"piece {number} ({piece.about['area_mm2']:.2f} mm²) was not found in {judged.real.path.name}"
            notes.append(f"{said}: left out")
    found = found.of(judged.known(found.middles))
    judged = replace(judged, error=found.error(), mirrored=settings.mirrored)
    if settings.mirrored:
        judged = replace(judged, pieces=tuple(_unmirrored(piece, trial.width_um) for piece in judged.pieces))
    pieces = tuple(replace(piece, matrix=piece.matrix / trial.factor) for piece in judged.pieces)
    judged = replace(judged, pieces=pieces)
    stretch = _stretch(judged)
    if max(stretch, 1 / stretch) > _ALIKE_SIZE:
        source, real = judged.source, judged.real
        notes.append(
            f"the pixel sizes {source.mpp:.4g} and {real.mpp:.4g} µm do not fit: the sections do at {source.mpp:.4g}"
            f" and {real.mpp / stretch:.4g} µm (or one has shrunk)"
        )
    if judged.error is None:
        notes.append("too few places are alike to estimate the error of the registration: use --landmarks, and look")
    return Registered(judged, found, tuple(notes))


def _stretch(registration: Registration) -> float:
    """By how much the pieces that were found are larger in the real slide: median of lengths, by area."""
    found = [(piece.stretch, piece.about["area_mm2"]) for piece in registration.pieces if piece.found]
    lengths, areas = (np.array(values) for values in zip(*sorted(found), strict=True))
    return float(lengths[np.searchsorted(areas.cumsum(), areas.sum() / 2)])


def _matched(
    source: Section,
    target: Section,
    labels: Labels,
    sides: tuple[Side, Side],
    settings: RegisterSettings,
    progress: Progress,
) -> tuple[Registration, Agreement, list[str]]:
    """The motion of each piece, judged, and notes."""
    matcher = _Matcher(source, target, labels, elastic=settings.elastic)
    with progress.stage("register", matcher.count, "pieces") as advance:
        pieces = matcher.pieces(advance)
    judged, found = _judged(Registration(*sides, tuple(pieces), labels), source, target)
    for _ in range(_ROUNDS):
        again = matcher.exchanged(judged.pieces)
        if again is None:
            break
        judged, found = _judged(Registration(*sides, tuple(again), labels), source, target)
    return judged, found, matcher.notes


def _merit(registration: Registration, found: Agreement) -> float:
    """Fraction of the pieces' area that was found, times that of windows which agree."""
    areas = np.array([piece.about["area_mm2"] for piece in registration.pieces])
    inside = found.of(registration.known(found.middles))
    return inside.near * float(areas[[piece.found for piece in registration.pieces]].sum() / areas.sum())


class _Matcher:
    """Finds the pieces of one section in another, each at its own place."""

    def __init__(self, source: Section, target: Section, labels: Labels, *, elastic: bool) -> None:
        self._source, self._target, self._labels, self._elastic = source, target, labels, elastic
        um = search_um(source, target)
        self._rough = source.at(um)
        self._rough_target = target.resampled(self._rough.um[0])
        self._searcher = Searcher(self._rough_target)
        self._aligner = Aligner(source, target)
        self._taken: Mask = np.zeros(self._rough_target.density.shape, np.bool_)
        self._candidates: dict[int, list[Place]] = {}
        self._tried: set[int] = set()
        self.count = int(labels.max())
        self.notes: list[str] = []

    def pieces(self, advance: Any) -> list[Piece]:
        """All pieces. Of the large ones those choose first that fit best: another may be missing in the target."""
        areas = [int(np.count_nonzero(self._labels == number)) for number in range(self.count + 1)]
        large = [number for number in range(1, self.count + 1)[:_FREE_SEARCHES] if areas[number] >= areas[1] * _LARGE]
        places = {number: self._places_of(number) for number in large}
        large.sort(key=lambda number: -places[number][0].score if places[number] else 0.0)
        found: dict[int, Piece] = {}
        for number in [*large, *(number for number in range(1, self.count + 1) if number not in places)]:
            found[number] = self._placed(number, places[number] if number in places else self._places_of(number))
            advance(1)
        return [found[number] for number in range(1, self.count + 1)]

    def exchanged(self, judged: Sequence[Piece]) -> list[Piece] | None:
        """Pieces that found no place in those of pieces that proved wrong there; None if there are no such.

        If one of several pieces is left in the other section, another one may have taken its place.
        """
        homeless = [at for at, piece in enumerate(judged) if not piece.found and at + 1 not in self._tried]
        wrong = [at for at, piece in enumerate(judged) if not piece.found and _was_placed(piece)]
        if not homeless or not wrong:
            return None
        self._taken[:] = False
        for at, piece in enumerate(judged):
            if piece.found:
                self._taken |= self._covered(self._labels == at + 1, piece)
        found = list(judged)
        for at in homeless:
            found[at] = self._placed(at + 1, self._candidates.get(at + 1, []))
        if not any(_was_placed(found[at]) for at in homeless):
            return None
        for at in wrong:
            found[at] = self._lost(self._labels == at + 1)
        return found

    def _placed(self, number: int, places: list[Place]) -> Piece:
        """A piece at the best of some places that is not taken, bent there."""
        piece = self._labels == number
        for at, place in enumerate(places):
            covered = self._covered(piece, Piece(place.matrix()))
            if covered.any() and (covered & self._taken).sum() <= _OVERLAP * covered.sum():
                self._candidates[number] = [place, *places[:at], *places[at + 1 :]]  # the first is where it is
                self._tried.add(number)
                found = self._bent(piece, place)
                self._taken |= self._covered(piece, found)
                return found
        return self._lost(piece)

    def _places_of(self, number: int) -> list[Place]:
        """Places of a piece, the best first; of small pieces only rotations near those of others are tried."""
        piece = self._labels == number
        rough = _reduced(piece, self._rough)
        if not rough.any():
            return []
        degrees: Iterable[float] = range(0, 360, STEP_DEGREES)
        if number > _FREE_SEARCHES and self._candidates:
            first = [self._candidates[other][0] for other in sorted(self._candidates)[:_FREE_SEARCHES]]
            around = [math.degrees(place.angle) + turn for place in first for turn in (-12, -6, 0, 6, 12)]
            degrees = sorted({round(angle / STEP_DEGREES) * STEP_DEGREES % 360 for angle in around})
        improved = []
        for place in self._searcher.places(self._rough, rough, degrees, _PLACES):
            try:
                improved.append(self._aligner.rigid(piece, place)[1])
            except AlignmentError:
                continue
        improved.sort(key=lambda place: -place.score)
        self._candidates[number] = improved
        return improved

    def _bent(self, piece: Mask, place: Place) -> Piece:
        about = {"area_mm2": self._area(piece)}
        try:
            value, matrix = self._aligner.affine(piece, place)
        except AlignmentError:
            value, matrix = place.score, place.matrix()
        bend: Bend | None = None
        if self._elastic:
            try:
                bent, bend = self._aligner.elastic(piece, matrix)
                value = bent if bend is not None else value
            except AlignmentError:
                bend = None
            if bend is None:
                self.notes.append(f"a piece of {about['area_mm2']:.2f} mm² is registered by an affine map only")
        found = Piece(matrix, bend, True, about)
        about |= {"degrees": round(found.degrees, 1), "mutual_information": round(value, 4)}
        return found

    def _lost(self, piece: Mask) -> Piece:
        return Piece(np.eye(2, 3), None, False, {"area_mm2": self._area(piece)})

    def _area(self, piece: Mask) -> float:
        return round(float(piece.sum()) * self._source.um[0] * self._source.um[1] / 1e6, 3)

    def _covered(self, piece: Mask, motion: Piece) -> Mask:
        """Where a piece lies on the rough target, once moved."""
        step = max(2, int(self._rough_target.um[0] / self._source.um[0] / 2))
        points = self._source.centres_of(piece, step=step)
        places = self._rough_target.indices(motion(points))
        height, width = self._taken.shape
        row, col = np.rint(places[0]).astype(np.intp), np.rint(places[1]).astype(np.intp)
        inside = (row >= 0) & (col >= 0) & (row < height) & (col < width)
        found = np.zeros_like(self._taken)
        found[row[inside], col[inside]] = True
        closed: Mask = ndimage.binary_closing(found)
        return closed


def _was_placed(piece: Piece) -> bool:
    return "mutual_information" in piece.about


def _reduced(piece: Mask, like: Section) -> Mask:
    """A mask at the resolution of a coarser section."""
    factor = round(piece.shape[1] / like.density.shape[1]) or 1
    rows, cols = like.density.shape
    padded = np.pad(piece, ((0, max(0, rows * factor - piece.shape[0])), (0, max(0, cols * factor - piece.shape[1]))))
    means = padded[: rows * factor, : cols * factor].reshape(rows, factor, cols, factor).mean(axis=(1, 3))
    found: Mask = means >= 0.5
    return found


def _judged(registration: Registration, source: Section, target: Section) -> tuple[Registration, Agreement]:
    """The registration with each piece's agreement, and pieces without one marked as not found."""
    density, known = warped(registration, source, target)
    found = agreement(source, density, known)
    owners = registration.owner(found.middles)
    pieces, owns = [], []
    near = replace(target, tissue=ndimage.binary_dilation(target.tissue, iterations=2))
    assert registration.labels is not None
    for number, piece in enumerate(registration.pieces, start=1):
        own = found.of(owners == number)
        owns.append(own)
        if not piece.found:
            pieces.append(piece)
            continue
        inside = registration.labels == number
        step = max(2, math.ceil(math.sqrt(np.count_nonzero(inside) / _POINTS)))
        covered = _covered_fraction(piece, source.centres_of(inside, step=step), near)
        about = piece.about | {"agreement": round(own.near, 3), "covered": round(covered, 3)}
        is_sure = ((found.certain and own.believable) or own.certain) and covered >= _LEAST_COVERED
        pieces.append(replace(piece, found=is_sure, about=about))
    sure = _of_one_size([at for at, piece in enumerate(pieces) if piece.found], pieces)
    shown = bool(sure)
    if not sure and found.certain:  # many small pieces: together they show what none shows alone
        sure = [at for at, piece in enumerate(pieces) if piece.about.get("covered", 0.0) >= _WELL_COVERED]
    leaders = [pieces[at] for at in sure]
    rate = min((owns[at].near for at in sure), default=0.0) if shown else 0.0
    judged = [
        replace(piece, found=(shown and at in sure) or (_follows(piece, leaders) and not owns[at].below(rate / 2)))
        for at, piece in enumerate(pieces)
    ]
    return replace(registration, pieces=tuple(judged)), found


def _of_one_size(numbers: list[int], pieces: list[Piece]) -> list[int]:
    """Those of some pieces that are stretched like the best of them: one slide has one pixel size."""
    if not numbers:
        return []
    best = max(numbers, key=lambda at: pieces[at].about["agreement"] * pieces[at].about["area_mm2"])
    return [at for at in numbers if _alike(pieces[at].stretch, pieces[best].stretch, _ALIKE_STRETCH)]


def _alike(one: float, other: float, ratio: float) -> bool:
    return max(one / other, other / one) <= ratio


def _follows(piece: Piece, leaders: list[Piece]) -> bool:
    """Whether a piece that its own windows do not prove lies on tissue, turned and stretched like a proved one."""
    near = any(
        abs(math.remainder(piece.degrees - one.degrees, 360.0)) <= _ALIKE_DEGREES
        and _alike(piece.stretch, one.stretch, _ALIKE_STRETCH)
        for one in leaders
    )
    return near and piece.about.get("covered", 0.0) >= _WELL_COVERED


def _covered_fraction(piece: Piece, points: Doubles, target: Section) -> float:
    """Fraction of the points of a piece that come to lie on tissue of the target."""
    return float(target.is_tissue(piece(points)).mean()) if len(points) else 0.0


def _with_followers(registration: Registration) -> Registration:
    """The registration in which a piece that was not found moves as the largest that was."""
    leader = next(piece for piece in registration.pieces if piece.found)
    pieces = tuple(
        piece if piece.found else replace(piece, matrix=leader.matrix, bend=None) for piece in registration.pieces
    )
    return replace(registration, pieces=pieces)


def _unmirrored(piece: Piece, width_um: float) -> Piece:
    """The motion of a piece to the slide as it is, from that to the slide with left and right exchanged."""
    matrix = piece.matrix * np.array([[-1.0], [1.0]])
    matrix[0, 2] += width_um
    return replace(piece, matrix=matrix)
