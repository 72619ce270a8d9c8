"""The whole of a validation: read both slides area by area in one frame, and compare what they show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from kin_cli import __version__
from kin_cli.concurrency import available_cores, prefetch
from kin_cli.errors import NoTissueError
from kin_cli.evaluation.settings import SlideChoice
from kin_cli.evaluation.tiles import opened
from kin_cli.geometry import Box, Doubles, Mask, Pixels, Size
from kin_cli.metrics.colour import lab
from kin_cli.progress import Progress
from kin_cli.pyramid.provenance import provenance
from kin_cli.registration.reading import in_part, registration_of_translation
from kin_cli.registration.run import RegisterSettings, register, side_of
from kin_cli.registration.transform import Registration
from kin_cli.registration.warp import RegisteredView, background_colour, registered_view
from kin_cli.slide.tissue import TissueMask, detect_tissue, tissue_mask
from kin_cli.slide.view import SlideView, overview
from kin_cli.trust.witness import AbstentionCurve
from kin_cli.validation.abstention import abstention_of
from kin_cli.validation.areas import BASE_UM, NUCLEUS_UM, SCALES_UM, Areas, AreaTable, Rules, measured
from kin_cli.validation.recolour import Recolouring, recolouring
from kin_cli.validation.scores import RocCurve, Score, roc_curves, scores, verdict
from kin_cli.validation.stains import Stains, estimate, otsu

_WORKING_UM = 1.0
_BLOCK_AREAS = 24  # areas of 32 µm on a side of a block that is read at once
_SAMPLES, _SAMPLE_PX = 40, 256
_PICTURE_SIDE = 1400
_ABSTENTION_UM = 128


@dataclass(frozen=True)
class ValidationSettings:
    """What to compare.

    Attributes:
        translated, real: the translation, and the real slide of a serial section.
        source: what was translated; it is registered, and recoloured for comparison. None if unknown.
        registration: file of ``kin register`` or of an affine map; None to register now.
        stain: see ``stains.parse_stain``.
        tissue: "auto", "none" or the path of a mask of the translation's frame.
        seed: of the bootstrap and the shuffles.
        workers: number of threads; None for all cores.
    """

    translated: SlideChoice
    real: SlideChoice
    source: SlideChoice | None = None
    registration: Path | None = None
    stain: str = "dab"
    tissue: str | Path = "auto"
    seed: int = 0
    workers: int | None = None


@dataclass(frozen=True, eq=False)
class Validation:
    """The result: all scores, what they rest on, and pictures for the report.

    ``pictures`` holds (h, w, 3) overviews by name: translation, real and, perhaps, source. ``abstention`` is of areas
    of 128 µm, None if no trust map lies beside the translation.
    """

    settings: ValidationSettings
    registration: Registration
    stains: Stains
    rules: Rules
    scores: tuple[Score, ...]
    areas: dict[int, Areas]
    notes: tuple[str, ...]
    pictures: dict[str, Pixels] = field(default_factory=dict)
    abstention: AbstentionCurve | None = None
    roc: tuple[RocCurve, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the record, ready for JSON."""
        settings, stains = self.settings, self.stains
        return {
            "kin": __version__,
            "translated": str(settings.translated.path),
            "real": str(settings.real.path),
            "source": None if settings.source is None else str(settings.source.path),
            "registration": None if settings.registration is None else str(settings.registration),
            "registration_error_um": self.registration.error,
            "stain": {
                "name": stains.name,
                "vector": [round(v, 4) for v in stains.stain],
                "counterstain": [round(v, 4) for v in stains.counterstain],
                "white": list(stains.white),
                "note": stains.note,
            },
            "thresholds": {"stained": round(self.rules.stained, 4), "nucleus": round(self.rules.nucleus, 4)},
            "scores": [asdict(score) for score in self.scores],
            "roc": [curve.as_dict() for curve in self.roc],
            **({} if self.abstention is None else {"abstention": self.abstention.as_dict()}),
            "verdict": verdict(self.scores),
            "notes": list(self.notes),
        }


