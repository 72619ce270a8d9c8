"""Learn the reference statistics of a generator from its training slides or patches, and put them into its file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kin_cli import __version__
from kin_cli.concurrency import available_cores, prefetch
from kin_cli.errors import InputError, ModelError, UsageError
from kin_cli.geometry import Box, Floats, Grid, Indices, Pixels
from kin_cli.models.checkpoint import Generator, load_generator, save_generator
from kin_cli.models.reference import Reference, ReferenceCard, fit_reference, with_reference
from kin_cli.passes.devices import Precision, ready_devices
from kin_cli.passes.engine import Engine
from kin_cli.progress import Progress
from kin_cli.slide.base import Slide
from kin_cli.slide.open import open_slide
from kin_cli.slide.stain import METHODS, target_stains, tissue_colours
from kin_cli.slide.tissue import tissue_mask, window_means
from kin_cli.slide.view import SlideView, open_view
from kin_cli.store.files import os_errors_as_output_errors, write_atomic
from kin_cli.trust.scans import CHANGES, rescanned

LEAST_PATCHES = 40
_CELLS_PER_PATCH = 8  # side of a patch on the lattice of candidate corners
_PARTS = 5  # of the training data, for calibration
_OVERLAP = 4  # patches drawn per patch that fits side by side: more would be the same again
_ROUNDED_PATCHES, _ROUNDED_PX = 8, 256  # patches that tell what another precision changes
_PRECISIONS: tuple[Precision, ...] = ("bf16", "fp16")
_LEAST_SPREAD = 1e-4  # of a mean or deviation over all patches; less is one picture again and again
_SOME_IMAGES = 60  # images whose colours are sampled for --stain-match


@dataclass(frozen=True)
class LearnSettings:
    """How a reference is learned.

    ``patches`` of ``patch_px`` are drawn from the ``region`` of the images, at ``mpp`` µm per pixel if given, with at
    least ``min_tissue``, each turned or mirrored at random, since tissue has no upper side. A fraction ``rescans`` of
    them is measured once more, as another scan of the slide would show it (``scans.rescanned``), with the strength of
    stains changed by up to ``stain_jitter``, which makes such changes normal.
    """

    patches: int = 400
    patch_px: int = 512
    mpp: float | None = None
    region: Box | None = None
    min_tissue: float = 0.25
    rescans: float = 0.75
    stain_jitter: float = 0.15
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.patches < LEAST_PATCHES:
            raise UsageError(f"{self.patches} patches are too few to learn from", f"at least {LEAST_PATCHES}")
        if self.patch_px < 32 or self.patch_px % 4:
            raise UsageError(f"patch size {self.patch_px} is not a multiple of 4 from 32 upwards")
        if not (0 < self.min_tissue <= 1 and 0 <= self.stain_jitter < 1 and 0 <= self.rescans <= 1):
            raise UsageError("min-tissue, stain-jitter and rescans are fractions; min-tissue above 0, jitter below 1")


@dataclass(frozen=True)
class _Place:
    """A patch: its image, its corner in the view of that image, the part of the data that it lies in, its number."""

    image: int
    x: int
    y: int
    part: int = 0
    number: int = 0


@dataclass(frozen=True)
class _Job:
    """A patch to measure, as it is or, by the number of a change from 1, as another scan would show it."""

    place: _Place
    change: int = 0


def learn_reference(
    generator: Generator, images: Sequence[Path], settings: LearnSettings, progress: Progress
) -> Reference:
    """Measure patches of the images and fit a reference to their statistics.

    Memory bound: the statistics of all patches (8 · ΣC bytes each), two copies, and 4 patches of pixels per thread.

    Raises:
        InputError: an image cannot be read, there is too little tissue, or all patches are alike.
        ModelError: the generator has no InstanceNorm, or gives numbers that are not finite.
        UsageError: the patch size does not suit the generator.
    """
    if not generator.channels:
        raise ModelError(
            "the generator has no InstanceNorm, and so no table of statistics", "no trust map can be made for it"
        )
    if settings.patch_px % generator.stride:
        raise UsageError(f"patch size {settings.patch_px} is not a multiple of {generator.stride}", "512 is usual")
    places = draw_places(images, settings)
    if empty := sorted(set(range(len(images))) - {place.image for place in places}):
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        names = ", ".join(str(images[number]) for number in empty[:3])
        progress.note(f"no patch of {settings.patch_px} px with enough tissue, so left out: {names}{more}")
    jobs = _jobs(places, settings)
    device = ready_devices(settings.device)[0]
    engine = Engine(generator, device=device, precision="fp32")
    stats = np.empty((len(jobs), 2, engine.channels), np.float32)
    some: list[Pixels] = []
    step = max(1, len(jobs) // _ROUNDED_PATCHES)
    mpps: list[float] = []
    with progress.stage("measure", len(jobs), "patches") as advance:
        for number, (patch, mpp) in enumerate(_patches(images, jobs, settings)):
            if mpp is not None:
                mpps.append(mpp)
            if number % step == 0:
                some.append(patch[:_ROUNDED_PX, :_ROUNDED_PX])
            stats[number] = engine.measure([np.ascontiguousarray(patch)])[0]
            advance(1)
    parts, kinds = np.array([job.place.part for job in jobs]), np.array([job.change for job in jobs])
    if settings.mpp is not None and len(mpps) < len(jobs):
        progress.note("some images do not tell their pixel size, and are taken as they are, not at --mpp")
    if not np.isfinite(stats).all():
        raise ModelError("the generator's features of its training patches are not finite", "try another checkpoint")
    if np.ptp(stats[kinds == 0], axis=0).max() < _LEAST_SPREAD:
        raise InputError(f"{images[0]}: all patches of the training are alike", "give slides with tissue")
    card = ReferenceCard(
        settings.patch_px,
        len(places),
        tuple(path.name.encode("utf-8", "backslashreplace").decode() for path in images[:100]),
        settings.min_tissue,
        round(sum(mpps) / len(mpps), 4) if mpps else None,
        settings.stain_jitter,
        settings.rescans,
        _stains(_colours(images, settings), progress),
        f"kin {__version__}",
    )
    channels = [count for _, count in engine.layers]
    rounded = _rounded(generator, some[:_ROUNDED_PATCHES], engine, device)
    return fit_reference(stats, parts, channels, card, kinds=kinds, rounded=rounded)


def learn_into(
    model: Path, output: Path, images: Sequence[Path], settings: LearnSettings, progress: Progress, **chosen: Any
) -> Reference:
    """Learn the reference of the generator in ``model`` and write ``output``: the same generator with the reference.

    A safetensors file keeps its weights and metadata byte for byte; a PyTorch file becomes a safetensors file.
    ``chosen`` is ``entry`` and ``norm`` of ``load_generator``. Raises ``KinError`` as ``learn_reference`` does.
    """
    generator = load_generator(model, **chosen)
    reference = learn_reference(generator, images, settings, progress)
    write_reference(generator, model, output, reference)
    return reference


def write_reference(generator: Generator, model: Path, output: Path, reference: Reference) -> None:
    """Write the generator of the file ``model`` with its reference to ``output``, atomically."""
    source = model
    if not _is_safetensors(model):
        assert generator.spec is not None  # of a known architecture, as load_generator gives it
        draft = output.with_name(f".{output.name}.weights.safetensors")
        try:
            save_generator(generator.module, draft, spec=generator.spec, metadata=generator.metadata)
            content = with_reference(draft, reference)
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
    else:
        content = with_reference(source, reference)
    with os_errors_as_output_errors(output):
        write_atomic(output, content)


def draw_places(images: Sequence[Path], settings: LearnSettings) -> list[_Place]:
    """Random places of patches, as many from each image as its tissue allows, with the part of the data of each.

    A part is a fifth of the images, or, of fewer than five, a fifth of each: a strip across its longer side. Raises
    ``InputError`` if there are fewer than ``LEAST_PATCHES``.
    """
    rng = np.random.default_rng([settings.seed, 0])
    candidates = [_candidates(path, settings) for path in images]
    room = [min(len(corners), _OVERLAP * fitting) for corners, fitting in candidates]
    taken = _shared_out(settings.patches, room)
    places: list[_Place] = []
    for number, ((corners, _), count) in enumerate(zip(candidates, taken, strict=True)):
        if not count:
            continue
        chosen = corners[np.sort(rng.choice(len(corners), count, replace=False))]
        along = chosen[:, int(np.ptp(chosen[:, 1]) > np.ptp(chosen[:, 0]))]
        ranks = np.argsort(np.argsort(along, kind="stable"))
        strips = ranks * _PARTS // count
        several = sum(bool(c) for c in taken) >= _PARTS
        places += [
            _Place(number, int(x), int(y), number % _PARTS if several else int(strip), len(places) + i)
            for i, ((x, y), strip) in enumerate(zip(chosen, strips, strict=True))
        ]
    if len(places) < LEAST_PATCHES:
        where = str(images[0]) if len(images) == 1 else f"the {len(images)} images"
        raise InputError(
            f"{where}: {len(places)} patches of {settings.patch_px} px with tissue are too few to learn from",
            f"at least {LEAST_PATCHES}: give more slides, or a smaller --patch-size",
        )
    return places


def _shared_out(wanted: int, room: Sequence[int]) -> list[int]:
    """As equal shares of ``wanted`` as the ``room`` of each allows."""
    taken = [0] * len(room)
    left = wanted
    while left and any(r > t for r, t in zip(room, taken, strict=True)):
        open_ = [i for i, r in enumerate(room) if r > taken[i]]
        share = max(1, left // len(open_))
        for i in open_:
            more = min(share, room[i] - taken[i], left)
            taken[i] += more
            left -= more
    return taken


def _candidates(path: Path, settings: LearnSettings) -> tuple[Indices, int]:
    """Corners (n, 2) as x and y of patches with enough tissue, on a lattice, and how many fit side by side."""
    with open_slide(path) as slide:
        view = _view(slide, settings)
        side, cell = settings.patch_px, max(1, settings.patch_px // _CELLS_PER_PATCH)
        if min(view.size.width, view.size.height) < side:
            return np.empty((0, 2), np.intp), 0
        fraction = tissue_mask(view, "auto").fraction(Grid(view.size, cell)).astype(np.float64)
        means = window_means(fraction, side // cell)
        found = np.argwhere(means >= settings.min_tissue)[:, ::-1] * cell
        found = np.minimum(found, [view.size.width - side, view.size.height - side])
        return found, max(1, round(float(fraction.sum()) * cell**2 / side**2))


def _view(slide: Slide, settings: LearnSettings) -> SlideView:
    return open_view(slide, mpp=settings.mpp if slide.mpp else None, region=settings.region)


def _jobs(places: Sequence[_Place], settings: LearnSettings) -> list[_Job]:
    """Every place as it is and, of places all over the images, one after the other changed, in the images' order."""
    count = round(settings.rescans * len(places))
    again = np.linspace(0, len(places) - 1, count).round().astype(int).tolist()
    jobs = [_Job(place) for place in places]
    jobs += [_Job(places[index], 1 + number % len(CHANGES)) for number, index in enumerate(again)]
    return sorted(jobs, key=lambda job: job.place.image)


