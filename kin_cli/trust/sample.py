"""How near a slide is to what a generator was trained on, from a sample of patches: before any work, as ``kin info``.

The same patches are scored as they are, in matched colours, and at other pixel sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kin_cli.errors import InputError, NoTissueError, UsageError
from kin_cli.geometry import Box, Cell, Doubles, Floats, Grid, Pixels
from kin_cli.models.checkpoint import load_generator
from kin_cli.models.reference import Reference, Scores, read_reference
from kin_cli.passes.devices import ready_devices
from kin_cli.passes.engine import Engine
from kin_cli.progress import Progress
from kin_cli.slide.open import open_source
from kin_cli.slide.stain import METHODS, match_to
from kin_cli.slide.tissue import tissue_mask
from kin_cli.slide.view import SlideView

_RATIOS = (0.5, 0.71, 1.41, 2.0)  # pixel sizes relative to the slide's that are tried
_NEARER = 1.25  # a variant is named as better if its median percentile is larger by this factor and the next
_NEARER_BY = 0.03
_SOME = 0.05  # fraction of patches below 1 % from which it is not the whole slide that is like the training
_FAR = 0.05  # median percentile below which a slide is far from the training


@dataclass(frozen=True, eq=False)
class Sample:
    """Patches of a slide, spread evenly over its tissue: their boxes in the view, and the grid that they lie on."""

    view: SlideView
    boxes: tuple[Box, ...]

    def patches(self, *, ratio: float = 1.0) -> Iterator[Pixels]:
        """The pixels of each patch; with ``ratio`` of a square that many times as wide, resampled to the patch."""
        from PIL import Image

        for box in self.boxes:
            side = max(4, round(box.width * ratio))
            around = Box(box.x + (box.width - side) // 2, box.y + (box.height - side) // 2, side, side)
            pixels = self.view.read(around)
            if side != box.width:
                picture = Image.fromarray(pixels).resize((box.width, box.height), Image.Resampling.BICUBIC)
                pixels = np.asarray(picture).copy()
            yield pixels


def sample_patches(view: SlideView, *, count: int, patch_px: int, min_tissue: float) -> Sample:
    """Up to ``count`` patches of the patch grid with tissue enough, evenly spaced in reading order.

    Raises ``NoTissueError`` if there is none.
    """
    grid = Grid(view.size, patch_px)
    fraction = tissue_mask(view, "auto").fraction(grid)
    found = np.argwhere(fraction >= min_tissue)
    if not len(found):
        raise NoTissueError(
            f"{view.slide.path}: no patch of {patch_px} px with enough tissue",
            "the generator's reference is of patches of that size: kin models learn --patch-size makes another",
        )
    chosen = found[np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int)]
    return Sample(view, tuple(grid.box(Cell(int(row), int(col))) for row, col in chosen))


@dataclass(frozen=True)
class Nearness:
    """How near a variant of a slide is: ``median`` percentile, and fraction ``below`` 1 %. ``value`` is for options.

    ``before`` is the median of the slide as it is, judged as this variant: in matched colours the grain is judged more
    coarsely.
    """

    name: str
    value: str
    median: float
    below: float
    before: float


@dataclass(frozen=True, eq=False)
class Known:
    """A generator on its device, with what it was trained on."""

    path: Path
    engine: Engine
    reference: Reference

    def scores(self, patches: Sequence[Pixels]) -> Scores:
        """Trust percentiles of patches of one size."""
        return self.reference.scores(self.measured(patches))

    def measured(self, patches: Sequence[Pixels]) -> Floats:
        """The statistics (n, 2, ΣC) of patches of one size."""
        stats = np.concatenate([self.engine.measure([np.ascontiguousarray(patch)]) for patch in patches])
        if not np.isfinite(stats).all():
            raise InputError(f"{self.path}: gives numbers that are not finite", "try another checkpoint")
        return stats


def load_known(model: Path, *, device: str = "auto", **chosen: Any) -> Known:
    """Load a generator that carries a reference. Raises ``UsageError`` if it carries none."""
    generator = load_generator(model, **chosen)
    reference = read_reference(model, generator.channels) if generator.channels else None
    if reference is None:
        raise UsageError(
            f"{model} holds no reference statistics", "kin models learn makes them from its training slides"
        )
    return Known(model, Engine(generator, device=ready_devices(device)[0], precision="fp32"), reference)


def nearness(slide: Path, known: Known, progress: Progress, *, count: int = 24, **source: Any) -> list[Nearness]:
    """Score a sample of a slide as it is, in matched colours, and at other pixel sizes; the first is as it is.

    ``source`` are arguments of ``open_source``. Memory bound: ``count`` patches and their statistics.
    """
    card = known.reference.card
    view = open_source(slide, **source)
    with view.slide:
        sample = sample_patches(view, count=count, patch_px=card.patch_px, min_tissue=card.min_tissue)
        plain = list(sample.patches())
        methods = [method for method in METHODS if method in card.stains]
        found = []
        with progress.stage("trust", len(plain) * (1 + len(methods) + len(_RATIOS)), "patches") as advance:

            def scored(name: str, value: str, patches: Sequence[Pixels], *, matched: bool = False) -> Floats:
                stats = known.measured(patches)
                percentile = known.reference.scores(stats, matched=matched).percentile
                middle, below = float(np.median(percentile)), float((percentile < 0.01).mean())
                found.append(Nearness(name, value, middle, below, before[matched] if before else middle))
                advance(len(patches))
                return stats

            before: list[float] = []
            stats = scored("as it is", "", plain)
            before += [float(np.median(known.reference.scores(stats, matched=m).percentile)) for m in (False, True)]
            for method in methods:
                try:
                    match = match_to(view, method, card.stains[method])
                except (InputError, UsageError) as error:
                    progress.note(f"{error}: not tried")
                    continue
                if match.needed:
                    scored(f"--stain-match {method}", method, [match(patch) for patch in plain], matched=True)
                else:
                    advance(len(plain))
                    why = "not needed" if match.near else "would not bring it much nearer"
                    found.append(replace(found[0], name=f"--stain-match {method} ({why})", value=method))
            for ratio in _RATIOS:
                mpp = None if view.mpp is None else view.mpp * ratio
                name = f"{ratio:g} times the pixel size" if mpp is None else f"--mpp {mpp:.3g}"
                scored(name, "" if mpp is None else f"{mpp:.3g}", list(sample.patches(ratio=ratio)))
    return found


def verdict(found: Sequence[Nearness]) -> list[str]:
    """What the scores of ``nearness`` mean, one sentence each."""
    plain, others = found[0], found[1:]
    if plain.median >= _FAR and plain.below >= _SOME:
        lines = [
            "part of the slide is like what the generator was trained on, and part of it like nothing there:"
            " see the map that kin translate makes"
        ]
    elif plain.median >= _FAR:
        lines = ["the slide is like what the generator was trained on"]
    else:
        lines = ["the slide is unlike what the generator was trained on: do not believe its translation unseen"]
    best = max(others, key=lambda one: one.median / max(one.before, 1e-9), default=plain)
    if best.median >= _NEARER * best.before and best.median - best.before >= _NEARER_BY:
        lines.append(f"{best.name} brings it nearer")
    elif plain.median < _FAR:
        lines.append("neither other colours nor another pixel size bring it nearer")
    return lines


def spread(values: Doubles) -> tuple[float, float, float]:
    """10 %, 50 % and 90 % quantile."""
    low, middle, high = np.quantile(values, (0.1, 0.5, 0.9))
    return float(low), float(middle), float(high)