def validate(settings: ValidationSettings, progress: Progress) -> Validation:
    """Compare a translation with the real stain of a serial section, in the tissue of both.

    Memory bound: see ``AreaTable``; blocks of 768 µm for each thread; and the registration's, if it is made now.

    Raises:
        KinError: a slide or the registration cannot be used, or the slides share no tissue.
    """
    with ExitStack() as stack:
        translated = stack.enter_context(opened(settings.translated))
        real = stack.enter_context(opened(settings.real))
        source = None if settings.source is None else stack.enter_context(opened(settings.source))
        registration, notes = _registration(settings, translated, source, real, progress)
        for view, side in ((translated, registration.source), (real, registration.real)):
            view.slide.mpp = view.slide.mpp or side.mpp  # what no file states the registration knows
        if source is not None:
            source.slide.mpp = source.slide.mpp or registration.source.mpp
        run = _Run(settings, registration, (translated, real, source))
        table = run.table(progress)
        areas = {um: table.areas(um) for um in SCALES_UM}
        if not len(areas[SCALES_UM[0]].pixels):
            raise NoTissueError(
                f"{settings.translated.path}: no area is tissue in it and in {settings.real.path.name}",
                "is it the right pair? a matrix of another program must map the source to the real slide",
            )
        error = registration.error
        limit = 0.0 if error is None else error["p90"]
        found: list[Score] = []
        with progress.stage("scores", len(areas), "sizes of areas") as advance:
            for um, part in areas.items():
                found += scores(part, finer=um < limit, seed=settings.seed)
                advance(1)
        notes += run.notes
        if error is None:
            notes.append("the registration states no error of its own: areas finer than it are not marked")
        mpp = registration.source.mpp
        curve = abstention_of(areas[_ABSTENTION_UM], translated, mpp=mpp, seed=settings.seed)
        parts = (run.stains, run.rules, tuple(found), areas, tuple(notes), run.pictures())
        roc = tuple(one for part in areas.values() for one in roc_curves(part))
        return Validation(settings, registration, *parts, abstention=curve, roc=roc)


def _registration(
    settings: ValidationSettings,
    translated: SlideView,
    source: SlideView | None,
    real: SlideView,
    progress: Progress,
) -> tuple[Registration, list[str]]:
    """The registration from the frame of the translation to the real slide, read or made, and notes."""
    made = provenance(settings.translated.path)
    if settings.registration is not None:
        slides = real.slide, None if source is None else source.slide
        read, notes = registration_of_translation(settings.registration, translated, made, *slides)
        if read.foreign:  # a map between pixels knows no lengths
            side_of(translated, "--source-mpp"), side_of(real, "--real-mpp")
        return read, notes
    if settings.source is None or source is None:
        first = register(RegisterSettings(settings.translated, settings.real, settings.tissue), progress)
        return first.registration, list(first.notes)
    whole = replace(settings.source, level=None, mpp=None, region=None)
    tissue = settings.tissue if settings.source == whole else "auto"  # a mask is of the translation's frame
    registered = register(RegisterSettings(whole, settings.real, tissue), progress)
    part, said = in_part(registered.registration, translated, made)
    return part, [*registered.notes, *([] if said is None else [said])]