def _patches(
    images: Sequence[Path], jobs: Sequence[_Job], settings: LearnSettings
) -> Iterator[tuple[Pixels, float | None]]:
    """The pixels of each job, and their µm per pixel; one image is open at a time."""
    for number, path in enumerate(images):
        here = [job for job in jobs if job.place.image == number]
        if not here:
            continue
        with open_slide(path) as slide:
            view = _view(slide, settings)

            def read(job: _Job, view: SlideView = view) -> Pixels:
                return _as_learned(view, job, settings)

            workers = min(4, available_cores())
            with closing(prefetch(read, here, workers=workers, ahead=2 * workers)) as patches:
                for patch in patches:
                    yield patch, view.mpp


def _as_learned(view: SlideView, job: _Job, settings: LearnSettings) -> Pixels:
    """The pixels of a place, turned at random, and perhaps as another scan of the slide would show them."""
    place, box = job.place, Box(job.place.x, job.place.y, settings.patch_px, settings.patch_px)
    rng = np.random.default_rng([settings.seed, 1, place.number])
    quarters, mirrored = int(rng.integers(4)), bool(rng.integers(2))
    if job.change:
        pixels = rescanned(view.read, box, CHANGES[job.change - 1], rng, stain_jitter=settings.stain_jitter)
    else:
        pixels = view.read(box)
    turned: Pixels = np.rot90(pixels, quarters)
    return turned[:, ::-1] if mirrored else turned


def _colours(images: Sequence[Path], settings: LearnSettings) -> list[Pixels]:
    """Colours (n, 3) of the tissue of each of up to 60 images, sampled as those of a slide that is to be matched."""
    chosen = [images[int(i)] for i in np.linspace(0, len(images) - 1, min(_SOME_IMAGES, len(images))).round()]
    found = []
    for path in chosen:
        with open_slide(path) as slide:
            found.append(tissue_colours(_view(slide, settings)))
    return found


def _stains(colours: Sequence[Pixels], progress: Progress) -> dict[str, Any]:
    """Colour statistics for --stain-match by every method that can be fitted."""
    found: dict[str, Any] = {}
    for method in METHODS:
        try:
            found[method] = target_stains(colours, method)
        except UsageError:
            progress.note("torchstain is missing: --stain-match will not work with this file")
            return {}
        except InputError as error:
            progress.note(f"{error.message}: --stain-match {method} will not work with this file")
    return found


def _rounded(
    generator: Generator, patches: Sequence[Pixels], exact: Engine, device: torch.device
) -> dict[str, tuple[Floats, Floats]]:
    """Statistics of some patches in float32 and in each lower precision that the device can compute."""
    images = [np.ascontiguousarray(patch) for patch in patches]
    wanted = _by_one(exact.measure, images)
    found: dict[str, tuple[Floats, Floats]] = {}
    for precision in _PRECISIONS:
        try:
            made = _by_one(Engine(generator, device=device, precision=precision).measure, images)
        except (RuntimeError, ValueError):  # the device has no such arithmetic
            continue
        if np.isfinite(made).all():
            found[precision] = (wanted, made)
    return found


def _by_one(measure: Callable[[Sequence[Pixels]], Floats], images: Sequence[Pixels]) -> Floats:
    return np.concatenate([measure([image]) for image in images])


def _is_safetensors(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    from kin_cli.store.files import utf8_name

    try:
        with utf8_name(path) as name, safe_open(name, framework="pt"):
            return True
    except (SafetensorError, OSError):
        return False