class _Run:
    """Both slides, and the source if there is one, in the frame of the translation at one resolution."""

    def __init__(
        self,
        settings: ValidationSettings,
        registration: Registration,
        views: tuple[SlideView, SlideView, SlideView | None],
    ) -> None:
        translated, real, source = views
        self.notes: list[str] = []
        self._workers = settings.workers or available_cores()
        mpp = max(_WORKING_UM, registration.source.mpp)
        self._side = max(8, round(BASE_UM / mpp))
        um = BASE_UM / self._side
        self._view = _at(translated, um)
        self._real = registered_view(registration, self._view, real, background_colour(real))
        self._source = None if source is None else _of_size(_at(source, um), self._view.size)
        self._mask, self._real_mask = _tissue(translated, settings.tissue), detect_tissue(real)
        self.stains, self.rules, sample = _stains(settings.stain, real, self._real_mask, um)
        if self.stains.note:
            self.notes.append(f"stain: {self.stains.note}")
        self._whites = [_white(translated), self.stains.white, self.stains.white]
        self._recolouring = None if source is None else _recolouring_of(source, sample)
        self._um2 = um**2

    def table(self, progress: Progress) -> AreaTable:
        """All areas of 32 µm, block by block."""
        table, side = AreaTable(self._side, self._um2), self._side * _BLOCK_AREAS
        boxes = list(_squares(self._view.size, side))
        with progress.stage("areas", len(boxes), "blocks") as advance:
            ahead = prefetch(self._block, boxes, workers=self._workers, ahead=self._workers)
            for box, block in zip(boxes, ahead, strict=True):
                if block is not None:
                    table.add((box.y // self._side, box.x // self._side), *block)
                advance(1)
        return table

    def _block(self, box: Box) -> tuple[Mask, list[tuple[Doubles, Doubles]]] | None:
        counted = _mask_pixels(self._mask, self._view, box)
        inside = box.clipped(self._view.size)
        counted[inside.height :] = False
        counted[:, inside.width :] = False
        if not counted.any():
            return None
        theirs, known = self._real.read_known(box)
        counted &= known & self._real_tissue(box)
        if not counted.any():
            return None
        slides = [self._view.read(box), theirs]
        if self._source is not None and self._recolouring is not None:
            slides.append(self._recolouring(self._source.read(box)))
        densities = (self.stains.densities(p, w) for p, w in zip(slides, self._whites, strict=False))
        return counted, [measured(density, counted, self.rules, self._side) for density in densities]

    def _real_tissue(self, box: Box) -> Mask:
        """Where the registered real slide has tissue, (h, w)."""
        registration = self._real.registration
        x, y = np.arange(box.x, box.right, 4) + 2.0, np.arange(box.y, box.bottom, 4) + 2.0
        at = (values.astype(np.float64) for values in np.meshgrid(x, y))
        l0 = np.stack(self._view.out_to_l0(*at), axis=-1)
        places = registration.to_real(l0) / (registration.real.size.width, registration.real.size.height)
        height, width = self._real_mask.mask.shape
        rows, cols = places[..., 1] * height, places[..., 0] * width
        inside = (rows >= 0) & (cols >= 0) & (rows < height) & (cols < width)
        found = np.zeros(inside.shape, np.bool_)
        found[inside] = self._real_mask.mask[rows[inside].astype(np.intp), cols[inside].astype(np.intp)]
        wide: Mask = np.kron(found, np.ones((4, 4), np.bool_))[: box.height, : box.width]
        return wide

    def pictures(self) -> dict[str, Pixels]:
        """Overviews of the translation, the registered real slide, and the source."""
        view, longest = self._view, max(self._view.size.width, self._view.size.height)
        um = BASE_UM / self._side * max(1.0, longest / _PICTURE_SIDE)
        small = _at(view, um)
        registered = RegisteredView(self._real.registration, small, _at(self._real.real, um), self._real.white)
        whole = Box(0, 0, small.size.width, small.size.height)
        found = {"translation": small.read(whole), "real": registered.read(whole)}
        if self._source is not None:
            source = overview(self._source, max(small.size.width, small.size.height))
            found["source"] = source
        return found


def _at(view: SlideView, um: float) -> SlideView:
    """A slide, or the part of it that a view shows, at a resolution."""
    slide = view.slide
    factor = (slide.mpp or um) / um
    size = Size(max(1, round(slide.levels[0].width * factor)), max(1, round(slide.levels[0].height * factor)))
    distances = [abs(np.log(factor * downsample)) for downsample in slide.downsamples]
    ratio = size.width / view.frame.width, size.height / view.frame.height
    left, right = (round(x * ratio[0]) for x in (view.region.x, view.region.right))
    upper, lower = (round(y * ratio[1]) for y in (view.region.y, view.region.bottom))
    region = Box(left, upper, max(1, right - left), max(1, lower - upper))
    return SlideView(slide, int(np.argmin(distances)), size, region, um)


def _of_size(view: SlideView, size: Size) -> SlideView:
    """A view with the size of its translation, from which it differs by rounding, or by a rounded pixel size."""
    if view.size == size:
        return view
    ratio = size.width / view.size.width, size.height / view.size.height
    left, upper = round(view.region.x * ratio[0]), round(view.region.y * ratio[1])
    frame = Size(
        max(left + size.width, round(view.frame.width * ratio[0])),
        max(upper + size.height, round(view.frame.height * ratio[1])),
    )
    return replace(view, frame=frame, region=Box(left, upper, size.width, size.height))


def _tissue(view: SlideView, tissue: str | Path) -> TissueMask:
    return detect_tissue(view) if tissue == "auto" else tissue_mask(view, tissue)


def _mask_pixels(mask: TissueMask, view: SlideView, box: Box) -> Mask:
    """The mask at the pixels of a box, (h, w); what lies beyond the frame repeats the edge."""
    height, width = mask.mask.shape
    rows = ((np.arange(box.y, box.bottom) + 0.5) * height / view.size.height).astype(np.intp).clip(0, height - 1)
    cols = ((np.arange(box.x, box.right) + 0.5) * width / view.size.width).astype(np.intp).clip(0, width - 1)
    return mask.mask[np.ix_(rows, cols)]


def _squares(size: Size, side: int) -> Iterator[Box]:
    """Squares that cover an image; the last ones reach beyond it."""
    for y in range(0, size.height, side):
        for x in range(0, size.width, side):
            yield Box(x, y, side, side)


def _white(view: SlideView) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in background_colour(view))
    return max(red, 128.0), max(green, 128.0), max(blue, 128.0)


def _stains(name: str, real: SlideView, mask: TissueMask, um: float) -> tuple[Stains, Rules, Pixels]:
    """The stains and thresholds of the real slide, and pixels (n, 3) of its tissue, at the resolution ``um``.

    The sample are 40 squares of 256 pixels, drawn at random where there is tissue.
    """
    rows, cols = np.nonzero(mask.mask)
    if not len(rows):
        raise NoTissueError(f"{real.slide.path}: no tissue in it", "is it the right slide?")
    view, parts = _at(real, um), []
    height, width = mask.mask.shape
    for number in np.random.default_rng(0).integers(0, len(rows), _SAMPLES):
        x = int((cols[number] + 0.5) / width * view.size.width) - _SAMPLE_PX // 2
        y = int((rows[number] + 0.5) / height * view.size.height) - _SAMPLE_PX // 2
        box = Box(x, y, _SAMPLE_PX, _SAMPLE_PX)
        parts.append((view.read(box), _mask_pixels(mask, view, box)))
    sample = np.concatenate([pixels[inside] for pixels, inside in parts])
    stains = estimate(name, sample[:: max(1, len(sample) // 300_000)], _white(real))
    stained, nuclear = [], []
    for pixels, inside in parts:
        densities = stains.densities(pixels)
        stained.append(densities[0][inside])
        nuclear.append(ndimage.gaussian_filter(densities.sum(axis=0), NUCLEUS_UM / um)[inside])
    return stains, Rules(otsu(np.concatenate(stained)), otsu(np.concatenate(nuclear))), sample


def _recolouring_of(source: SlideView, real: Pixels) -> Recolouring:
    """How the source is recoloured: to mean and spread of the real slide's tissue (n, 3)."""
    pixels, mask = overview(source, 1024), detect_tissue(source)
    rows, cols = (
        ((np.arange(n) + 0.5) * m / n).astype(np.intp) for n, m in zip(pixels.shape[:2], mask.mask.shape, strict=True)
    )
    inside = mask.mask[np.ix_(rows, cols)]
    return recolouring(lab(pixels[inside] if inside.any() else pixels.reshape(-1, 3)), lab(real[:100_000]))
